"""A DICOM file -> its stored values: the bytes, the bits among them that count, their sign, what of it is padding.

What a header leaves open is refused with the tag that does; nothing is guessed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.encaps import generate_fragments, get_frame
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import _get_jpg_parameters
from pydicom.uid import (
    JPEG2000,
    JPEG2000TransferSyntaxes,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
    RLELossless,
)

from medgan.data.dicom_header import Unclear, frames, kind, name_syntax, present, samples
from medgan.data.limits import check_size

AS_THEY_ARE = {"correct_unused_bits": False, "apply_j2k_sign_correction": False, "apply_jls_sign_correction": False}
"""Options of pydicom's decoders: without corrections that take a high bit or a stream's depth for granted."""
LOSSY = (JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000)
"""What they decode may lie a little beyond the range of what was coded."""
PADDING = ("PixelPaddingValue", "FloatPixelPaddingValue", "DoubleFloatPixelPaddingValue")
PADDING_LIMIT = ("PixelPaddingRangeLimit", "FloatPixelPaddingRangeLimit", "DoubleFloatPixelPaddingRangeLimit")


@dataclass(frozen=True)
class Stored:
    values: np.ndarray
    """(H, W), or (H, W, 3) of a colour image; (u)int8 to 64, or float32 or 64."""
    lowest: float
    highest: float
    """What such a file could hold at all; of floats, what this one holds."""
    padding: np.ndarray
    """bool (H, W)."""


def stored(file: pydicom.FileDataset, frame: int) -> Stored:
    """One frame's stored values (PS3.3 C.7.6.3, PS3.5 8.1 and 8.2), counted from 0.

    Raises Unclear, or ValueError of pydicom where the pixel data do not have the length that the header tells.
    """
    name_syntax(file)
    check_size(file.Columns, file.Rows, samples(file))
    if "PixelData" not in file:  # PS3.3 C.7.6.24 and C.7.6.25: floats have no bits to choose from
        values = _decoded(file, frame)
        # The most that float32 holds is what some write for infinity, or for nothing.
        finite = values[np.abs(values) < np.finfo(np.float32).max]
        if not finite.size:
            raise Unclear("FloatPixelData", "holds no finite value")
        low, high = float(finite.min()), float(finite.max())
        padding = _padding(file, values, low, high) | np.isnan(values)
        return Stored(np.where(np.isnan(values), low, values).clip(low, high), low, high, padding)
    allocated, bits, top, signed = _bits(file)
    syntax = file.file_meta.TransferSyntaxUID
    size = file.Rows * file.Columns * samples(file) * allocated / 8
    if not syntax.is_encapsulated and size and len(file.PixelData) - frames(file) * size >= max(size, 2):
        raise Unclear("NumberOfFrames", f"is {frames(file)}, and there are more")
    stream = _stream(file, frame) if syntax.is_encapsulated and syntax != RLELossless else None
    if samples(file) == 3:
        if signed:
            raise Unclear("PixelRepresentation", "is signed in a colour image")
        if (top if stream is None else stream.depth - 1) != bits - 1:
            raise Unclear("BitsStored", f"is {bits} and not what a colour is of")
        if kind(file).startswith("YBR_FULL") and bits != 8:
            raise Unclear("BitsStored", f"is {bits}: YBR_FULL is read of 8")
        values = _decoded(file, frame, bits_stored=bits, pixel_representation=0)
        return Stored(values, 0, 2**bits - 1, np.zeros(values.shape[:2], bool))
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if stream is not None:
        values = _from_stream(file, frame, stream, bits, low, high)
    else:
        cells = _decoded(file, frame, bits_stored=bits, pixel_representation=int(signed), **AS_THEY_ARE)
        cells = cells.astype(cells.dtype.newbyteorder("="), copy=False)
        if top >= bits and (cells & (2 ** (top + 1 - bits) - 1)).any() and not _overlaid(file):
            raise Unclear("HighBit", f"is {top} with {bits} bits stored, and there are bits below them")
        values = (cells << (8 * cells.itemsize - 1 - top)) >> (8 * cells.itemsize - bits)
    return Stored(values, low, high, _padding(file, values, low, high))


def _bits(file: pydicom.Dataset) -> tuple[int, int, int, bool]:
    """(allocated, stored, high bit, signed). Of stored and high bit one follows from the other (PS3.5 8.1.1)."""
    allocated, bits, top = (file.get(name) for name in ("BitsAllocated", "BitsStored", "HighBit"))
    if allocated not in (1, 8, 16, 32, 64):
        raise Unclear("BitsAllocated", f"is {allocated}: must be 1, 8, 16, 32 or 64")
    if bits is None and top is None:
        raise Unclear("BitsStored", "is missing")
    bits = top + 1 if bits is None else bits
    top = bits - 1 if top is None else top
    if not 1 <= bits <= allocated:
        raise Unclear("BitsStored", f"is {bits} of {allocated} bits allocated")
    if not bits - 1 <= top < allocated:
        raise Unclear("HighBit", f"is {top} with {bits} bits stored of {allocated} allocated")
    if file.get("PixelRepresentation") not in (0, 1):
        raise Unclear("PixelRepresentation", "is neither 0 nor 1")
    return allocated, bits, top, bool(file.PixelRepresentation) and allocated > 1


def _decoded(file: pydicom.FileDataset, frame: int, **options: object) -> np.ndarray:
    syntax, count = file.file_meta.TransferSyntaxUID, samples(file)
    if count == 3 and not syntax.is_encapsulated and file.get("PlanarConfiguration") not in (0, 1):
        raise Unclear("PlanarConfiguration", "is neither 0 nor 1")
    asked = {"photometric_interpretation": kind(file), "samples_per_pixel": count, "number_of_frames": frames(file)}
    try:
        return get_decoder(syntax).as_array(file, index=frame, **asked, **options)[0]  # type: ignore[arg-type]
    except RuntimeError:  # what the decoders said may quote anything
        raise Unclear("PixelData", f"cannot be decoded as {syntax.name}") from None


class Stream(NamedTuple):
    """What a stream of the JPEG family says of itself; but for JPEG 2000 it knows no sign."""

    depth: int
    signed: bool


def _stream(file: pydicom.FileDataset, frame: int) -> Stream:
    """Raises Unclear where it has another shape than the header tells: decoders end the process over that."""
    starts = sum(part.startswith((b"\xff\xd8", b"\xff\x4f")) for part in generate_fragments(file.PixelData))
    if starts not in (0, frames(file)):
        raise Unclear("NumberOfFrames", f"is {frames(file)}, and there are {starts}")
    long = (file.ExtendedOffsetTable, file.ExtendedOffsetTableLengths) if "ExtendedOffsetTable" in file else None
    code = get_frame(file.PixelData, frame, number_of_frames=frames(file), extended_offsets=long)
    if file.file_meta.TransferSyntaxUID in JPEG2000TransferSyntaxes:
        at = code.find(b"\xff\x4f\xff\x51") + 8  # SIZ (ISO/IEC 15444-1, A.5.1)
        if at < 8 or len(code) < at + 35:
            raise Unclear("PixelData", "has no JPEG 2000 stream")
        right, bottom, left, top = struct.unpack_from(">4L", code, at)
        columns, rows, each, depth = right - left, bottom - top, *struct.unpack_from(">HB", code, at + 32)
        stream = Stream(depth % 128 + 1, depth > 127)
    else:
        said = _get_jpg_parameters(code)
        if not said:
            raise Unclear("PixelData", "has no JPEG stream")
        columns, rows, each = said["width"], said["height"], said["components"]
        stream = Stream(said["precision"], False)
    for keyword, found in (("Rows", rows), ("Columns", columns), ("SamplesPerPixel", each)):
        if found != (file.get(keyword) or 1):
            raise Unclear(keyword, f"is {file.get(keyword)}, and its pixels are coded with {found}")
    return stream


def _from_stream(file: pydicom.FileDataset, frame: int, stream: Stream, bits: int, low: int, high: int) -> np.ndarray:
    """int64 (H, W). Raises Unclear where header and stream contradict each other and the pixels tell which is right."""
    box = next(size for size in (8, 16, 32, 64) if size >= stream.depth)
    what = {"bits_allocated": box, "bits_stored": stream.depth, "pixel_representation": int(stream.signed)}
    coded = _decoded(file, frame, **what, **AS_THEY_ARE).astype(np.int64)
    if low < 0 and not stream.signed and stream.depth < bits and (coded >> (stream.depth - 1)).any():
        raise Unclear("PixelRepresentation", f"is signed, and its pixels are coded as {stream.depth} bits without sign")
    beyond = max(int(coded.max()) - high, low - int(coded.min()))
    if file.file_meta.TransferSyntaxUID in LOSSY and beyond <= (high - low) // 8:
        return np.clip(coded, low, high)
    values = (coded - low) % 2**bits + low
    negative = (coded >> (bits - 1)) & 1 == 1
    above = coded >> bits
    if (
        not _overlaid(file)
        and ((above != 0) & ~(negative & np.isin(above, (-1, 2 ** max(stream.depth - bits, 0) - 1)))).any()
    ):
        raise Unclear("BitsStored", f"is {bits}, and its pixels are coded with {stream.depth}")
    return values


def _padding(file: pydicom.Dataset, values: np.ndarray, low: float, high: float) -> np.ndarray:
    """bool: the values from low to high that are padding, by one value or by a range (PS3.3 C.7.5.1.1.2).

    Of integers the element has 16 bits and is US or SS. A writer that takes the wrong one, or leaves out the extension
    of the sign, still means the pixels of these bits.
    """
    floats = values.dtype.kind == "f"
    first, last = (_number(file, names[1:] if floats else names[:1]) for names in (PADDING, PADDING_LIMIT))
    if first is None:
        return np.zeros(values.shape, bool)
    least, most = sorted((first, first if last is None else last))
    if not floats:
        least, most = _band(int(least), int(most), int(low), int(high))
    return (values >= least) & (values <= most)


def _number(file: pydicom.Dataset, keywords: tuple[str, ...]) -> float | None:
    """The first of these elements that has a value, in whatever VR it stands."""
    keyword = next((keyword for keyword in keywords if present(file, keyword)), None)
    if keyword is None:
        return None
    value = file[keyword].value
    if isinstance(value, bytes):
        return int.from_bytes(value[:2], "big" if file.original_encoding[1] is False else "little")
    try:
        return float(value[0] if isinstance(value, MultiValue | list) else value)
    except (TypeError, ValueError):
        raise Unclear(keyword, "is no number") from None


def _band(first: int, last: int, low: int, high: int) -> list[int]:
    """The least and the most of the pixels from `first` to `last`; the most is less where no pixel can be padding.

    Both ends are read as they stand, and what no pixel can have is cut off; or, where then both can be pixels, as US,
    as SS, or as the stored bits of a negative number. The narrowest band is meant: padding is one.
    """
    span = high - low + 1
    as_stored = [end - span if high < end < span else end for end in (first, last)]
    others = [
        [end % 2**16 for end in (first, last)],
        [(end + 2**15) % 2**16 - 2**15 for end in (first, last)],
        as_stored,
    ]
    bands = [
        [max(first, low), min(last, high)],
        *(sorted(ends) for ends in others if low <= min(ends) <= max(ends) <= high),
    ]
    return min((band for band in bands if band[0] <= band[1]), key=lambda band: band[1] - band[0], default=[1, 0])


def _overlaid(file: pydicom.Dataset) -> bool:
    """Whether bits beside those of the pixels are an overlay (60xx,0102), as it was done once."""
    return any(file.get((group, 0x0102)) for group in range(0x6000, 0x6020, 2))
