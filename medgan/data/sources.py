"""One reader per data set: what lies in a raw folder -> records with labels and a patient each.

A source lists its records in a fixed order and reads one record's bytes; nothing else knows its layout.
A new source is a class with these two methods and an entry in SOURCES.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from medgan.config import Refused
from medgan.data import phantom, phantom_oct
from medgan.pixels import encode_png


@dataclass(frozen=True)
class Record:
    """One image of a data set, not yet read."""

    name: str
    """Where it is, as the source understands it: a path below the raw folder, or the number of a drawn image."""
    labels: tuple[int, ...]
    """Indices into the source's classes."""
    patient: str
    """The data set's own patient id; it stays within the preparing job and is stored nowhere."""


class SourceError(Refused):
    """A raw folder that is not what the source expects. One line: what was found, what is expected."""


class Source(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def needs_raw(self) -> bool: ...

    def records(self, raw: Path | None, seed: int, limit: int | None) -> Iterator[Record]:
        """Every record in a fixed order. Raises SourceError where the folder is not this data set."""

    def read(self, raw: Path | None, seed: int, record: Record) -> bytes:
        """The bytes of one image file. Raises OSError where it cannot be read."""


@dataclass(frozen=True)
class Phantom:
    """Drawn images; needs no raw folder. limit: how many, default 6,000."""

    name: str
    classes: tuple[str, ...]
    draw: Callable[[int, int, int, int], np.ndarray]
    """(seed, patient, number, label) -> uint8 (H, W)."""
    needs_raw = False
    default_count = 6000

    def records(self, raw: Path | None, seed: int, limit: int | None) -> Iterator[Record]:
        left, patient = limit or self.default_count, 0
        while left:
            label, images = phantom.patient_films(seed, patient, len(self.classes))
            for number in range(min(images, left)):
                yield Record(f"{patient}/{number}", (label,), str(patient))
            left -= min(images, left)
            patient += 1

    def read(self, raw: Path | None, seed: int, record: Record) -> bytes:
        patient, number = map(int, record.name.split("/"))
        return encode_png(self.draw(seed, patient, number, record.labels[0])[None])


class KermanyCxr:
    """Kermany et al. 2018, chest X-rays of children, doi:10.17632/rscbjbr9sj: {train,test,val}/{NORMAL,PNEUMONIA}/.

    The published splits are pooled, since its val has 16 films and patients matter more: medgan splits by patient.
    Patients: `personN_bacteria` and `personN_virus` (a bare `personN` recurs for different people), `IM-NNNN` and
    `NORMAL2-IM-NNNN` (two separate series).
    """

    name = "kermany_cxr"
    classes = ("NORMAL", "PNEUMONIA")
    needs_raw = True
    splits = ("train", "test", "val")
    patient_of = (
        re.compile(r"(person\d+_(?:bacteria|virus))_\d+"),
        re.compile(r"((?:NORMAL2-)?IM-\d+)-\d+"),
    )

    def records(self, raw: Path | None, seed: int, limit: int | None) -> Iterator[Record]:
        assert raw is not None
        folders = [raw / split for split in self.splits if (raw / split).is_dir()]
        if not folders:
            nested = next((path.parent for path in sorted(raw.glob("*/train")) if path.is_dir()), None)
            hint = f"; did you mean --raw {nested}?" if nested else ""
            raise SourceError(f"--raw {raw}: expected {{train,test,val}}/{{NORMAL,PNEUMONIA}}/ in it{hint}")
        found: list[Record] = []
        for folder in folders:
            for class_folder in sorted(path for path in folder.iterdir() if _visible(path)):
                if not class_folder.is_dir():
                    raise SourceError(f"--raw {class_folder}: a file where class folders are expected")
                if class_folder.name not in self.classes:
                    raise SourceError(f"--raw {class_folder}: unknown class, expected {' or '.join(self.classes)}")
                label = self.classes.index(class_folder.name)
                for path in sorted(path for path in class_folder.iterdir() if _visible(path)):
                    found.append(Record(str(path.relative_to(raw)), (label,), self.patient(path.name)))
        # A limit takes whole patients' films in a seeded order, so that every class is among them.
        drawn = sorted(found, key=lambda r: hashlib.sha256(f"{seed}/limit/{r.patient}".encode()).digest())[:limit]
        yield from sorted(drawn, key=lambda record: (record.name.split("/"),))

    def patient(self, file_name: str) -> str:
        """The patient key of a published file name; a file named otherwise is a patient of its own."""
        for pattern in self.patient_of:
            match = pattern.match(file_name)
            if match:
                return match.group(1)
        return file_name

    def read(self, raw: Path | None, seed: int, record: Record) -> bytes:
        assert raw is not None
        return (raw / record.name).read_bytes()


def _visible(path: Path) -> bool:
    return not path.name.startswith((".", "__MACOSX")) and path.name not in ("Thumbs.db", "desktop.ini")


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Phantom("phantom_cxr", phantom.CLASSES, phantom.chest_film),
        Phantom("phantom_oct", phantom_oct.CLASSES, phantom_oct.oct_scan),
        KermanyCxr(),
    )
}
