"""The contract of G and D, and build_gan.

    G(z, labels) -> images (N, C, R, R) in [-1, 1]        z: (N, z_dim) standard normal
    D(images, labels) -> logits (N,)                      labels: float (N, K), one-hot or multi-hot, or None

The training step never asks which model it has.
"""

from __future__ import annotations

from torch import nn

from medgan.config import Cgan, Config, Dcgan
from medgan.models import cgan, dcgan


def build_gan(config: Config) -> tuple[nn.Module, nn.Module]:
    """(G, D) with fresh weights from torch's global generator; config.data must be filled from DATA."""
    data = config.data
    assert data.resolution is not None
    assert data.channels is not None
    assert data.classes is not None
    match config.model:
        case Dcgan() as model:
            return (
                dcgan.Generator(model, data.resolution, data.channels),
                dcgan.Discriminator(model, data.resolution, data.channels),
            )
        case Cgan() as model:
            return (
                cgan.Generator(model, data.resolution, data.channels, len(data.classes)),
                cgan.Discriminator(model, data.resolution, data.channels, len(data.classes)),
            )


def parameters(module: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in module.parameters())
