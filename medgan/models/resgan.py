"""Residual networks without normalisation, after R3GAN (Huang et al. 2024, arXiv:2501.05441): plain PyTorch.

Kept from the paper: blocks of 1x1, grouped 3x3 and 1x1 convolutions whose last starts at zero, filtered resampling
outside the blocks, no normalisation anywhere, a learned 4x4 basis, labels embedded into z and projected in D. Other
than there, widths suit a CPU, and images end in a tanh as those of every model here.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medgan.config import Resgan
from medgan.models.convolution import Conv2d, halved
from medgan.models.layers import MinibatchStddev, activation, channels_at, labelled

SLOPE = 0.2
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


class Residual(nn.Module):
    """x + 1x1(act(grouped 3x3(act(1x1(act(x)))))): (N, C, H, W) -> the same. At first the identity.

    depth: residual blocks of the whole network. With it the inner weights start smaller, so that the step that the
    output takes does not grow with the depth (Fixup, Zhang et al. 2019, arXiv:1901.09321).
    """

    def __init__(self, config: Resgan, width: int, depth: int) -> None:
        super().__init__()
        inner = width * config.expansion
        groups = next(g for g in range(max(1, inner // config.group_width), 0, -1) if inner % g == 0)
        self.widen = Conv2d(width, inner, 1)
        self.mix = Conv2d(inner, inner, 3, padding=1, groups=groups)
        self.narrow = Conv2d(inner, width, 1, bias=False)
        self.first = activation(config.activation, SLOPE, inplace=False)  # x is added to what comes of it
        self.act = activation(config.activation, SLOPE)
        for conv in (self.widen, self.mix):
            scaled(conv, depth**-0.25)  # three layers to a block: depth ** (-1 / (2 * 3 - 2))
        nn.init.zeros_(self.narrow.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.narrow(self.act(self.mix(self.act(self.widen(self.first(x))))))
        return out


class Generator(nn.Module):
    """z (N, z_dim) and labels (N, K) -> images (N, C, R, R) in [-1, 1]."""

    def __init__(self, config: Resgan, resolution: int, channels: int, classes: int) -> None:
        super().__init__()
        widths = [*channels_at(config.width, config.max_width, resolution)[::-1], config.width // 2]
        depth = config.blocks * len(widths)
        self.embed = nn.Linear(classes, config.z_dim, bias=False) if classes else None
        self.first = nn.Linear(config.z_dim * (2 if classes else 1), widths[0])
        self.basis = nn.Parameter(torch.randn(widths[0], 4, 4))
        self.blocks = nn.ModuleList(
            nn.Sequential(*(Residual(config, width, depth) for _ in range(config.blocks))) for width in widths
        )
        self.changes = nn.ModuleList(scaled(Conv2d(a, b, 1, bias=False)) for a, b in pairwise(widths))
        self.act = activation(config.activation, SLOPE)
        self.last = scaled(Conv2d(widths[-1], channels, 1), 0.25)
        scaled(self.first)
        if self.embed is not None:
            nn.init.normal_(self.embed.weight)

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        if self.embed is not None:
            z = torch.cat([z, self.embed(labelled(labels, z))], 1)
        x = self.first(z)[:, :, None, None] * self.basis
        x = x.contiguous(memory_format=torch.channels_last)
        for level, blocks in enumerate(self.blocks):
            if level:  # the 1x1 convolution first: it commutes with the filter and costs a quarter there
                x = F.interpolate(self.changes[level - 1](x), scale_factor=2, mode="bilinear")
            x = blocks(x)
        images: Tensor = self.last(self.act(x)).tanh()
        return images


class Discriminator(nn.Module):
    """images (N, C, R, R) and labels (N, K) -> logits (N,)."""

    def __init__(self, config: Resgan, resolution: int, channels: int, classes: int) -> None:
        super().__init__()
        widths = [config.width // 2, *channels_at(config.width, config.max_width, resolution)]
        depth = config.blocks * len(widths)
        group, features = config.stddev_group, widths[-1]
        self.from_image = scaled(Conv2d(channels, widths[0], 1))
        self.blocks = nn.ModuleList(
            nn.Sequential(*(Residual(config, width, depth) for _ in range(config.blocks))) for width in widths
        )
        self.changes = nn.ModuleList(scaled(Conv2d(a, b, 1, bias=False)) for a, b in pairwise(widths))
        self.spread = MinibatchStddev(group) if group > 1 else nn.Identity()
        self.basis = scaled(Conv2d(features + (group > 1), features, 4))
        self.act = activation(config.activation, SLOPE)
        self.linear = nn.Linear(features, 1)
        self.embed = nn.Linear(classes, features, bias=False) if classes else None
        nn.init.zeros_(self.linear.bias)
        if self.embed is not None:
            nn.init.normal_(self.embed.weight)

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """A linear score + <features, embed(labels)> / sqrt(dim) (arXiv:1802.05637, eq. 3)."""
        x = self.from_image(images).contiguous(memory_format=torch.channels_last)  # as in stylegan2-lite's D
        for level, blocks in enumerate(self.blocks):
            if level:
                x = self.changes[level - 1](halved(x))
            x = blocks(x)
        # The loss looks at differences of logits, which bfloat16 would round away: from here on as the weights are.
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.linear.weight.dtype)
            features = self.act(self.basis(self.spread(self.act(x)))).flatten(1)
            logits: Tensor = self.linear(features).flatten()
            if self.embed is not None:
                projected = (features * self.embed(labelled(labels, features))).sum(1)
                logits = logits + projected / math.sqrt(features.shape[1])
        return logits


def scaled(layer: Layer, gain: float = 1.0) -> Layer:
    """Weights that keep the variance through LeakyReLU(0.2) (He et al. 2015, arXiv:1502.01852) times gain, biases 0."""
    nn.init.kaiming_normal_(layer.weight, a=SLOPE)
    layer.weight.data.mul_(gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
