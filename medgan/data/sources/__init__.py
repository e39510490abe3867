"""One reader per data set: what lies in a raw folder -> records with labels and a patient each (see base.py)."""

from __future__ import annotations

from medgan.data import phantom, phantom_oct
from medgan.data.sources.base import Listing, Options, Raw, Record, Source, SourceError
from medgan.data.sources.dicom_folder import DicomFolder
from medgan.data.sources.drawn import Drawn
from medgan.data.sources.image_folder import ImageFolder
from medgan.data.sources.kermany import KermanyCxr, KermanyOct
from medgan.data.sources.medmnist import Medmnist
from medgan.data.sources.nih import NihCgan7, NihCxr14

__all__ = ["SOURCES", "Listing", "Options", "Raw", "Record", "Source", "SourceError"]

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
