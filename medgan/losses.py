"""Adversarial losses and gradient penalties: pure functions, one value per sample, averaged by the caller.

Logits are float (N,); larger means "real". Where a loss looks at pairs, the n-th real and the n-th generated image
have the same label.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from medgan.models.convolution import but_of_weights


class AdversarialLoss(NamedTuple):
    """D's loss and G's loss of (real, fake) logits, each (N,)."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]
    paired: bool = False
    """Whether G's loss looks at the real ones."""
    middle: float = 0.0
    """The logit that means neither real nor generated."""


def bce_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """-log sigmoid(real) - log(1 - sigmoid(fake)) (Goodfellow et al. 2014, arXiv:1406.2661, eq. 1)."""
    return F.softplus(-real) + F.softplus(fake)


def bce_generator(real: Tensor, fake: Tensor) -> Tensor:
    """-log sigmoid(fake): the non-saturating form (same paper, section 3)."""
    return F.softplus(-fake)


def lsgan_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """((real - 1)^2 + fake^2) / 2 (Mao et al. 2017, arXiv:1611.04076, eq. 9)."""
    return ((real - 1).square() + fake.square()) / 2


def lsgan_generator(real: Tensor, fake: Tensor) -> Tensor:
    """(fake - 1)^2 / 2 (same equation)."""
    return (fake - 1).square() / 2


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """max(0, 1 - real) + max(0, 1 + fake) (Lim and Ye 2017, arXiv:1705.02894)."""
    return F.relu(1 - real) + F.relu(1 + fake)


def linear_generator(real: Tensor, fake: Tensor) -> Tensor:
    """-fake: with the hinge and with Wasserstein's critic."""
    return -fake


def wgan_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """fake - real (Arjovsky et al. 2017, arXiv:1701.07875); wants `gradient_penalty`."""
    return fake - real


def rpgan_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """-log sigmoid(real - fake) (Jolicoeur-Martineau 2018, arXiv:1807.00734; arXiv:2501.05441, eq. 2)."""
    return F.softplus(fake - real)


def rpgan_generator(real: Tensor, fake: Tensor) -> Tensor:
    """-log sigmoid(fake - real) (same)."""
    return F.softplus(real - fake)


LOSSES = {
    "bce": AdversarialLoss(bce_discriminator, bce_generator),
    "lsgan": AdversarialLoss(lsgan_discriminator, lsgan_generator, middle=0.5),
    "hinge": AdversarialLoss(hinge_discriminator, linear_generator),
    "wgan-gp": AdversarialLoss(wgan_discriminator, linear_generator),
    "rpgan": AdversarialLoss(rpgan_discriminator, rpgan_generator, paired=True),
}


def squared_gradient(images: Tensor, logits: Tensor) -> Tensor:
    """Squared norm of D's gradient: R1 at real images, R2 at generated ones (Mescheder 2018, arXiv:1801.04406, eq. 9).

    images: (N, C, H, W) in [-1, 1], requires_grad; logits: (N,), computed from images.
    Returns (N,) >= 0, before the gamma/2 weight. Raises RuntimeError if images need no grad.
    """
    with but_of_weights():
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3))


def gradient_penalty(images: Tensor, logits: Tensor) -> Tensor:
    """(|gradient of D| - 1)^2 at images between real and generated ones (Gulrajani 2017, arXiv:1704.00028, eq. 3).

    Arguments as of `squared_gradient`; returns (N,) >= 0, before its weight.
    """
    return ((squared_gradient(images, logits) + 1e-12).sqrt() - 1).square()  # 1e-12: the root's gradient at 0


def path_lengths(images: Tensor, w: Tensor, direction: Tensor) -> Tensor:
    """|J^T y|: how far w moves G's images, along y (Karras et al. 2020, arXiv:1912.04958, eq. 4).

    images: (N, C, H, W), computed from w: (N, L, w_dim), one w for each of L levels; direction: y, standard normal
    (N, C, H, W). Returns (N,) >= 0: the root of the mean square over levels, divided by that of the number of pixels,
    so that neither number changes it much.
    """
    pixels = images.shape[2] * images.shape[3]
    with but_of_weights():
        (gradient,) = torch.autograd.grad((images * direction).sum() / pixels**0.5, w, create_graph=True)
    return (gradient.square().sum(2).mean(1) + 1e-12).sqrt()
