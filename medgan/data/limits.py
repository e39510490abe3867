"""Limits on what an image file may ask for, checked by its header before memory is allocated."""

from __future__ import annotations

import zlib

from PIL import Image

MOST_PIXELS = 2**27
"""The largest films have a quarter of it: 5625 x 4096 of mammography."""
BYTES_A_PIXEL = 16
"""More than any pixel has."""
CHUNK = 2**20
RAISE = "--max-pixels takes more, if it is no bomb"


class Unusable(ValueError):
    """A file that can be read, and shows nothing that can be used. The message says why."""


def limit_pixels(most: int) -> None:
    """Refuse images of more pixels from now on in this process. Each channel's pixels count."""
    Image.MAX_IMAGE_PIXELS = most // 2  # Pillow refuses what has more than twice that


def most_pixels() -> int:
    return 2 * (Image.MAX_IMAGE_PIXELS or 0)


def check_size(width: int, height: int, channels: int = 1) -> None:
    """Raises Unusable for more pixels than are allowed."""
    if width * height * channels > most_pixels():
        each = "" if channels == 1 else f" x {channels}"
        raise Unusable(f"{width} x {height}{each} pixels, more than {most_pixels():,}: {RAISE}")


def check_inflated(data: bytes) -> None:
    """Raises Unusable where a raw deflate stream inflates to more bytes than any allowed image. A damaged stream is
    left to its reader."""
    most = BYTES_A_PIXEL * most_pixels()
    inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while data and not inflate.eof:
        try:
            size += len(inflate.decompress(data, CHUNK))
        except zlib.error:
            return
        data = inflate.unconsumed_tail
        if size > most:
            raise Unusable(f"inflates to more than {most:,} bytes: {RAISE}")


limit_pixels(MOST_PIXELS)
