"""Convolutions and resampling that can be differentiated any number of times, as products of matrices where CPUs are
faster at those.

torch's own second derivative of a convolution, which gradient penalties need, takes the gradient of a weight as a
convolution with kernels as large as the images: many times slower than the weight's gradient itself. Here the three
products of a convolution, each of which has the other two as its derivatives, are one function.

Of these, oneDNN computes the gradients of weights poorly where images are small and channels many, and convolves a
single channel into the other memory order: there patches are copied into a matrix, and AMX multiplies it. Gradients of
inputs that were halved it computes at half the rate of others: they are put together of some that were not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW, SOME = 16, 64
"""Output pixels per image up to which patches are copied, SOME in bfloat16: beyond, oneDNN is as fast, and needs less
memory."""
CHANNELS = 4
"""Input channels up to which they are, too: patches are then smaller than what is computed from them."""
WIDE = 512
"""Output channels from which on the input's gradient is added up from patches, too, for FEW pixels."""
MANY, LARGE, PHASED = 128 * 256, 256, (torch.bfloat16,)
"""Input times output channels, output pixels and dtypes from which on a halved input's gradient is by phases."""


class Shape(NamedTuple):
    """What a convolution has beside its tensors."""

    side: tuple[int, ...]
    """Of the input: height and width."""
    kernel: tuple[int, ...]
    stride: int
    padding: int
    groups: int = 1

    @property
    def pixels(self) -> int:
        """Of the output."""
        height, width = (
            (side + 2 * self.padding - kernel) // self.stride + 1
            for side, kernel in zip(self.side, self.kernel, strict=True)
        )
        return height * width

    def reads_patches(self, x: Tensor, inputs: int) -> bool:
        """Whether the two products that read patches are faster as matrices than by oneDNN; x: of its device, dtype."""
        return self._matrix(x, inputs, SOME if x.dtype == torch.bfloat16 else FEW)

    def adds_patches(self, y: Tensor, inputs: int) -> bool:
        """The same of the one that adds them up."""
        return self._matrix(y, inputs, FEW if y.shape[1] >= WIDE else 1)

    def has_phases(self, y: Tensor, inputs: int) -> bool:
        """Whether that one is faster as a convolution for each of the places within a stride. They cover the input
        where there is no padding and nothing is left over."""
        left_over = any((side - kernel) % self.stride for side, kernel in zip(self.side, self.kernel, strict=True))
        whole = self.groups == 1 and not (self.padding or left_over) and 1 < self.stride <= min(self.kernel)
        fast = y.dtype in PHASED and self.pixels >= LARGE and inputs * y.shape[1] >= MANY
        return whole and fast and y.device.type == "cpu"

    def by_torch(self, y: Tensor, inputs: int) -> bool:
        """Whether it is left to torch, which can take the weight's gradient in the same call."""
        return not (self.adds_patches(y, inputs) or self.has_phases(y, inputs))

    def _matrix(self, like: Tensor, inputs: int, most: int) -> bool:
        return like.device.type == "cpu" and self.groups == 1 and (self.pixels <= most or inputs <= CHANNELS)


def patches(x: Tensor, shape: Shape) -> Tensor:
    """x (N, C, H, W) -> what each output pixel sees, (N, h, w, kernel * kernel * C): a view where that is one."""
    (height, width), pad, stride = shape.kernel, shape.padding, shape.stride
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad)).contiguous()
    count, rows, columns, channels = x.shape
    windows = x.as_strided(
        (count, (rows - height) // stride + 1, (columns - width) // stride + 1, height, width * channels),
        (x.stride(0), stride * x.stride(1), stride * x.stride(2), x.stride(1), 1),
    )
    return windows.flatten(3)


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape, seen: Tensor | None = None) -> Tensor:
    """x (N, C, H, W), weight (O, C / groups, kernel, kernel), bias (O,) -> (N, O, h, w). seen: the patches of x, where
    they are known."""
    if not shape.reads_patches(x, weight.shape[1]):
        return torch.conv2d(x, weight, bias, shape.stride, shape.padding, groups=shape.groups)
    seen = patches(x, shape) if seen is None else seen
    return F.linear(seen, weight.permute(0, 2, 3, 1).flatten(1), bias).permute(0, 3, 1, 2)


def spread(y: Tensor, weight: Tensor, shape: Shape) -> Tensor:
    """The transpose of `convolved` in x: y (N, O, h, w) -> (N, C, H, W)."""
    if shape.has_phases(y, weight.shape[1]):
        x = _unset(y, len(y), weight.shape[1], *shape.side)
        for top, left in itertools.product(range(shape.stride), repeat=2):
            rows, columns = slice(top, None, shape.stride), slice(left, None, shape.stride)
            taps = weight[..., rows, columns].flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
            x[..., rows, columns] = torch.conv2d(y, taps, padding=[side - 1 for side in taps.shape[2:]])
        return x
    if not shape.adds_patches(y, weight.shape[1]):
        x = _unset(y, len(y), weight.shape[1] * shape.groups, *shape.side)
        return _backward(y, x, weight, shape, (True, False, False))[0]
    y = y.permute(0, 2, 3, 1)
    (height, width), stride, pad = y.shape[1:3], shape.stride, shape.padding
    seen = (y @ weight.permute(0, 2, 3, 1).flatten(1)).unflatten(3, (*shape.kernel, -1))
    if shape.pixels == 1 and not pad and shape.side == shape.kernel:
        return seen[:, 0, 0].permute(0, 3, 1, 2)
    wide = torch.promote_types(y.dtype, torch.float32)  # so that what falls on one pixel is summed as in a convolution
    x = torch.zeros(len(y), *(side + 2 * pad for side in shape.side), weight.shape[1], dtype=wide, device=y.device)
    for row in range(shape.kernel[0]):
        for column in range(shape.kernel[1]):
            x[:, row::stride, column::stride][:, :height, :width] += seen[:, :, :, row, column]
    inside = x[:, pad : pad + shape.side[0], pad : pad + shape.side[1]]
    return inside.to(y.dtype).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def correlated(x: Tensor, y: Tensor, shape: Shape, seen: Tensor | None = None) -> Tensor:
    """The transpose of `convolved` in weight: x (N, C, H, W), y (N, O, h, w) -> (O, C, kernel, kernel)."""
    if shape.reads_patches(x, x.shape[1]):
        seen = patches(x, shape) if seen is None else seen
        weight = y.permute(1, 0, 2, 3).flatten(1) @ seen.flatten(0, 2)
        return weight.reshape(y.shape[1], *shape.kernel, x.shape[1]).permute(0, 3, 1, 2)
    weight = _unset(x, y.shape[1], x.shape[1] // shape.groups, *shape.kernel)
    return _backward(y, x, weight, shape, (False, True, False))[1]


def _unset(like: Tensor, *shape: int) -> Tensor:
    """Memory that is reserved and not touched: of what is to be computed the shape and the order are asked for."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _backward(
    y: Tensor, x: Tensor, weight: Tensor, shape: Shape, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, ...]:
    """Of x, of weight and of bias, which of them are wanted."""
    s, p = [shape.stride] * 2, [shape.padding] * 2
    more = ([1, 1], False, [0, 0], shape.groups)  # dilation, not transposed, no output padding
    biases = [y.shape[1]]  # looked at where they are wanted
    return torch.ops.aten.convolution_backward(y, x, weight, biases, s, p, *more, wanted)


_of_weights = True  # of the process, since autograd has threads of its own


@contextmanager
def but_of_weights() -> Iterator[None]:
    """Gradients taken within have nothing to do with weights: autograd asks a Function for those, too, also where, as
    in a penalty, nobody wants them."""
    global _of_weights
    before, _of_weights = _of_weights, False
    try:
        yield
    finally:
        _of_weights = before


PRODUCTS = {"y": ("x", "weight"), "x": ("y", "weight"), "weight": ("x", "y")}
"""Of which two each of the three is the product."""


class Product(torch.autograd.Function):
    """One of an input x, a weight and an output y from the two others: `convolved`, `spread` or `correlated`.

    Their sum over everything is linear in all three, so that the gradient of either factor is the product of the other
    one and the gradient that came in, which stands in the place of the result.
    """

    @staticmethod
    def forward(ctx: Any, wanted: str, a: Tensor, b: Tensor, bias: Tensor | None, shape: Shape) -> Tensor:
        _, _, to_b, *_ = ctx.needs_input_grad
        # Copied once for this product and for the gradient of the weight.
        seen = patches(a, shape) if wanted == "y" and to_b and shape.reads_patches(a, b.shape[1]) else None
        ctx.save_for_backward(a, b, seen)
        ctx.wanted, ctx.shape = wanted, shape
        return product(wanted, a, b, bias, shape, seen)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        again = torch.is_grad_enabled()  # differentiated again
        factors, shape = PRODUCTS[ctx.wanted], ctx.shape
        _, *needed, to_bias, _ = ctx.needs_input_grad
        *saved, seen = ctx.saved_tensors
        known = {ctx.wanted: grads[0], **dict(zip(factors, saved, strict=True))}
        if all(needed) and _of_weights and not again and ctx.wanted != "weight":
            x, y, weight = (known[name] for name in ("x", "y", "weight"))
            by_patches = shape.reads_patches(x, weight.shape[1])
            if ctx.wanted == "x" and by_patches:
                seen = patches(x, shape)  # once for both
            elif ctx.wanted == "y" and not by_patches and shape.by_torch(y, weight.shape[1]):
                return None, *_backward(y, x, weight, shape, (True, True, to_bias)), None  # one call for all
        take: Callable[..., Tensor] = Product.apply if again else partial(product, seen=seen)
        back = [
            take(name, *(known[other] for other in PRODUCTS[name]), None, shape)
            if need and (_of_weights or name != "weight")
            else None
            for name, need in zip(factors, needed, strict=True)
        ]
        of_bias = grads[0].sum((0, 2, 3)) if to_bias and _of_weights else None
        return None, *back, of_bias, None


def product(wanted: str, a: Tensor, b: Tensor, bias: Tensor | None, shape: Shape, seen: Tensor | None = None) -> Tensor:
    """a, b: the two of PRODUCTS[wanted]; bias: (O,), added to y; seen: the patches of x, where they are known."""
    if wanted == "y":
        return convolved(a, b, bias, shape, seen)
    return spread(a, b, shape) if wanted == "x" else correlated(a, b, shape, seen)


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0, groups: int = 1
) -> Tensor:
    """F.conv2d, in autocast's dtype within autocast: x (N, C, H, W), weight (O, C / groups, k, k), bias (O,) ->
    (N, O, h, w)."""
    if _transformed():
        return F.conv2d(x, weight, bias, stride, padding, groups=groups)
    x, weight, bias = _cast(x, weight, bias)
    if weight.shape[2:] == (1, 1) and (stride, padding, groups) == (1, 0, 1):  # one product of matrices, nothing copied
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    shape = Shape(tuple(x.shape[2:]), tuple(weight.shape[2:]), stride, padding, groups)
    return Product.apply("y", x, weight, bias, shape)


def conv_transpose2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0
) -> Tensor:
    """F.conv_transpose2d, likewise: x (N, C, h, w), weight (C, O, k, k), bias (O,) -> (N, O, H, W)."""
    if _transformed():
        return F.conv_transpose2d(x, weight, bias, stride, padding)
    x, weight, bias = _cast(x, weight, bias)
    kernel = tuple(weight.shape[2:])
    side = tuple((here - 1) * stride - 2 * padding + k for here, k in zip(x.shape[2:], kernel, strict=True))
    y: Tensor = Product.apply("x", x, weight, None, Shape(side, kernel, stride, padding))
    return y if bias is None else y + bias[:, None, None]


def _transformed() -> bool:
    """Whether torch's own operations are needed: by its compiler, or by torch.func, as for gradients by sample."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _cast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(kind)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


class Conv2d(nn.Conv2d):
    """nn.Conv2d by `conv2d`; square strides and paddings."""

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight, self.bias, self.stride[0], int(self.padding[0]), groups=self.groups)


class ConvTranspose2d(nn.ConvTranspose2d):
    """nn.ConvTranspose2d by `conv_transpose2d`; square strides and paddings."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return conv_transpose2d(x, self.weight, self.bias, self.stride[0], int(self.padding[0]))


FILTER = (1.0, 3.0, 3.0, 1.0)
"""The low-pass filter around each change of resolution, along each axis."""


def _filtered(x: Tensor, padding: int, gain: float = 1.0, stride: int = 1) -> Tensor:
    """`filtered` by torch's own operations, every stride-th pixel of it."""
    kernel = _kernel.__wrapped__ if _transformed() else _kernel
    taps = kernel(x.shape[1], gain, x.dtype, x.device)
    return F.conv2d(x, taps, padding=padding, stride=stride, groups=x.shape[1])


@cache
@torch.inference_mode(False)  # it outlives whatever asks first
def _kernel(channels: int, gain: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    taps = torch.tensor(FILTER, dtype=torch.float64) / sum(FILTER)
    return (taps[:, None] * taps * gain).to(device, dtype).expand(channels, 1, -1, -1)


class Filtered(torch.autograd.Function):
    """Its own transpose, but for the padding, since FILTER is the same from both ends."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, padding: int, gain: float) -> Tensor:
        ctx.padding, ctx.gain = padding, gain
        return _filtered(x, padding, gain)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return Filtered.apply(grads[0], len(FILTER) - 1 - ctx.padding, ctx.gain), None, None


class Halved(torch.autograd.Function):
    """Every other pixel of what FILTER makes of x, and nothing else is computed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.side = x.shape[2:]
        return _filtered(x, 1, stride=2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return Doubled.apply(grads[0], ctx.side)


class Doubled(torch.autograd.Function):
    """Its transpose. oneDNN's own is 15 times slower in bfloat16 than FILTER over zeros between the pixels."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, side: tuple[int, ...]) -> Tensor:
        apart = _unset(y, *y.shape[:2], side[0] - 1, side[1] - 1).zero_()
        apart[..., ::2, ::2] = y
        return _filtered(apart, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return Halved.apply(grads[0]), None


def filtered(x: Tensor, padding: int, gain: float = 1.0) -> Tensor:
    """Every channel convolved with the outer product of FILTER, which sums to gain; zeros around."""
    return _filtered(x, padding, gain) if _transformed() else Filtered.apply(x, padding, gain)


def halved(x: Tensor) -> Tensor:
    """x (N, C, H, W), filtered -> every other pixel of it, (N, C, H / 2, W / 2)."""
    return _filtered(x, 1)[..., ::2, ::2] if _transformed() else Halved.apply(x)
