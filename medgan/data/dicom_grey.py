"""Stored values of a DICOM image -> what a viewer shows: modality, window, polarity, palette (PS3.3 C.11, C.7.6.3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pydicom
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import XRayAngiographicImageStorage, XRayRadiofluoroscopicImageStorage

from medgan.data.dicom_header import Unclear, kind, numbers, present
from medgan.data.dicom_stored import Stored, stored
from medgan.pixels import windowed

ANGIOGRAPHY = (
    XRayAngiographicImageStorage,
    XRayRadiofluoroscopicImageStorage,
    "1.2.840.10008.5.1.4.1.1.12.3",  # biplane, retired
)
RESCALE = ("RescaleSlope", "RescaleIntercept")
WINDOW = ("WindowCenter", "WindowWidth")
FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
COLOURS = ("Red", "Green", "Blue")
SHAPES = {"IDENTITY": "MONOCHROME2", "INVERSE": "MONOCHROME1"}
"""The photometric interpretation that goes with each Presentation LUT Shape (PS3.3 C.8.11.3.1.2)."""


def shown(file: pydicom.FileDataset, frame: int = 0) -> np.ndarray:
    """What a viewer shows of one frame: uint8 (H, W), or (H, W, 3) of a colour image.

    Stored values go through the modality's table or rescale, then the first VOI table, else the first window, else a
    window from the 0.1th to the 99.9th percentile of what is no padding. MONOCHROME1 is inverted. What a functional
    group of the frame says goes before what all frames share and what stands outside (PS3.3 C.7.6.16). Real world
    values are for measuring and change nothing here. Raises Unclear naming the tag; see `stored` for more.
    """
    photometric = kind(file)
    pixels = stored(file, frame)
    if photometric == "PALETTE COLOR":
        return _coloured(file, pixels)
    if pixels.values.ndim == 3:
        return windowed(pixels.values, pixels.lowest, pixels.highest)
    _no_colours_besides(file)
    voi = _holder(file, frame, "FrameVOILUTSequence", ("VOILUTSequence", *WINDOW))
    window = _window(voi)
    values, lowest, highest = _modality(file, frame, pixels, measured=window is not None or _has_table(voi))
    if _has_table(voi):
        table = Table.of(voi.VOILUTSequence[0], "LUT", file, lowest, highest)
        grey = windowed(table.look_up(values), 0, table.full)
    elif window is not None:
        grey = _through(values, *window, _function(voi))
    else:
        some = pixels.padding.any() and not pixels.padding.all()
        low, high = np.percentile(values[~pixels.padding] if some else values, [0.1, 99.9])
        grey = windowed(values, low, high)
    return 255 - grey if _inverted(file, photometric) else grey


@dataclass(frozen=True)
class Table:
    """A lookup table (PS3.3 C.11.1.1, C.11.2.1.1, C.7.6.3.1.5)."""

    entries: np.ndarray
    """uint16 (N,)."""
    first: int
    """The input of the first entry; what lies below takes it too, what lies above the last takes that."""
    bits: int
    """Of an entry, as the descriptor says."""

    @classmethod
    def of(cls, item: pydicom.Dataset, name: str, file: pydicom.Dataset, lowest: float, highest: float) -> Table:
        """Table `name` of an item, for inputs from lowest to highest.

        Writers take US for SS and the other way round. Of the two readings of the first input, that one is meant whose
        entries lie where the inputs are.
        """
        described = item.get(f"{name}Descriptor")
        if not isinstance(described, MultiValue | list) or len(described) != 3:
            raise Unclear(f"{name}Descriptor", "is not three numbers")
        count, first, bits = (int(number) for number in described)
        entries = _entries(item, name, count % 65536 or 65536, bits, file)

        def met(start: int) -> float:
            return min(start + len(entries), highest + 1) - max(start, lowest)

        return cls(entries, max((first, first - 65536 if first > 0 else first + 65536), key=met), bits)

    def look_up(self, values: np.ndarray) -> np.ndarray:
        place = np.clip(np.rint(values.astype(np.float64)) - self.first, 0, len(self.entries) - 1)
        return self.entries[place.astype(np.intp)]

    @property
    def full(self) -> int:
        """What is shown as white: the most that an entry's bits hold.

        Of many a table of 8, 10 or 12 bits the descriptor says 16, and of some fewer than they have. Then the bits are
        those of the highest entry, if it nearly fills them.
        """
        top = int(self.entries.max())
        needed = top.bit_length()
        fills = top >= 0.98 * (2**needed - 1)
        if needed > self.bits and not fills:
            raise Unclear("LUTDescriptor", f"says {self.bits} bits, and the highest entry is {top}")
        fewer = self.bits == 16 and needed in (8, 10, 12) and fills
        return 2 ** (needed if needed > self.bits or fewer else self.bits) - 1


def _entries(item: pydicom.Dataset, name: str, count: int, bits: int, file: pydicom.Dataset) -> np.ndarray:
    """uint16 (count,). Tables of 8 bits stand as bytes or as words, whatever the descriptor says."""
    data = item.get(f"{name}Data")
    little = file.original_encoding[1] is not False
    if isinstance(data, bytes):
        words = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little else ">u2").astype(np.uint16)
    else:
        words = np.atleast_1d(np.array([] if data is None else data, np.int64)).astype(np.uint16)
    if len(words) >= count:
        return words[:count]
    packed = words.astype("<u2").view(np.uint8)  # the first entry is the low byte (PS3.5 8.1.1)
    if len(packed) in (count, count + 1):
        return packed[:count].astype(np.uint16)
    raise Unclear(f"{name}Data", f"has {len(words)} words for {count} entries of {bits} bits")


def _holder(file: pydicom.Dataset, frame: int, macro: str, keywords: tuple[str, ...]) -> pydicom.Dataset:
    """Where the elements of a macro stand for a frame: in its own group, in the shared one, or outside of both."""

    def places() -> Iterator[pydicom.Dataset]:
        for groups, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
            items = file.get(groups) or []
            if items and index >= len(items):
                raise Unclear(groups, f"has {len(items)} items, none for frame {frame + 1}")
            if items:
                yield from items[index].get(macro) or []

    return next((place for place in places() if any(present(place, name) for name in keywords)), file)


def _modality(file: pydicom.Dataset, frame: int, pixels: Stored, *, measured: bool) -> tuple[np.ndarray, float, float]:
    """(values in the modality's units, least and most they can be). measured: a window or table counts in these units.

    PS3.3 C.11.1: a table goes before a rescale; slope 1 and intercept 0 where one is missing. The table of an
    angiography leads back to the beam's intensity and is not for display (C.8.7.1.1.2).
    """
    if present(file, "ModalityLUTSequence") and file.get("SOPClassUID") not in ANGIOGRAPHY:
        table = Table.of(file.ModalityLUTSequence[0], "LUT", file, pixels.lowest, pixels.highest)
        return table.look_up(pixels.values), 0, 65535
    holder = _holder(file, frame, "PixelValueTransformationSequence", RESCALE)
    slope, intercept = (
        next((one for one in numbers(holder, name) if one is not None), default)
        for name, default in zip(RESCALE, (1.0, 0.0), strict=True)
    )
    if slope == 0:
        if measured:
            raise Unclear("RescaleSlope", "is 0, and its window is in units that it does not tell")
        slope = 1.0
    if (slope, intercept) == (1, 0):
        return pixels.values, pixels.lowest, pixels.highest
    low, high = sorted((pixels.lowest * slope + intercept, pixels.highest * slope + intercept))
    return pixels.values.astype(np.float64) * slope + intercept, low, high


def _window(voi: pydicom.Dataset) -> tuple[float, float] | None:
    """The first (center, width) that is one; a width of 0 is written where there is none."""
    pairs = zip(*(numbers(voi, name) for name in WINDOW), strict=False)
    for center, width in pairs:
        if center is None or not width:
            continue
        if width < 0:
            raise Unclear("WindowWidth", f"is {width:g}")
        return center, width
    return None


def _has_table(voi: pydicom.Dataset) -> bool:
    """Some writers leave an item without anything in it."""
    return bool(voi.get("VOILUTSequence") and len(voi.VOILUTSequence[0]))


def _function(voi: pydicom.Dataset) -> str:
    function = str(voi.get("VOILUTFunction") or "LINEAR").strip().upper()
    if function not in FUNCTIONS:
        raise Unclear("VOILUTFunction", f"is none of {', '.join(FUNCTIONS)}")
    return function


def _through(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, onto 0 to 255. LINEAR has no width below 1; LINEAR_EXACT is meant then."""
    if function == "SIGMOID":
        return windowed(0.5 + 0.5 * np.tanh(2 * (values.astype(np.float64) - center) / width), 0, 1)
    if function == "LINEAR" and width >= 1:
        center, width = center - 0.5, width - 1
    return windowed(values, center - width / 2, center + width / 2)


def _inverted(file: pydicom.Dataset, photometric: str) -> bool:
    """MONOCHROME1 and a Presentation LUT Shape of INVERSE say the same, once."""
    if file.get("PresentationLUTSequence"):
        raise Unclear("PresentationLUTSequence", "is of a presentation state and not of an image")
    shape = str(file.get("PresentationLUTShape") or "").strip().upper()
    if shape and SHAPES.get(shape) != photometric:
        raise Unclear("PresentationLUTShape", f"contradicts {photometric}")
    return photometric == "MONOCHROME1"


def _no_colours_besides(file: pydicom.Dataset) -> None:
    """Some grey images colour a part of their values by a supplemental palette (PS3.3 C.8.16.2.1.1.1)."""
    if str(file.get("PixelPresentation") or "").strip() in ("COLOR", "MIXED"):
        raise Unclear("PixelPresentation", "wants colour in a grey image")


def _coloured(file: pydicom.Dataset, pixels: Stored) -> np.ndarray:
    """PS3.3 C.7.6.3.1.5 and C.7.9.2 (segments)."""
    if present(file, "SegmentedRedPaletteColorLookupTableData"):
        count, first, bits = file.RedPaletteColorLookupTableDescriptor
        every = apply_color_lut(np.arange(first, first + (count or 65536)), file)
        tables = [Table(every[:, channel].astype(np.uint16), first, bits) for channel in range(3)]
    else:
        names = [f"{colour}PaletteColorLookupTable" for colour in COLOURS]
        tables = [Table.of(file, name, file, pixels.lowest, pixels.highest) for name in names]
    for colour, table in zip(COLOURS, tables, strict=True):
        if table.bits not in (8, 16) or table.entries.max() >= 2**table.bits:
            most = int(table.entries.max())
            why = f"says {table.bits} bits, where 8 and 16 are allowed, and the highest entry is {most}"
            raise Unclear(f"{colour}PaletteColorLookupTableDescriptor", why)
    deep = tables[0].bits > 8 and max(table.entries.max() for table in tables) > 255
    return windowed(np.stack([table.look_up(pixels.values) for table in tables], -1), 0, 65535 if deep else 255)
