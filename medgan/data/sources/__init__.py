"""One reader per data set: what lies in a raw folder -> records with labels and a patient each (see base.py)."""

from __future__ import annotations

import numpy as np

from medgan.data import phantom, phantom_oct
from medgan.data.limits import limit_pixels
from medgan.data.sources.base import Listing, Options, Raw, Record, Source, SourceError
from medgan.data.sources.dicom_folder import DicomFolder
from medgan.data.sources.drawn import Drawn
from medgan.data.sources.image_folder import ImageFolder
from medgan.data.sources.kermany import KermanyCxr, KermanyOct
from medgan.data.sources.medmnist import Medmnist
from medgan.data.sources.nih import NihCgan7, NihCxr14
from medgan.pixels import Fit, fit_image

__all__ = ["SOURCES", "Listing", "Options", "Raw", "Record", "Source", "SourceError", "fitted"]

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Drawn("phantom_cxr", phantom.CLASSES, phantom.chest_film, mirror=False),
        Drawn("phantom_oct", phantom_oct.CLASSES, phantom_oct.oct_scan, mirror=True),
        KermanyCxr(),
        KermanyOct(),
        NihCxr14(),
        NihCgan7(),
        Medmnist(),
        ImageFolder(),
        DicomFolder(),
    )
}


def fitted(
    source: str, content: bytes, resolution: int, channels: int, fit: Fit, most: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """What a source read of one image -> uint8 (channels, resolution, resolution), and its width and height before.

    Raises ValueError where it is no image, or has more than `most` pixels.
    """
    limit_pixels(most)
    image = SOURCES[source].image(content)
    return fit_image(image, resolution, channels, fit), image.size
