"""What a source is: a reader of one published layout, from a raw folder to records with labels and a patient each.

A source lists its records in a fixed order and reads one record's bytes; nothing else knows its layout. A new one is
a small file beside this one, an entry in SOURCES and a test.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from medgan.data.decode import open_image
from medgan.data.sources.raw import Raw, SourceError
from medgan.names import doubtful

__all__ = ["Listing", "Options", "Raw", "Record", "Source", "SourceError"]


@dataclass(frozen=True)
class Record:
    """One image of a data set, not yet read."""

    name: str
    """Where it is, as the source understands it: mostly a path below the raw folder."""
    labels: tuple[int, ...]
    """Indices into the listing's classes; several, one or none."""
    patient: str
    """The data set's own patient id; it stays within the preparing job and is stored nowhere."""
    split: str | None = None
    """The published split: train, val or test; None where there is none."""


@dataclass(frozen=True)
class Listing:
    """All that a source found in a raw folder."""

    classes: tuple[str, ...]
    records: Sequence[Record]
    rejected: Sequence[tuple[str, str]] = ()
    """(name, reason) of what is listed and cannot be used."""
    notes: Sequence[str] = ()
    """What a person should know: dropped classes, patients that are guessed."""


def _option(default: object, help: str, metavar: str | None = None) -> Any:
    return field(default=default, metadata={"help": help, "metavar": metavar})


@dataclass(frozen=True)
class Options:
    """What a person may ask of a source, each field a flag of jobs/prepare.py. Each source says which it takes."""

    seed: int = _option(0, "seed of the split, of --limit and of drawn images (default 0)")
    limit: int | None = _option(None, "use this many images (drawn sources: draw as many)")
    classes: tuple[str, ...] = _option((), "keep these classes, in this order (a comma in a name: \\,)", "A,B,...")
    single_label: bool = _option(False, "keep images of exactly one label")
    pneumonia_kinds: bool = _option(False, "bacterial and viral pneumonia apart")
    patient_regex: str | None = _option(
        None, "what in a file's path names its patient: the first group, or all that matches", "REGEX"
    )
    patients_unknown: bool = _option(False, "take each image whose patient is not known as a patient of its own")
    multi_label: bool = _option(False, "a file that lies in several class folders has all their labels")
    labels: str | None = _option(
        None, "table of labels: columns SOPInstanceUID or PatientID, and label (several joined by |)", "FILE.csv"
    )
    allow: tuple[str, ...] = _option(
        (), "take files that are rejected else: multi-frame (every frame); of DICOM colour, burned-in, too", "WHAT,..."
    )


class Source(ABC):
    name: str
    layout: str
    """In a few words, for people: what is expected in the raw folder."""
    takes: frozenset[str] = frozenset()
    """The fields of Options that mean something here, besides seed and limit."""
    split: Literal["ratio", "published"] = "ratio"
    """How its images are split where nobody says."""
    needs_raw = True
    mirror = False
    """Whether a mirrored image is still one of its kind."""

    def fetch(self, name: str) -> str:
        """Download a data set by its name; returns the raw folder. Raises SourceError."""
        raise SourceError(f"--download {name}: --source {self.name} downloads nothing; name its folder with --raw")

    @abstractmethod
    def listing(self, raw: Raw, options: Options) -> Listing:
        """Every record in a fixed order. Raises SourceError where the folder is not this data set."""

    def read(self, raw: Raw, record: Record, options: Options) -> bytes:
        """The bytes that make one image what it is. Raises OSError where they cannot be read."""
        return raw.read(record.name)

    def image(self, content: bytes) -> Image.Image:
        """Those bytes, decoded. Raises ValueError where they are no image."""
        return open_image(content)


def limited(records: Sequence[Record], options: Options) -> list[Record]:
    """At most options.limit records, patient by patient in a seeded order (of the last one not all); the given order is
    kept."""
    drawn = sorted(range(len(records)), key=lambda i: _rank(options.seed, records[i].patient))[: options.limit]
    return [records[index] for index in sorted(drawn)]


def balanced(records: Sequence[Record], options: Options) -> list[Record]:
    """At most options.limit records, class by class in turn and seeded; having no label is a class too."""
    if options.limit is None or options.limit >= len(records):
        return list(records)
    waiting: dict[int, list[int]] = defaultdict(list)
    for index in sorted(range(len(records)), key=lambda i: _rank(options.seed, records[i].name), reverse=True):
        for label in records[index].labels or (-1,):
            waiting[label].append(index)
    chosen: set[int] = set()
    while len(chosen) < options.limit:
        for label in sorted(waiting):
            while waiting[label] and waiting[label][-1] in chosen:
                waiting[label].pop()
            if waiting[label] and len(chosen) < options.limit:
                chosen.add(waiting[label].pop())
    return [records[index] for index in sorted(chosen)]


def chosen_classes(
    found: Sequence[str], wanted: Sequence[str], where: str, *, persons: bool = False
) -> tuple[str, ...]:
    """The wanted classes, or all. Raises SourceError for one that is not there or named twice. persons: whether those
    that are there may be names of persons, which are not quoted."""
    if len(set(wanted)) < len(wanted):
        raise SourceError(f"--classes {','.join(wanted)}: one of them is named twice")
    for name in wanted:
        if name not in found:
            there = f"{len(found)} others" if persons else ", ".join(found)
            raise SourceError(f"--classes {name}: {where} has {there}")
    return tuple(wanted or found)


def named_classes(found: Mapping[str, int], wanted: Sequence[str], raw: Raw, where: str) -> tuple[str, ...]:
    """`chosen_classes`, of names that somebody called folders or wrote into a table. found: images of each, by name.

    Raises SourceError, too, where nobody says which are classes and they may be patients.
    """
    doubt = doubtful(found)
    if doubt and not wanted:
        raise SourceError(
            f"--raw {raw.location}: {doubt}: patients or series, perhaps; name the classes with --classes A,B (of "
            "patients' folders, their classes' folders above them), for their names are written into all that is made"
        )
    return chosen_classes(tuple(found), wanted, where, persons=doubt is not None)


def relabel(
    records: Iterable[Record], old: Sequence[str], new: Sequence[str], keep: Callable[[Record], bool]
) -> list[Record]:
    """Records with labels as indices into `new`, without labels that are not in it; then those that `keep` accepts."""
    place = {old.index(name): index for index, name in enumerate(new)}
    changed = [
        Record(r.name, tuple(sorted(place[label] for label in r.labels if label in place)), r.patient, r.split)
        for r in records
    ]
    return [record for record in changed if keep(record)]


def _rank(seed: int, what: str) -> bytes:
    return hashlib.sha256(f"{seed}/limit/{what}".encode()).digest()
