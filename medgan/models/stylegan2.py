"""A lean StyleGAN2 (Karras et al. 2020, arXiv:1912.04958): plain PyTorch operations, widths that suit a CPU.

Kept from the paper: mapping network with a lower learning rate, weight modulation and demodulation, filtered up- and
downsampling, learned noise, truncation towards the average w, skip generator, residual discriminator, minibatch
stddev, equalised learning rate. Left out: equal widths at the coarse levels and eight mapping layers. Other than
there, images end in a tanh (so that they lie in [-1, 1] as for every model) and the noise of a sample is part of its
latent, so that an image depends on its own z and label alone.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medgan.config import Stylegan2Lite
from medgan.models.convolution import FILTER, conv2d, conv_transpose2d, filtered, halved
from medgan.models.layers import Measured, MinibatchStddev, activation, channels_at, labelled

GAIN = math.sqrt(2)
"""Undoes what LeakyReLU(0.2) takes from the variance. Taken before the activation, which is the same for LeakyReLU,
and there it is part of the weights."""


class Linear(nn.Module):
    """A linear layer with equalised learning rate (Karras 2018, arXiv:1710.10196, 4.1): x (N, inputs) -> (N, outputs).

    Weights are stored with unit variance and scaled when used. lr: the share of the optimizer's learning rate at
    which the layer learns; gain: factor of the output. Always in float32 (float64 for float64 input): styles are
    small and matter.
    """

    def __init__(self, inputs: int, outputs: int, bias: float | None = 0.0, lr: float = 1.0, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr)
        self.bias = None if bias is None else nn.Parameter(torch.full((outputs,), bias / lr))
        self.scale, self.bias_scale = gain * lr / math.sqrt(inputs), gain * lr

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.bias is None else self.bias * self.bias_scale
            return F.linear(x.to(self.weight.dtype) * self.scale, self.weight, bias)


class Conv(nn.Module):
    """A convolution with equalised learning rate, filtered and halving the side where down is set.

    x (N, inputs, H, W) -> (N, outputs, H, W) or half the side. gain: factor of the output.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, gain: float = GAIN, bias: bool = True, down: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale, self.gain = gain / math.sqrt(inputs * kernel**2), gain
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.scale
        bias = None if self.bias is None else self.bias * self.gain
        kernel = weight.shape[-1]
        if not self.down:
            return conv2d(x, weight, bias, padding=kernel // 2)
        if kernel == 1:  # the same as a stride of 2, and far faster
            return conv2d(halved(x), weight, bias)
        return conv2d(filtered(x, (len(FILTER) - 2 + kernel) // 2), weight, bias, stride=2)


class ModulatedConv(nn.Module):
    """A convolution whose input channels are scaled per sample by a style (arXiv:1912.04958, eq. 1 and 3).

    x (N, inputs, H, W), w (N, w_dim) -> (N, outputs, H, W), or twice the side where up is set. Instead of a weight per
    sample it scales the input by the style and the output by the demodulation, which is the same and one convolution.
    gain: factor of the output. A bias is added after it.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        w_dim: int,
        gain: float = 1.0,
        up: bool = False,
        demodulate: bool = True,
    ) -> None:
        super().__init__()
        # The factor that equalises the learning rate of the weight is part of the style, which is far smaller.
        self.style = Linear(w_dim, inputs, bias=1.0, gain=1 / math.sqrt(inputs * kernel**2))
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.gain, self.up, self.demodulate = gain, up, demodulate

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style, weight = self.style(w), self.weight
        x = x * style.to(x.dtype)[..., None, None]
        if self.up:
            x = conv_transpose2d(x, weight.transpose(0, 1), stride=2)
            x = filtered(x, 1, gain=4)  # 4: three of four inputs of the filter are zeros
        else:
            x = conv2d(x, weight, padding=weight.shape[-1] // 2)
        bias = (self.bias * self.gain).to(x.dtype)[:, None, None]
        if not self.demodulate:
            return x * self.gain + bias
        with torch.autocast(x.device.type, enabled=False):
            power = style.square() @ weight.square().sum((2, 3)).T
            demodulation = self.gain * torch.rsqrt(power + 1e-8)
        return torch.addcmul(bias, x, demodulation.to(x.dtype)[..., None, None])


class Mapping(Measured):
    """z (N, z_dim) and labels (N, K) -> w (N, w_dim).

    While calibrating it measures the average w, of all samples and of each class: truncation draws a sample towards
    the average of its own classes, so that it keeps them (the paper draws towards the one of all).
    """

    average: Tensor

    def __init__(self, config: Stylegan2Lite, classes: int) -> None:
        super().__init__()
        self.embed = Linear(classes, config.w_dim, bias=None) if classes else None
        widths = [config.z_dim + (config.w_dim if classes else 0)] + [config.w_dim] * config.mapping_layers
        self.layers = nn.ModuleList(Linear(a, b, lr=config.mapping_lr, gain=GAIN) for a, b in pairwise(widths))
        self.act = activation(config.activation, 0.2)
        self.truncation = 1.0
        self.register_buffer("average", torch.zeros(1 + classes, config.w_dim))

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        w = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
        hot = labelled(labels, z) if self.embed is not None else z[:, :0]
        if self.embed is not None:
            w = torch.cat([w, self.embed(hot) * math.sqrt(hot.shape[1])], 1)  # unit variance for one-hot labels
        for layer in self.layers:
            w = self.act(layer(w))
        if self.measured is not None:
            groups = torch.cat([torch.ones_like(hot[:, :0].sum(1, keepdim=True)), hot], 1).double()
            self.measured.append(groups.T @ torch.cat([torch.ones_like(groups[:, :1]), w.detach().double()], 1))
        if self.truncation != 1:
            w = torch.lerp(self._centre(hot), w, self.truncation)
        return w

    def settle(self, measured: Tensor) -> None:
        counts, totals = measured[:, :1], measured[:, 1:]
        everybody = totals[:1] / counts[:1]
        self.average.copy_(torch.where(counts > 0, totals / counts.clamp(min=1), everybody))

    def _centre(self, hot: Tensor) -> Tensor:
        """The average w of each sample's classes: of all samples where it has none."""
        of_classes = hot @ self.average[1:] / hot.sum(1, keepdim=True).clamp(min=1)
        return torch.where(hot.sum(1, keepdim=True) > 0, of_classes, self.average[:1])


class StyledLayer(nn.Module):
    """A modulated 3x3 convolution, learned noise, bias and activation."""

    def __init__(self, config: Stylegan2Lite, inputs: int, outputs: int, up: bool) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, config.w_dim, gain=GAIN, up=up)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.act = activation(config.activation, 0.2)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        x = self.conv(x, w)
        if noise is not None:
            x += (noise * (self.noise_strength * GAIN)).to(x.dtype)
        out: Tensor = self.act(x)
        return out


class Level(nn.Module):
    """The layers of one resolution of G: two of them (one at 4x4), and what they add to the image."""

    def __init__(self, config: Stylegan2Lite, inputs: int, outputs: int, channels: int, first: bool) -> None:
        super().__init__()
        layers = [] if first else [StyledLayer(config, inputs, outputs, up=True)]
        self.layers = nn.ModuleList([*layers, StyledLayer(config, outputs, outputs, up=False)])
        self.to_image = ModulatedConv(outputs, channels, 1, config.w_dim, demodulate=False)

    def forward(self, x: Tensor, image: Tensor | None, w: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            x = layer(x, w, noise)
        seen = self.to_image(x, w).to(w.dtype)
        if image is not None:
            seen = seen + F.interpolate(image, scale_factor=2, mode="bilinear")  # FILTER, and the border repeated
        return x, seen


class Generator(nn.Module):
    """z (N, z_size) and labels (N, K) -> images (N, C, R, R) in [-1, 1].

    The first z_dim numbers of z go through the mapping network, then come the noise images, level by level. With
    style mixing another z_dim follow, and one more that says in training whether and from which level on they act.
    """

    def __init__(self, config: Stylegan2Lite, resolution: int, channels: int, classes: int) -> None:
        super().__init__()
        widths = [*channels_at(config.width, config.max_width, resolution)[::-1], config.width // 2]
        self.z_dim, self.noise, self.mixing = config.z_dim, config.noise, config.style_mixing
        self.mapping = Mapping(config, classes)
        self.constant = nn.Parameter(torch.randn(widths[0], 4, 4))
        self.levels = nn.ModuleList(
            Level(config, below, here, channels, first=level == 0)
            for level, (below, here) in enumerate(pairwise([widths[0], *widths]))
        )

    def forward(self, z: Tensor, labels: Tensor | None, with_w: bool = False) -> Any:
        """with_w: return (images, w), w (N, levels, w_dim) being what the images were computed from."""
        levels = self.styles(z, labels)
        x, image, used = self.constant.expand(len(z), -1, -1, -1), None, self.z_dim
        for level, (layers, w) in enumerate(zip(self.levels, levels.unbind(1), strict=True)):
            noise, side = None, 4 * 2**level
            if self.noise:
                noise = z[:, used : used + side**2].reshape(-1, 1, side, side)
                used += side**2
            x, image = layers(x, image, w, noise)
        assert image is not None
        return (image.tanh(), levels) if with_w else image.tanh()

    def styles(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """The w of every level: (N, levels, w_dim)."""
        count = len(self.levels)
        w = self.mapping(z[:, : self.z_dim], labels)[:, None].expand(-1, count, -1)
        if not (self.mixing and self.training):
            return w
        other = self.mapping(z[:, -1 - self.z_dim : -1], labels)[:, None]
        share = torch.special.ndtr(z[:, -1]) / self.mixing  # below 1: mixed, and uniform there
        first = 1 + (share * (count - 1)).floor()  # the level from which on the other acts
        mixed = torch.arange(count, device=z.device) >= first[:, None]
        return torch.where(mixed[..., None], other, w)


class Halving(nn.Module):
    """A residual block of D: two 3x3 convolutions, the second halving the side, beside a filtered 1x1 one."""

    def __init__(self, config: Stylegan2Lite, inputs: int, outputs: int) -> None:
        super().__init__()
        half = math.sqrt(0.5)  # of both branches: their sum keeps the variance
        self.first = Conv(inputs, inputs, 3)
        self.second = Conv(inputs, outputs, 3, gain=GAIN * half, down=True)
        self.skip = Conv(inputs, outputs, 1, gain=half, bias=False, down=True)
        self.act = activation(config.activation, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.second(self.act(self.first(x)))) + self.skip(x)
        return out


class Discriminator(nn.Module):
    """images (N, C, R, R) and labels (N, K) -> logits (N,)."""

    def __init__(self, config: Stylegan2Lite, resolution: int, channels: int, classes: int) -> None:
        super().__init__()
        widths = [config.width // 2, *channels_at(config.width, config.max_width, resolution)]
        group, features = config.stddev_group, widths[-1]
        self.act = activation(config.activation, 0.2)
        self.from_image = Conv(channels, widths[0], 1)
        self.trunk = nn.Sequential(*(Halving(config, a, b) for a, b in pairwise(widths)))
        self.spread = MinibatchStddev(group) if group > 1 else nn.Identity()
        self.last = Conv(features + (group > 1), features, 3)
        self.flat = Linear(features * 16, features, gain=GAIN)
        self.linear = Linear(features, 1)
        self.embed = Linear(classes, features, bias=None) if classes else None

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """A linear score + <features, embed(labels)> / sqrt(dim) (arXiv:1802.05637, eq. 3)."""
        # From one channel torch's own convolution (on GPUs, compiled) may leave the other memory order, and all that
        # follows is slower in it.
        x = self.act(self.from_image(images)).contiguous(memory_format=torch.channels_last)
        x = self.trunk(x)
        x = self.act(self.last(self.spread(x)))
        features = self.act(self.flat(x.flatten(1)))
        logits: Tensor = self.linear(features).flatten()
        if self.embed is not None:
            hot = labelled(labels, features)
            embedded = self.embed(hot) * math.sqrt(hot.shape[1])
            logits = logits + (features * embedded).sum(1) / math.sqrt(features.shape[1])
        return logits
