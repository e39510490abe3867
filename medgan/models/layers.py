"""What models share: layers that look at more than one sample, written so that W ranks compute what one process
would."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class SumOverRanks(torch.autograd.Function):
    """All-reduce (sum) that can be differentiated any number of times.

    Every rank's output depends on every rank's input with derivative 1, so the gradient of an input is the sum of
    all ranks' output gradients: the function itself. `torch.distributed.nn.functional` has one too, but deprecated.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return SumOverRanks.apply(grads[0])


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class Measured(nn.Module):
    """A layer that uses, in evaluation mode, figures which `measuring` takes from passes in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.measured: list[Tensor] | None = None
        """A tensor of sums of each pass while measuring."""

    def settle(self, measured: Tensor) -> None:
        """Keep what follows from the sums of all passes together, float64."""
        raise NotImplementedError


def labelled(labels: Tensor | None, like: Tensor) -> Tensor:
    """The labels that a conditional model cannot do without, in the dtype of another tensor."""
    if labels is None:
        raise ValueError("a conditional model needs labels")
    return labels.to(like.dtype)


class BatchNorm(Measured):
    """BatchNorm over the global batch (Ioffe and Szegedy 2015, arXiv:1502.03167), optionally class-conditional.

    In training it normalises with the mean and variance of all ranks' samples together. It keeps no running
    averages: those of an averaged generator would be wrong for it (they belong to the raw weights). Instead
    `calibrate` measures the statistics that evaluation mode uses.

    forward: x (N, C, H, W), any float dtype; labels float (N, K) where classes = K > 0. Returns x's dtype and shape.
    Statistics are float32, or float64 for float64 input.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, features: int, classes: int = 0, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        if classes:  # what each class adds to weight and bias
            self.class_weight = nn.Parameter(torch.zeros(classes, features))
            self.class_bias = nn.Parameter(torch.zeros(classes, features))
        self.conditional = classes > 0
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("var", torch.ones(features))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if self.conditional:
            labels = labelled(labels, weight)
            with torch.autocast(x.device.type, enabled=False):
                weight, bias = weight + labels @ self.class_weight, bias + labels @ self.class_bias
        if self.training and self.measured is None and world_size() == 1:
            if not self.conditional:
                return F.batch_norm(x, None, None, weight, bias, training=True, eps=self.eps)
            return _affine(F.batch_norm(x, None, None, training=True, eps=self.eps), weight, bias)
        mean, var = self._batch_statistics(x) if self.training else (self.mean, self.var)
        scale = weight * torch.rsqrt(var + self.eps)
        shift = bias - mean * scale
        return _affine(x, scale, shift)

    def _batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        count = wide.new_full((1,), x.shape[0] * x.shape[2] * x.shape[3])
        sums = torch.cat([count, wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3))])
        if self.measured is not None:  # by this process alone
            self.measured.append(sums.detach().double())
        elif world_size() > 1:
            sums = SumOverRanks.apply(sums)
        count, total, squares = sums.split([1, x.shape[1], x.shape[1]])
        mean = total / count
        return mean, (squares / count - mean.square()).clamp(min=0)

    def settle(self, measured: Tensor) -> None:
        count, total, squares = measured.split([1, len(self.mean), len(self.mean)])
        self.mean.copy_(total / count)
        self.var.copy_((squares / count - self.mean.square()).clamp(min=0))


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x (N, C, H, W) times scale plus shift, each (C,) or (N, C), in x's dtype."""
    scale, shift = (value.to(x.dtype)[..., None, None] for value in (scale, shift))
    return torch.addcmul(shift, x, scale)


@contextmanager
def measuring(module: nn.Module) -> Iterator[None]:
    """Within it, forward passes in training mode measure the figures that evaluation mode then uses.

    The passes see this process's samples only, so that every rank may calibrate the same generator by itself.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, Measured)]
    was_training = module.training
    module.train()
    for layer in layers:
        layer.measured = []
    try:
        yield
        for layer in layers:
            assert layer.measured is not None
            layer.settle(torch.stack(layer.measured).sum(0))
    finally:
        for layer in layers:
            layer.measured = None
        module.train(was_training)


class MinibatchStddev(nn.Module):
    """One more channel: the mean standard deviation within groups of neighbours (Karras 2018, arXiv:1710.10196, 3).

    Groups are contiguous, so they do not straddle ranks. x: (N, C, H, W), N a multiple of group -> (N, C + 1, H, W).
    """

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        if len(x) % self.group:
            raise ValueError(f"{len(x)} samples are not whole minibatch-stddev groups of {self.group}")
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        grouped = wide.reshape(-1, self.group, *x.shape[1:])
        variance = (grouped - grouped.mean(1, keepdim=True)).square().mean(1)  # Tensor.var is many times slower here
        spread = (variance + 1e-8).sqrt().mean((1, 2, 3))  # 1e-8: the root's gradient is infinite at 0
        column = spread.repeat_interleave(self.group)[:, None, None, None].to(x.dtype)
        return torch.cat([x, column.expand(-1, 1, *x.shape[2:])], 1)


class Rectified(nn.Module):
    """LeakyReLU, or ReLU for a slope of 0, in the memory of its input, which nobody may want any more. Where the input
    is a view, autograd would copy it, so that it stays as it is.

    x of any shape and float dtype -> the same.
    """

    def __init__(self, slope: float, inplace: bool) -> None:
        super().__init__()
        self.slope, self.inplace = slope, inplace

    def forward(self, x: Tensor) -> Tensor:
        inplace = self.inplace and not torch.compiler.is_compiling() and not x._is_view()
        return F.leaky_relu(x, self.slope, inplace) if self.slope else F.relu(x, inplace)


def activation(name: str, slope: float, inplace: bool = True) -> nn.Module:
    """relu with the given negative slope, or SiLU. inplace: whether its input may be overwritten."""
    return nn.SiLU() if name == "silu" else Rectified(slope, inplace)


def channels_at(width: int, max_width: int, resolution: int) -> list[int]:
    """Channels at resolution / 2, / 4, ... down to 4: width doubled at each halving, at most max_width."""
    return [min(width * 2**level, max_width) for level in range(int(math.log2(resolution)) - 2)]
