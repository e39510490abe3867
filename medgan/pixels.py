"""Image files -> stored pixels, pixels <-> images, and grids.

`pixels` are uint8 (N, C, R, R) as stored in shards; `images` are float in [-1, 1], the same shape, as models see them.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

if TYPE_CHECKING:  # only to be named: whoever prepares films or asks for --help need not wait for it
    import torch
    from torch import Tensor

Fit = Literal["crop", "pad", "squash"]


def open_image(data: bytes) -> Image.Image:
    """An encoded image file, decoded, turned as its EXIF says, with 8 bits per channel.

    More bits are brought to 8 by a window from the 0.1th to the 99.9th percentile, so that nothing is cut off because
    of where its values lie. Raises ValueError where the bytes are no image.
    """
    try:
        with Image.open(io.BytesIO(data)) as file:
            deep = any(";16" in str(tile) for tile in file.tile)
            file.load()
            image = ImageOps.exif_transpose(file)
    except Exception as error:  # a damaged file makes Pillow's readers raise anything
        raise ValueError(f"not a readable image ({type(error).__name__})") from None
    if deep and image.mode not in ("I;16", "I", "F"):
        raise ValueError("16 bits per channel in colour, of which Pillow reads 8: make it grey, or 8 bits by a window")
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(windowed(np.asarray(image)))
    return image


def windowed(values: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Grey values of any range -> uint8 of the same shape: low and below are 0, high and above 255, linear between.

    None: the 0.1th and the 99.9th percentile of the values.
    """
    bottom = float(np.percentile(values, 0.1)) if low is None else low
    top = float(np.percentile(values, 99.9)) if high is None else high
    scaled = (values.astype(np.float64) - bottom) / max(top - bottom, 1e-12)
    eight: np.ndarray = np.clip(np.round(scaled * 255), 0, 255).astype(np.uint8)
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
