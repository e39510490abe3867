"""Any tree of DICOM files with a table of labels; what is no DICOM file is left aside."""

from __future__ import annotations

import io
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pydicom
from PIL import Image
from pydicom.errors import InvalidDicomError
from pydicom.filebase import DicomIO
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array

from medgan.data.shards import read_file
from medgan.data.sources.base import (
    Listing,
    Options,
    Raw,
    Record,
    Source,
    SourceError,
    chosen_classes,
    limited,
    relabel,
)
from medgan.data.sources.table import Table, read_table, table_in
from medgan.pixels import windowed

# What pydicom has to say of a strange header would quote it.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
warnings.filterwarnings("ignore", module="pydicom")

KEYS = {"sopinstanceuid": "SOPInstanceUID", "patientid": "PatientID"}
ALLOW = ("multi-frame", "colour", "burned-in")
HEADER = [
    *("SOPInstanceUID", "PatientID", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BurnedInAnnotation", "Rows", "Columns"),
]
OPTIONAL = ("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept", "VOILUTSequence", "WindowCenter", "WindowWidth")
FRAME = b"medgan frame %09d\n"
"""Goes before the bytes of a file of several frames, so that each frame is an image of its own."""


class DicomFolder(Source):
    """Of the header only patient and instance are read, to find label and split; neither is stored."""

    name = "dicom_folder"
    layout = "any tree of DICOM files, and one .csv: SOPInstanceUID or PatientID, label (several joined by |)"
    takes = frozenset({"labels", "allow", "classes", "single_label"})

    def listing(self, raw: Raw, options: Options) -> Listing:
        for word in options.allow:
            if word not in ALLOW:
                raise SourceError(f"--allow {word}: must be of {', '.join(ALLOW)}")
        files = raw.files()
        key, labels, classes = _table(raw, files, options.labels)
        names = [name for name in files if not name.lower().endswith(".csv")]
        with ThreadPoolExecutor(16) as pool:
            headers = list(pool.map(lambda name: _header(raw, name), names))
        records, rejected, met = [], [], set()
        for name, header in zip(names, headers, strict=True):
            reason = header if isinstance(header, str) else _unwanted(header, options.allow)
            if reason:
                rejected.append((name, reason))
                continue
            assert not isinstance(header, str)
            wanted = labels.get(str(header.get(key, "")).strip())
            if wanted is None:
                rejected.append((name, f"the table of labels has no row of its {key}"))
                continue
            frames = _frames(header)
            each = [name] if frames == 1 else [f"{name}#frame{frame}" for frame in range(frames)]
            records += [Record(frame, wanted, str(header.PatientID).strip()) for frame in each]
            met.add(str(header.get(key)).strip())
        chosen = chosen_classes(classes, options.classes, "the table of labels")
        labelled_only = options.single_label or bool(options.classes)
        kept = [record for record in records if len(record.labels) == 1 or not options.single_label]
        kept = relabel(kept, classes, chosen, lambda record: bool(record.labels) or not labelled_only)
        absent = len(labels.keys() - met)
        notes = [f"{absent:,} rows of the table of labels have no image here"] if absent else []
        return Listing(chosen, limited(kept, options), rejected, notes)

    def read(self, raw: Raw, record: Record, options: Options) -> bytes:
        path, mark, frame = record.name.rpartition("#frame")
        if mark and frame.isdigit():
            return FRAME % int(frame) + raw.read(path)
        return raw.read(record.name)

    def image(self, content: bytes) -> Image.Image:
        frame = 0
        if content.startswith(FRAME[:13]):
            first, content = content.split(b"\n", 1)
            frame = int(first[13:])
        try:
            return Image.fromarray(shown(_open(content), frame))
        except Exception as error:  # what a damaged file makes pydicom and its decoders raise may be anything
            said = " ".join(str(error).split())
            why = said if "pixel data" in said else type(error).__name__  # other words may quote the header
            raise ValueError(f"its pixels cannot be read ({why})") from None


def _open(content: bytes) -> pydicom.Dataset:
    """A file, also one that some archives write: without the preamble, starting at group 0002 or 0008."""
    return pydicom.dcmread(io.BytesIO(content), force=content[:2] in (b"\x02\x00", b"\x08\x00"))


def shown(file: pydicom.Dataset, frame: int = 0) -> np.ndarray:
    """What a viewer shows of a DICOM image: uint8 (H, W), bright is dense, or (H, W, 3).

    Stored values go through the modality's rescale or table, then the first VOI window or table, or, where there is
    none, a window from the 0.1th to the 99.9th percentile of what is no padding; MONOCHROME1 is inverted (DICOM
    PS3.3 C.11.1, C.11.2, C.7.6.3). Raises ValueError where the pixel data do not have the length of the header.
    """
    values = pixel_array(file, index=frame if _frames(file) > 1 else None)
    for name in OPTIONAL:
        if name in file and file[name].is_empty:
            del file[name]
    kind, depth = file.PhotometricInterpretation, file.BitsStored
    if kind == "PALETTE COLOR":
        values, depth = apply_color_lut(values, file), file.RedPaletteColorLookupTableDescriptor[2]
    if values.ndim == 3:
        return windowed(values, 0, 2**depth - 1)
    stored, values = values, apply_modality_lut(values, file)
    if "VOILUTSequence" in file:
        values = apply_voi_lut(values, file)
        depth = file.VOILUTSequence[0].LUTDescriptor[2]
        grey = windowed(values, 0, 2**depth - 1)
    elif "WindowCenter" in file and "WindowWidth" in file:
        grey = _window(values, _first(file.WindowCenter), _first(file.WindowWidth), file.get("VOILUTFunction"))
    else:
        kept = values[stored != file.PixelPaddingValue] if "PixelPaddingValue" in file else values
        low, high = np.percentile(kept if kept.size else values, [0.1, 99.9])
        grey = windowed(values, low, high)
    return 255 - grey if kind == "MONOCHROME1" else grey


def _window(values: np.ndarray, center: float, width: float, function: str | None) -> np.ndarray:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, onto 0 to 255."""
    if function == "SIGMOID":
        return windowed(1 / (1 + np.exp(-4 * (values - center) / width)), 0, 1)
    if function == "LINEAR_EXACT":
        return windowed(values, center - width / 2, center + width / 2)
    return windowed(values, center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2)


def _first(value: object) -> float:
    """A header's number, or the first of several."""
    return float(value[0] if isinstance(value, pydicom.multival.MultiValue) else value)  # type: ignore[arg-type]


def _header(raw: Raw, name: str) -> pydicom.Dataset | str:
    """The few elements that decide what becomes of a file, or why it cannot be used."""
    try:
        with raw.open(name) as stream:
            bare = stream.read(2) in (b"\x02\x00", b"\x08\x00")  # no preamble, as some archives write it
            stream.seek(0)
            file = pydicom.dcmread(DicomIO(stream), stop_before_pixels=True, specific_tags=list(HEADER), force=bare)
        if not str(file.get("PatientID") or "").strip():
            return "no patient id in its header: images are split by patient"
        if "Rows" not in file or "Columns" not in file:
            return "no pixels in it"
        _frames(file), _colours(file)
    except InvalidDicomError:
        return "no DICOM file"
    except Exception as error:  # what a damaged header makes pydicom raise may be anything
        return f"its header cannot be read ({type(error).__name__})"
    return file


def _frames(header: pydicom.Dataset) -> int:
    return int(header.get("NumberOfFrames") or 1)


def _colours(header: pydicom.Dataset) -> bool:
    return int(header.get("SamplesPerPixel") or 1) > 1 or header.get("PhotometricInterpretation") == "PALETTE COLOR"


def _unwanted(header: pydicom.Dataset, allow: tuple[str, ...]) -> str | None:
    """Why a file is left out unless asked for, or None."""
    frames = _frames(header)
    if frames > 1 and "multi-frame" not in allow:
        return f"{frames} frames; --allow multi-frame takes each as an image"
    if _colours(header) and "colour" not in allow:
        return "a colour image; --allow colour takes it"
    if str(header.get("BurnedInAnnotation", "NO")).upper() == "YES" and "burned-in" not in allow:
        return "annotation burned into its pixels, which may name the patient; --allow burned-in takes it"
    return None


def _table(raw: Raw, files: list[str], named: str | None) -> tuple[str, dict[str, tuple[int, ...]], tuple[str, ...]]:
    """(element that the table goes by, labels of each of its values, classes by name) of the table of labels."""
    table = _labels(raw, files, named)
    where = table.where
    keys = [key for key in KEYS if key in table.columns]
    label = table.columns.get("label", table.columns.get("labels"))
    if not keys or label is None:
        missing = "label" if keys else "SOPInstanceUID or PatientID"
        raise SourceError(f"{where}: its first row must name the columns, and {missing} is not among them")
    place = table.columns[keys[0]]
    found: dict[str, list[str]] = {}
    lines: dict[str, int] = {}
    for number, row in table.rows:
        if len(row) <= max(place, label):
            raise SourceError(f"{where} row {number}: too few columns")
        value = row[place]
        if not value:
            raise SourceError(f"{where} row {number}: no {KEYS[keys[0]]}")
        if value in found:
            raise SourceError(f"{where} row {number}: the same {KEYS[keys[0]]} as in row {lines[value]}")
        found[value] = [part.strip() for part in row[label].split("|") if part.strip()]
        lines[value] = number
    classes = tuple(sorted({name for names in found.values() for name in names}))
    return KEYS[keys[0]], {value: tuple(sorted(map(classes.index, names))) for value, names in found.items()}, classes


def _labels(raw: Raw, files: list[str], named: str | None) -> Table:
    wanted = [*KEYS, "label", "labels"]
    if named is None:
        tables = [name for name in files if name.lower().endswith(".csv")]
        if len(tables) != 1:
            raise SourceError(f"--raw {raw.location}: {len(tables)} .csv files in it; name the labels with --labels")
        return table_in(raw, tables[0], wanted)
    folder, _, name = named.rpartition("/")
    try:
        content = read_file(folder or ".", name)
    except OSError:
        raise SourceError(f"--labels {named}: no such file") from None
    return read_table(content, f"--labels {named}", wanted)
