"""Pages of a TIFF file and their samples (TIFF 6.0, Adobe 1992; BigTIFF), grey, RGB or of a palette."""

from __future__ import annotations

import logging
import math
from typing import IO, cast

import numpy as np
from tifffile import PHOTOMETRIC, TiffFile, TiffPage

from medgan.data.limits import Unusable, check_size

logging.getLogger("tifffile").disabled = True  # its warnings quote what a file says of itself

GREY = (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK)
COLOURS: dict[int, int] = {**dict.fromkeys(GREY, 1), PHOTOMETRIC.PALETTE: 1, PHOTOMETRIC.RGB: 3}
"""Samples that make a colour, by photometric interpretation; further ones are alpha or unspecified."""
BY_PILLOW = (PHOTOMETRIC.SEPARATED, PHOTOMETRIC.YCBCR)
ASSOCIATED, UNASSOCIATED = 1, 2
"""ExtraSamples: opacity that the colours are multiplied by already, or are not."""


def pages(file: IO[bytes]) -> list[TiffPage]:
    """The pages that are images of their own: not a small version of another page (NewSubfileType), nor its mask."""
    found = TiffFile(file)
    if (found.is_imagej or found.is_shaped) and any(series.is_truncated for series in found.series):
        raise Unusable("a stack whose images have one page for them all: make each a page")  # ImageJ, above 4 GB
    # By number: to iterate never ends where the chain of pages is a ring.
    every = [cast(TiffPage, found.pages[index]) for index in range(len(found.pages))]
    return [page for page in every if not (page.is_reduced or page.is_mask)] or every


def samples(page: TiffPage) -> tuple[np.ndarray, np.ndarray | None]:
    """The samples of a page, as (H, W) or (H, W, 3), and its opacity (H, W) from 0 to 1 if it has any.

    Unsigned samples of up to 8 bits come as uint8 over its whole range, others as they are, but turned over where 0 is
    white. Raises Unusable for what is no picture, and whatever tifffile raises for a damaged file.
    """
    colours, bits, extra = COLOURS[page.photometric], page.bitspersample, page.extrasamples
    if colours == 3 and page.samplesperpixel == 4 and not extra:
        extra = (UNASSOCIATED,)  # OpenCV does not name it
    opacity = next((kind for kind in extra if kind in (ASSOCIATED, UNASSOCIATED)), None)
    if page.samplesperpixel > colours + 1 or (colours == 1 < page.samplesperpixel and not opacity):
        raise Unusable(f"{page.samplesperpixel} values per pixel, not all of known meaning: make it grey or RGB")
    stored = _stored(page)
    values, alpha = stored[..., :colours], None
    if opacity:
        last = stored[..., colours]
        alpha = np.nan_to_num(last / (1 if last.dtype.kind == "f" else 2**bits - 1)).clip(0, 1)
        alpha = alpha > 0 if opacity == ASSOCIATED else alpha
    values = values[..., 0] if colours == 1 else values
    if page.photometric == PHOTOMETRIC.PALETTE:
        values = _looked_up(values, page.colormap)
    elif values.dtype.kind in "bu" and bits <= 8:
        values = np.round(values * (255 / (2**bits - 1))).astype(np.uint8)
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        values = 255 - values if values.dtype == np.uint8 else -values.astype(np.float64)
    return values, alpha


def _stored(page: TiffPage) -> np.ndarray:
    """(H, W, samples) as they lie in the file."""
    if page.dtype is None or page.dtype.kind not in "buif":
        raise Unusable(
            f"samples of {page.bitspersample} bits in sample format {page.sampleformat}: make them 8, 16 or 32"
        )
    if page.imagedepth > 1:
        raise Unusable(f"a volume of {page.imagedepth} slices in one page: make each a page")
    check_size(math.prod(page.chunks), 1)
    ends = [start + size for start, size in zip(page.dataoffsets, page.databytecounts, strict=True)]
    if len(ends) < math.prod(page.chunked) or 0 in page.databytecounts or max(ends) > page.parent.filehandle.size:
        raise ValueError("strips or tiles that are missing")
    planes = page.asarray(squeeze=False, maxworkers=1)[:, 0]
    return planes[0] if len(planes) == 1 else np.moveaxis(planes[..., 0], 0, -1)


def _looked_up(index: np.ndarray, colormap: np.ndarray | None) -> np.ndarray:
    """Colours (H, W, 3) uint8 of a table (3, entries) uint16, which some writers fill with values up to 255."""
    if colormap is None:
        raise Unusable("places in a palette that it does not hold")
    table = colormap if colormap.max() < 256 else colormap >> 8
    return np.moveaxis(np.take(table.astype(np.uint8), index, axis=1), 0, -1)
