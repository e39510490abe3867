"""The contract of G and D, and build_gan.

    G(z, labels) -> images (N, C, R, R) in [-1, 1]        z: (N, z_size(config)) standard normal
    D(images, labels) -> logits (N,)                      labels: float (N, K), one-hot or multi-hot, or None

The training step never asks which model it has.
"""

from __future__ import annotations

from torch import nn

from medgan.config import Cgan, Config, Dcgan, Resgan, Stylegan2Lite
from medgan.models import cgan, dcgan, resgan, stylegan2


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
        case Stylegan2Lite() as model:
            return (
                stylegan2.Generator(model, data.resolution, data.channels, len(data.classes)),
                stylegan2.Discriminator(model, data.resolution, data.channels, len(data.classes)),
            )
        case Resgan() as model:
            return (
                resgan.Generator(model, data.resolution, data.channels, len(data.classes)),
                resgan.Discriminator(model, data.resolution, data.channels, len(data.classes)),
            )


def z_size(config: Config) -> int:
    """Numbers in one sample's z: model.z_dim, one for each pixel of G's noise inputs, and what style mixing needs."""
    size = config.model.z_dim
    if isinstance(config.model, Stylegan2Lite) and config.model.style_mixing:
        size += config.model.z_dim + 1
    if isinstance(config.model, Stylegan2Lite) and config.model.noise:
        assert config.data.resolution is not None
        side = 4
        while side <= config.data.resolution:
            size, side = size + side**2, 2 * side
    return size


def parameters(module: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in module.parameters())
