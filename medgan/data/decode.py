"""An encoded image file -> the picture that it shows, 8 bits a channel.

Pillow reads what has 8 bits. TIFF goes to tifffile, and PNG, JPEG and JPEG 2000 of other depths to imagecodecs: Pillow
drops bits, signs and byte orders of those, or opens none. Gamma and colour profiles are left aside.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
from collections.abc import Callable
from typing import IO

import imagecodecs
import numpy as np
from PIL import ExifTags, Image, ImageOps

from medgan.data import tiff
from medgan.data.limits import RAISE, Unusable, check_size, most_pixels
from medgan.pixels import windowed

# Of metadata that nobody reads here, and of damage that an error tells, too.
warnings.filterwarnings("ignore", module="PIL")
logging.getLogger("PIL").setLevel(logging.CRITICAL)

FORMATS = ("PNG", "JPEG", "JPEG2000", "TIFF", "BMP", "GIF", "WEBP")
"""The only formats that Pillow may recognise, whatever a file is called: for EPS it would run Ghostscript."""
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
JPEG, CODESTREAM = b"\xff\xd8\xff", b"\xff\x4f\xff\x51"
END_OF_IMAGE = b"\xff\xd9"
START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""JPEG's markers that tell depth and shape (ITU-T T.81, table B.1)."""


def open_image(data: bytes, frame: int | None = None) -> Image.Image:
    """The picture of an encoded file, turned as its orientation says, with 8 bits per channel.

    frame: which of several; a file of one needs none. Unsigned values of up to 8 bits are spread over 0 to 255. All
    else is windowed, the colours of a file alike, so that nothing is cut off because of where its values lie. What is
    transparent is black, as on a light box. Raises ValueError, with the reason, where there is no picture to show.
    """
    try:
        with np.errstate(invalid="ignore"):  # of the bits of some NaN
            return _tiff(data, frame) if data.startswith(TIFF) else _other(data, frame)
    except Unusable:
        raise
    except Exception as error:  # a damaged file makes readers raise anything
        raise ValueError(f"not a readable image ({type(error).__name__})") from None


def frames(file: IO[bytes]) -> int:
    """How many pictures an encoded file holds; 1 where that cannot be told, for `open_image` says why."""
    try:
        start = file.read(4)
        file.seek(0)
        if start in TIFF:
            return len(tiff.pages(file))
        with Image.open(file, formats=FORMATS) as image:
            return _count(image)
    except Exception:  # as above
        return 1


def shown(values: np.ndarray, alpha: np.ndarray | None = None) -> np.ndarray:
    """Samples (H, W) or (H, W, 3), and opacity (H, W) from 0 to 1 -> uint8 of the same shape: values times opacity.

    uint8 stays; other types are windowed by their values that are finite and not wholly transparent. Raises Unusable
    where there are none.
    """
    if alpha is not None:
        if not alpha.any():
            raise Unusable("wholly transparent: its alpha channel is 0 everywhere")
        alpha = alpha if values.ndim == 2 else alpha[..., None]
    if values.dtype != np.uint8:
        if alpha is not None:
            values = np.where(alpha > 0, values.astype(np.float64), np.nan)
        finite = values[np.isfinite(values)]
        if not finite.size:
            raise Unusable("no finite value in it")
        if max(-float(finite.min()), float(finite.max())) > 1e307:
            raise Unusable("values beyond 1e307, which no window spans: make them NaN if they mean none")
        values = windowed(values)
    return values if alpha is None else np.round(values * alpha).astype(np.uint8)


def _tiff(data: bytes, frame: int | None) -> Image.Image:
    pages = tiff.pages(io.BytesIO(data))
    page = pages[_which(len(pages), frame)]
    check_size(page.imagewidth, page.imagelength, page.samplesperpixel)
    if page.photometric in tiff.COLOURS:
        return _turned(shown(*tiff.samples(page)), page.tags.valueof("Orientation", 1))
    if page.photometric not in tiff.BY_PILLOW or page.bitspersample != 8:
        raise Unusable(
            f"{page.bitspersample} bits of photometric interpretation {page.photometric}: make it grey or RGB"
        )
    with Image.open(io.BytesIO(data), formats=FORMATS) as file:
        file.seek(page.index)
        return ImageOps.exif_transpose(file)


def _other(data: bytes, frame: int | None) -> Image.Image:
    if data.startswith(JPEG) and _jpeg_depth(data) != 8:
        return Image.fromarray(shown(*_parted(imagecodecs.jpeg_decode(data))))
    try:
        file = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise Unusable(f"more than {most_pixels():,} pixels: {RAISE}") from None
    with file:
        check_size(*file.size, len(file.getbands()))
        if file.format == "JPEG2000":  # its boxes may tell another size than what is decoded
            check_size(*_coded_size(data))
        count = _count(file)
        file.seek(_which(count, frame))
        orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
        decode = _deep(file.format, data)
        if decode:
            if count > 1:
                raise Unusable("an animated PNG of other than 8 bits: make its frames files")
            return _turned(shown(*_parted(decode(data))), orientation)
        file.load()
        if file.has_transparency_data:
            image = file.convert("LA" if file.mode in ("1", "L", "LA") else "RGBA")
            return _turned(shown(*_parted(np.asarray(image))), orientation)
        if file.mode.startswith(("I", "F")):
            return _turned(shown(np.asarray(file)), orientation)
        return ImageOps.exif_transpose(file)


def _which(count: int, frame: int | None) -> int:
    if frame is None and count > 1:
        raise Unusable(f"{count} frames; --allow multi-frame takes each as an image")
    return frame or 0


def _count(file: Image.Image) -> int:
    """A photograph's second picture (MPO) is a preview of the first, or the view of the other eye."""
    return 1 if file.format == "MPO" else getattr(file, "n_frames", 1)


def _turned(pixels: np.ndarray, orientation: int) -> Image.Image:
    image = Image.fromarray(pixels)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(image)


def _parted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Decoded (H, W) or (H, W, 1 to 4) -> colours and, where the channels are two or four, opacity."""
    if values.ndim == 2:
        return values, None
    colours = values[..., : {1: 1, 2: 1, 3: 3, 4: 3}[values.shape[2]]]
    alpha = values[..., -1] / np.iinfo(values.dtype).max if values.shape[2] in (2, 4) else None
    return colours[..., 0] if colours.shape[2] == 1 else colours, alpha


def _deep(form: str | None, data: bytes) -> Callable[[bytes], np.ndarray] | None:
    """What reads a PNG of other than 8 bits, or JPEG 2000 of more or signed ones; None where Pillow reads rightly."""
    if form == "PNG" and data[24] != 8:
        return imagecodecs.png_decode
    if form == "JPEG2000" and (depth := data[data.index(CODESTREAM) + 42]) != 7:  # bits less one, and 128 if signed
        if depth < 7:
            raise Unusable(f"JPEG 2000 of {depth + 1} bits: make it 8")  # of which Pillow makes white too dark
        return imagecodecs.jpeg2k_decode
    return None


def _coded_size(data: bytes) -> tuple[int, int, int]:
    """Width, height and channels of a JPEG 2000 stream (ISO/IEC 15444-1, A.5.1)."""
    right, bottom, left, top = struct.unpack_from(">4L", data, data.index(CODESTREAM) + 8)
    return right - left, bottom - top, struct.unpack_from(">H", data, data.index(CODESTREAM) + 40)[0]


def _jpeg_depth(data: bytes) -> int:
    """Bits per sample. Raises ValueError where they are not 8, and pixels too many or cut off."""
    place = 2
    while place + 9 < len(data):
        if data[place + 1] == 0xFF:  # a fill byte before a marker (ITU-T T.81, B.1.1.2)
            place += 1
            continue
        mark, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        if mark in START_OF_FRAME:
            depth, height, width = struct.unpack_from(">BHH", data, place + 4)
            if depth != 8:
                check_size(width, height, data[place + 9])
                if data.find(END_OF_IMAGE, place) < 0:
                    raise ValueError("cut short")  # which libjpeg fills with grey
            return depth
        place += 2 + length
    return 8
