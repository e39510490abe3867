"""Any tree of DICOM files with a table of labels; what is no DICOM file is left aside."""

from __future__ import annotations

import io
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image

from medgan.data.limits import Unusable
from medgan.data.shards import read_file
from medgan.data.sources.base import (
    Listing,
    Options,
    Raw,
    Record,
    Source,
    SourceError,
    limited,
    named_classes,
    relabel,
)
from medgan.data.sources.frames import MULTI_FRAME, frame_names, parted, read_frame
from medgan.data.sources.table import Table, read_table, table_in

KEYS = {"sopinstanceuid": "SOPInstanceUID", "patientid": "PatientID"}
ALLOW = (MULTI_FRAME, "colour", "burned-in")


class Header(NamedTuple):
    """The few elements that decide what becomes of a file."""

    SOPInstanceUID: str
    PatientID: str
    frames: int
    colour: bool
    burned_in: bool


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
            wanted = labels.get(getattr(header, key))
            if wanted is None:
                rejected.append((name, f"the table of labels has no row of its {key}"))
                continue
            records += [Record(each, wanted, header.PatientID) for each in frame_names(name, header.frames)]
            met.add(getattr(header, key))
        images = Counter(classes[label] for record in records for label in record.labels)
        having = {name: images[name] for name in classes}
        chosen = named_classes(having, options.classes, raw, "the table of labels")
        labelled_only = options.single_label or bool(options.classes)
        kept = [record for record in records if len(record.labels) == 1 or not options.single_label]
        kept = relabel(kept, classes, chosen, lambda record: bool(record.labels) or not labelled_only)
        absent = len(labels.keys() - met)
        notes = [f"{absent:,} rows of the table of labels have no image here"] if absent else []
        return Listing(chosen, limited(kept, options), rejected, notes)

    def read(self, raw: Raw, record: Record, options: Options) -> bytes:
        return read_frame(raw.read, record.name)

    def image(self, content: bytes) -> Image.Image:
        from medgan.data import dicom_grey, dicom_header  # their codecs load where DICOM is read, and nowhere else

        file, frame = parted(content)
        try:
            return Image.fromarray(dicom_grey.shown(dicom_header.opened(io.BytesIO(file)), frame or 0))
        except Unusable:
            raise
        except Exception as error:  # what a damaged file makes pydicom and its decoders raise may be anything
            said = " ".join(str(error).split())
            why = said if "pixel data" in said else type(error).__name__  # other words may quote the header
            raise ValueError(f"its pixels cannot be read ({why})") from None


def _header(raw: Raw, name: str) -> Header | str:
    """What the header says, or why the file cannot be used."""
    from pydicom.errors import InvalidDicomError
    from pydicom.filebase import DicomIO

    from medgan.data import dicom_header

    try:
        with raw.open(name) as stream:
            file = dicom_header.header(DicomIO(stream))  # type: ignore[arg-type]
            size = stream.seek(0, io.SEEK_END)
        patient = str(file.get("PatientID") or "").strip()
        if not patient:
            return "no patient id in its header: images are split by patient"
        if "Rows" not in file or "Columns" not in file:
            return "no pixels in it"
        palette = str(file.get("PhotometricInterpretation")).strip() == "PALETTE COLOR"
        return Header(
            SOPInstanceUID=str(file.get("SOPInstanceUID", "")).strip(),
            PatientID=patient,
            frames=dicom_header.frames_in(file, size),
            colour=palette or int(file.get("SamplesPerPixel") or 1) > 1,
            burned_in=str(file.get("BurnedInAnnotation")).strip().upper() == "YES",
        )
    except InvalidDicomError:
        return "no DICOM file"
    except Unusable as error:
        return str(error)
    except Exception as error:  # what a damaged header makes pydicom raise may be anything
        return f"its header cannot be read ({type(error).__name__})"


def _unwanted(header: Header, allow: tuple[str, ...]) -> str | None:
    """Why a file is left out unless asked for, or None."""
    if header.frames > 1 and MULTI_FRAME not in allow:
        return f"{header.frames} frames; --allow {MULTI_FRAME} takes each as an image"
    if header.colour and "colour" not in allow:
        return "a colour image; --allow colour takes it"
    if header.burned_in and "burned-in" not in allow:
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
