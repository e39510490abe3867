"""A conditional DCGAN: class-conditional BatchNorm in G, projection and minibatch stddev in D."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from medgan.config import Cgan
from medgan.models.convolution import Conv2d, ConvTranspose2d
from medgan.models.dcgan import init_dcgan, init_he
from medgan.models.layers import BatchNorm, MinibatchStddev, activation, channels_at, labelled


class Generator(nn.Module):
    """z (N, z_dim) and labels (N, K) -> images (N, C, R, R) in [-1, 1]."""

    def __init__(self, config: Cgan, resolution: int, channels: int, classes: int) -> None:
        super().__init__()
        widths = channels_at(config.width, config.max_width, resolution)[::-1]
        self.z_dim = config.z_dim
        self.first = ConvTranspose2d(config.z_dim + classes, widths[0], 4, bias=False)
        self.norms = nn.ModuleList(BatchNorm(width, classes) for width in widths)
        self.ups = nn.ModuleList(ConvTranspose2d(here, above, 4, 2, 1, bias=False) for here, above in pairwise(widths))
        self.last = ConvTranspose2d(widths[-1], channels, 4, 2, 1)
        self.act = activation(config.activation, 0)
        self.apply(init_dcgan)

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        x = self.first(torch.cat([z, labelled(labels, z)], 1)[:, :, None, None])
        for level, norm in enumerate(self.norms):
            x = self.act(norm(x, labels))
            x = self.ups[level](x) if level < len(self.ups) else self.last(x)
        images: Tensor = x.tanh()
        return images


class Discriminator(nn.Module):
    """images (N, C, R, R) and labels (N, K) -> logits (N,)."""

    def __init__(self, config: Cgan, resolution: int, channels: int, classes: int) -> None:
        super().__init__()
        widths = channels_at(config.width, config.max_width, resolution)
        layers: list[nn.Module] = []
        for below, here in zip([channels, *widths], widths, strict=False):
            layers += [Conv2d(below, here, 4, 2, 1), activation(config.activation, 0.2)]
        group = config.stddev_group
        self.trunk = nn.Sequential(*layers, *([MinibatchStddev(group)] if group > 1 else []))
        features = widths[-1]
        self.pool = Conv2d(features + (group > 1), features, 4)
        self.act = activation(config.activation, 0.2)
        self.linear = nn.Linear(features, 1)
        self.embed = nn.Linear(classes, features, bias=False)
        self.apply(init_he)
        nn.init.normal_(self.embed.weight)

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """<features, embed(labels)> / sqrt(dim) + a linear score (arXiv:1802.05637, eq. 3)."""
        features = self.act(self.pool(self.trunk(images))).flatten(1)
        projected = (features * self.embed(labelled(labels, features))).sum(1) / features.shape[1] ** 0.5
        logits: Tensor = self.linear(features).flatten() + projected
        return logits
