"""Pictures -> stored pixels, pixels <-> images, and grids.

`pixels` are uint8 (N, C, R, R) as stored in shards; `images` are float in [-1, 1], the same shape, as models see them.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

if TYPE_CHECKING:  # only to be named: whoever prepares films or asks for --help need not wait for it
    import torch
    from torch import Tensor

Fit = Literal["crop", "pad", "squash"]


def windowed(values: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Grey values of any range -> uint8 of the same shape: low and below are 0, high and above 255, linear between.

    None: the 0.1th and the 99.9th percentile of the finite values, of which there is one at least. Where low is high,
    only what lies above it is white. NaN is 0.
    """
    values = values.astype(np.float64)
    if low is None or high is None:
        ends = np.percentile(values[np.isfinite(values)], [0.1, 99.9])
        low, high = ends[0] if low is None else low, ends[1] if high is None else high
    with np.errstate(over="ignore"):  # infinity is what is meant
        scaled = (values - low) / (high - low if high > low else 1e-12) * 255
    eight: np.ndarray = np.clip(np.round(np.nan_to_num(scaled, nan=0.0)), 0, 255).astype(np.uint8)
    return eight


def fit_image(image: Image.Image, resolution: int, channels: int, fit: Fit = "crop") -> np.ndarray:
    """A decoded image -> uint8 (channels, resolution, resolution).

    fit: crop the centre square, pad to a square with black, or squash. Resizing is antialiased: averages of whole
    pixels down to four times the resolution, then Lanczos; within 2 grey levels of Lanczos alone, and five times as
    fast on films of 1000 pixels.
    """
    image = image.convert("L" if channels == 1 else "RGB")
    width, height = image.size
    size, box = (resolution, resolution), (0.0, 0.0, float(width), float(height))
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    elif fit == "pad":
        scale = resolution / max(width, height)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=4.0)
    if fit == "pad":
        sheet = Image.new(image.mode, (resolution, resolution))
        sheet.paste(image, (round((resolution - size[0]) / 2), round((resolution - size[1]) / 2)))
        image = sheet
    array = np.asarray(image)
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def encode_png(pixels: np.ndarray, comment: str = "") -> bytes:
    """uint8 (1 or 3, H, W) -> the bytes of a PNG file. comment: its text of that name, if any."""
    array = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    buffer, notes = io.BytesIO(), PngInfo()
    if comment:
        notes.add_text("Comment", comment)
    Image.fromarray(array).save(buffer, "png", pnginfo=notes)
    return buffer.getvalue()


def to_images(pixels: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """uint8 (N, C, R, R) -> images in [-1, 1] of the given dtype, float32 if none is, same device."""
    converted = pixels.float() if dtype is None else pixels.to(dtype)
    return converted.div_(127.5).sub_(1.0)


def to_pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1] -> uint8 pixels, rounded; what lies outside is clipped."""
    return images.detach().float().add(1.0).mul(127.5).round().clamp(0, 255).byte()


def grid(pixels: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """uint8 (N, C, R, R) -> one picture uint8 (C, H, W), row by row, with a grey gap between tiles.

    Raises ValueError where N is no multiple of columns.
    """
    count, channels, height, width = pixels.shape
    if count % columns:
        raise ValueError(f"{count} tiles do not fill rows of {columns}")
    rows = count // columns
    sheet = np.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 96, np.uint8)
    for index, tile in enumerate(pixels):
        top, left = gap + index // columns * (height + gap), gap + index % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = tile
    return sheet
