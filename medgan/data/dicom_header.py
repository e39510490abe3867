"""The header of a DICOM file: how it is opened, and elements that have one meaning or are refused with their tag."""

from __future__ import annotations

import re
import warnings
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import _read_command_set_elements, _read_file_meta_info, read_preamble
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medgan.data.limits import Unusable, check_inflated

# What pydicom has to say of a strange header would quote it.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
warnings.filterwarnings("ignore", module="pydicom")

HEADER = (
    *("SOPInstanceUID", "PatientID", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BurnedInAnnotation", "Rows", "Columns", "BitsAllocated"),
)
"""What decides of a file before its pixels are read."""
ITEM = 8
"""Bytes that go before each frame of a compressed file (PS3.5 A.4)."""
DEFLATES = 1032
"""To so many bytes one byte of a deflate stream can grow."""
BARE = (b"\x02\x00", b"\x08\x00", b"\x00\x08")
"""How a file without a preamble starts: with group 0002 or 0008, the last as big endian has it."""
SAMPLES = {
    **dict.fromkeys(("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"), 1),
    **dict.fromkeys(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"), 3),
}
"""Samples of a pixel by photometric interpretation; retired ones are not read."""


class Unclear(Unusable):
    """What a header says of its image has no one meaning. One line, with the tag and without text of the header."""

    def __init__(self, keyword: str, what: str) -> None:
        tag = tag_for_keyword(keyword) or 0
        super().__init__(f"its ({tag >> 16:04X},{tag & 0xFFFF:04X}) {keyword} {what}")


def opened(stream: BinaryIO, **how: Any) -> pydicom.FileDataset:
    """A file, also one without preamble, as some archives write them. Raises whatever damage makes pydicom raise."""
    bare = stream.read(2) in BARE
    stream.seek(0)
    read_preamble(stream, force=bare)
    meta = _read_file_meta_info(stream)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        _read_command_set_elements(stream)
        check_inflated(stream.read())
    stream.seek(0)
    return pydicom.dcmread(stream, force=bare, **how)


def header(stream: BinaryIO) -> pydicom.FileDataset:
    """The few elements of HEADER alone."""
    return opened(stream, stop_before_pixels=True, specific_tags=list(HEADER))


def frames(file: pydicom.Dataset) -> int:
    count = int(file.get("NumberOfFrames") or 1)
    if count < 0:
        raise Unclear("NumberOfFrames", f"is {count}")
    return count


def frames_in(file: pydicom.FileDataset, size: int) -> int:
    """`frames`, of a file of so many bytes. Raises Unclear where so many cannot be in it."""
    count = frames(file)
    if count > 1:
        syntax = getattr(file, "file_meta", {}).get("TransferSyntaxUID", ImplicitVRLittleEndian)
        coded = syntax.is_transfer_syntax and syntax.is_encapsulated
        each = ITEM if coded else int(file.Rows) * int(file.Columns) * int(file.get("BitsAllocated") or 1) / 8
        if count * each > size * (DEFLATES if syntax == DeflatedExplicitVRLittleEndian else 1):
            raise Unclear("NumberOfFrames", f"is {count}, more than the file can hold")
    return count


def kind(file: pydicom.Dataset) -> str:
    """The photometric interpretation, one of SAMPLES."""
    found = str(file.get("PhotometricInterpretation") or "").strip().upper()
    if found not in SAMPLES:
        raise Unclear("PhotometricInterpretation", "is not one that is read" if found else "is missing")
    return found


def present(holder: pydicom.Dataset, keyword: str) -> bool:
    """Whether an element is there and has a value."""
    element = holder.get_item(keyword)
    return element is not None and not (isinstance(element, DataElement) and element.is_empty) and element.value != b""


def numbers(holder: pydicom.Dataset, keyword: str) -> list[float | None]:
    """The values of a decimal string; None for one that is empty. A comma is a point, unless three
    digits follow it, which may be thousands.

    Raises Unclear where one is no finite number, or may be two.
    """
    raw = holder.get_item(keyword)
    if raw is None:
        return []
    if isinstance(raw, RawDataElement) and raw.VR in ("DS", "UN", None):  # pydicom refuses the comma
        text = (raw.value or b"").decode("latin-1")
        if re.search(r"\d,\d{3}(?!\d)", text):
            raise Unclear(keyword, "has a comma before three digits, which may part thousands or decimals")
        said = text.replace(",", ".").replace("\0", " ").split("\\")
    else:
        value = holder[keyword].value
        said = list(value) if isinstance(value, MultiValue | list) else [value]
    try:
        found = [None if one is None or not str(one).strip() else float(one) for one in said]
    except (TypeError, ValueError):
        raise Unclear(keyword, "is no number") from None
    if not all(one is None or np.isfinite(one) for one in found):
        raise Unclear(keyword, "is no finite number")
    return found


def samples(file: pydicom.Dataset) -> int:
    wanted = SAMPLES[kind(file)]
    found = file.get("SamplesPerPixel") or (1 if wanted == 1 else None)
    if found != wanted:
        raise Unclear("SamplesPerPixel", f"is {found} and does not go with its photometric interpretation")
    return wanted


def name_syntax(file: pydicom.FileDataset) -> None:
    """A file without group 0002 says by its form how it is written; only of a codec it does not say which."""
    if not hasattr(file, "file_meta"):
        file.file_meta = FileMetaDataset()
    if not file.file_meta.get("TransferSyntaxUID"):
        if "PixelData" in file and file["PixelData"].is_undefined_length:
            raise Unclear("TransferSyntaxUID", "is missing and its pixel data are compressed")
        implicit, little = file.original_encoding
        native = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        file.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else native
    try:
        get_decoder(file.file_meta.TransferSyntaxUID)
    except NotImplementedError:
        raise Unclear("TransferSyntaxUID", "names no syntax that is read") from None
