"""Adversarial losses and gradient penalties: pure functions, one value per sample, averaged by the caller.

Logits are float (N,); larger means "real".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class AdversarialLoss(NamedTuple):
    """D's loss of (real, fake) logits and G's loss of fake logits, each (N,)."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


def bce_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """-log sigmoid(real) - log(1 - sigmoid(fake)) (Goodfellow et al. 2014, arXiv:1406.2661, eq. 1)."""
    return F.softplus(-real) + F.softplus(fake)


def bce_generator(fake: Tensor) -> Tensor:
    """-log sigmoid(fake): the non-saturating form (same paper, section 3)."""
    return F.softplus(-fake)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """max(0, 1 - real) + max(0, 1 + fake) (Lim and Ye 2017, arXiv:1705.02894)."""
    return F.relu(1 - real) + F.relu(1 + fake)


def hinge_generator(fake: Tensor) -> Tensor:
    """-fake."""
    return -fake


LOSSES = {
    "bce": AdversarialLoss(bce_discriminator, bce_generator),
    "hinge": AdversarialLoss(hinge_discriminator, hinge_generator),
}


def r1_penalty(images: Tensor, logits: Tensor) -> Tensor:
    """Squared gradient norm of D at real images (Mescheder et al. 2018, arXiv:1801.04406, eq. 9).

    images: (N, C, H, W) in [-1, 1], requires_grad; logits: (N,), computed from images.
    Returns (N,) >= 0, before the gamma/2 weight. Raises RuntimeError if images need no grad.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3))
