"""Differentiable augmentation of what D sees, and the controller of its strength.

Every image has its own draws, uniform numbers that the step takes from the stream of the whole global batch, so that
neither the world nor the strength changes them. Each transformation acts where the image's draw for it is below the
strength p; at p < 1 the images as they are stay the most frequent, so that G is not drawn to the transformed ones
(Karras et al. 2020, arXiv:2006.06676, 2.2).

Sampling at other places has no second derivative in PyTorch: penalties are taken with respect to augmented images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from medgan.config import KINDS, Augment

DRAWS = 4
"""Draws of an image for each transformation: whether, and up to three that say how."""
GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601)."""


def augment(images: Tensor, draws: Tensor, p: float, kinds: Sequence[str], padding: str = "reflection") -> Tensor:
    """images: (N, C, R, R) in [-1, 1]; draws: (N, len(KINDS), DRAWS) uniform in [0, 1); p: the strength.

    kinds: those of config.KINDS to use; padding: what lies outside an image, reflection or zeros (mid-grey). Returns
    (N, C, R, R), which may leave [-1, 1]; differentiable once with respect to images.
    """
    if p <= 0 or not kinds:
        return images
    of = {kind: draws[:, KINDS.index(kind)].to(images.dtype) for kind in kinds}
    turned = _geometry(images, of, p, padding)
    return _cutout(_colour(turned, of, p), of, p)


def _on(draw: Tensor, p: float) -> Tensor:
    """(N, DRAWS) -> 1 where the transformation acts on the image, else 0: (N,)."""
    return (draw[:, 0] < p).to(draw.dtype)


def _normal(uniform: Tensor) -> Tensor:
    """Uniform numbers -> standard normal ones, at most 2.5 from 0."""
    return (math.sqrt(2) * torch.erfinv(uniform * 2 - 1)).clamp(-2.5, 2.5)


def _geometry(images: Tensor, of: dict[str, Tensor], p: float, padding: str) -> Tensor:
    """Flips of half the images, whole-pixel shifts up to 1/8, scales, stretches 2^N(0, 0.2), turns up to 10 degrees."""
    if not of.keys() & {"flip", "shift", "scale", "rotate", "stretch"}:
        return images
    count, side = len(images), images.shape[-1]
    across, down = images.new_ones(count), images.new_ones(count)
    angle, right, below = images.new_zeros(3, count)
    if "flip" in of:
        across = 1 - 2 * _on(of["flip"], p) * (of["flip"][:, 1] < 0.5)
    if "scale" in of:
        scale = torch.exp2(0.2 * _normal(of["scale"][:, 1]) * _on(of["scale"], p))
        across, down = across * scale, down * scale
    if "stretch" in of:
        stretch = torch.exp2(0.2 * _normal(of["stretch"][:, 1]) * _on(of["stretch"], p))
        across, down = across * stretch, down / stretch
    if "rotate" in of:
        angle = (of["rotate"][:, 1] * 2 - 1) * math.radians(10) * _on(of["rotate"], p)
    if "shift" in of:
        most = side // 8
        pixels = (of["shift"][:, 1:3] * (2 * most + 1)).floor() - most
        right, below = (pixels * (2 / side) * _on(of["shift"], p)[:, None]).unbind(1)
    # From a place in the result to its place in the image, in half sides from the middle.
    cos, sin = angle.cos(), angle.sin()
    rows = [torch.stack([cos / across, sin / across, -right], 1), torch.stack([-sin / down, cos / down, -below], 1)]
    places = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, places, padding_mode=padding, align_corners=False)


def _colour(images: Tensor, of: dict[str, Tensor], p: float) -> Tensor:
    """Brightness + N(0, 0.2), contrast * 2^N(0, 0.5), saturation * 2^N(0, 1), hue turned by any angle."""

    def each(values: Tensor) -> Tensor:
        return values[:, None, None, None]

    if "brightness" in of:
        images = images + each(0.2 * _normal(of["brightness"][:, 1]) * _on(of["brightness"], p))
    if "contrast" in of:
        images = images * each(torch.exp2(0.5 * _normal(of["contrast"][:, 1]) * _on(of["contrast"], p)))
    if of.keys() & {"saturation", "hue"}:
        grey = (images * images.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)
        if "saturation" in of:
            factor = torch.exp2(_normal(of["saturation"][:, 1]) * _on(of["saturation"], p))
            images = grey + (images - grey) * each(factor)
        if "hue" in of:  # turned about the axis of grey (Rodrigues' formula)
            angle = each((of["hue"][:, 1] * 2 - 1) * math.pi * _on(of["hue"], p))
            middle = images.mean(1, keepdim=True)
            crossed = (images.roll(1, 1) - images.roll(-1, 1)) / math.sqrt(3)
            images = middle + (images - middle) * angle.cos() + crossed * angle.sin()
    return images


def _cutout(images: Tensor, of: dict[str, Tensor], p: float) -> Tensor:
    """A square of half the side, anywhere, becomes 0."""
    if "cutout" not in of:
        return images
    side = images.shape[-1]
    place = torch.arange(side, device=images.device) + 0.5
    x, y = ((of["cutout"][:, axis] * side)[:, None] for axis in (1, 2))
    out_x, out_y = (place - x).abs() < side / 4, (place - y).abs() < side / 4
    out = out_y[:, :, None] & out_x[:, None, :] & (_on(of["cutout"], p) > 0)[:, None, None]
    return images.masked_fill(out[:, None], 0)


@dataclass
class Strength:
    """p, and what ADA's controller has seen since it last changed it (arXiv:2006.06676, 3.1)."""

    p: float = 0.0
    signs: float = 0.0
    steps: int = 0

    EVERY = 4
    """Steps between two changes."""

    def of(self, config: Augment, images_seen: int) -> float:
        """The strength in the step that starts at images_seen."""
        if config.name == "diffaugment":
            return 1.0
        if config.name == "ramp":
            return config.p * min(1.0, images_seen / (config.kimg * 1000))
        return self.p

    def follow(self, sign: float, config: Augment, global_batch: int) -> None:
        """Count a step whose mean sign of D's logits at real images this is.

        Every few of them p grows where their mean is above the target and shrinks where it is below.
        """
        self.signs, self.steps = self.signs + sign, self.steps + 1
        if self.steps == self.EVERY:
            change = self.steps * global_batch / (config.kimg * 1000)
            above = self.signs / self.steps - config.target
            self.p = min(max(self.p + math.copysign(change, above), 0.0), config.p_max)
            self.signs, self.steps = 0.0, 0
