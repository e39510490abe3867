"""NIH ChestX-ray14 (Wang et al. 2017, arXiv:1705.02315): frontal chest films with fourteen findings, also several."""

from __future__ import annotations

import re

from medgan.data.sources.base import (
    Listing,
    Options,
    Raw,
    Record,
    Source,
    SourceError,
    balanced,
    chosen_classes,
    relabel,
)
from medgan.data.sources.copies import are_copies
from medgan.data.sources.raw import packed
from medgan.data.sources.table import plain, table_in

FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis"),
    *("Hernia", "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax"),
)
NOTHING = "No Finding"
"""A class where it is asked for by --classes; else films of it have none."""
LABELS = (*FINDINGS, NOTHING)
COLUMNS = ("Image Index", "Finding Labels", "Patient ID")
TABLE = re.compile(r"Data_Entry.*\.csv|sample_labels\.csv")


class NihCxr14(Source):
    """As published in 2017 and 2020, and Kaggle's sample of it. A header has commas inside brackets, so that only its
    first columns stand above their values."""

    name = "nih_cxr14"
    layout = "*.png in any folders, and Data_Entry_2017*.csv (or sample_labels.csv)"
    takes = frozenset({"classes", "single_label"})

    def listing(self, raw: Raw, options: Options) -> Listing:
        sizes = raw.sizes()
        tables = sorted(name for name in sizes if TABLE.fullmatch(name.rpartition("/")[2]))
        if not tables or not are_copies(dict.fromkeys(tables[1:], tables[0]), sizes, raw):
            seen = f"{len(tables)} of them" if tables else f"none{packed(sizes)}"
            raise SourceError(f"--raw {raw.location}: expected one Data_Entry_2017*.csv in it, found {seen}")
        images: dict[str, str] = {}
        again: dict[str, str] = {}
        for name in sizes:
            file = name.rpartition("/")[2]
            if file.lower().endswith(".png") and images.setdefault(file, name) != name:
                again[name] = images[file]
        if not are_copies(again, sizes, raw):
            raise SourceError(f"--raw {raw.location}: one film is in two folders, with other bytes; leave one")
        records, missing = self._rows(raw, tables[0], images)
        extra = len(images) - len(records)
        classes = chosen_classes(LABELS, options.classes or FINDINGS, "ChestX-ray14")
        if options.single_label:
            records = [record for record in records if len(record.labels) == 1]
        labelled_only = options.single_label or bool(options.classes)
        kept = relabel(records, LABELS, classes, lambda record: bool(record.labels) or not labelled_only)
        notes = [f"{missing:,} films of the table have no image here"] if missing else []
        notes += [f"{extra:,} images are not in the table, and were left out"] if extra else []
        notes += [f"{len(again):,} films are there twice, with the same bytes, and were taken once"] if again else []
        return Listing(classes, balanced(kept, options), (), notes)

    def _rows(self, raw: Raw, table: str, images: dict[str, str]) -> tuple[list[Record], int]:
        """The films of the table whose images are there, in the table's order, and how many are not."""
        found = table_in(raw, table, [plain(column) for column in COLUMNS])
        for column in COLUMNS:
            if plain(column) not in found.columns:
                raise SourceError(f"{table}: no column {column!r}")
        places = [found.columns[plain(column)] for column in COLUMNS]
        records: list[Record] = []
        listed: dict[str, int] = {}
        missing = 0
        for number, row in found.rows:
            if len(row) <= max(places):
                raise SourceError(f"{table} row {number}: {len(row)} columns, too few")
            name, text, patient = (row[place] for place in places)
            if not patient:
                raise SourceError(f"{table} row {number}: no {COLUMNS[2]}")
            if name in listed:
                raise SourceError(f"{table} row {number}: the same film as in row {listed[name]}")
            listed[name] = number
            findings = text.split("|")
            for finding in findings:
                if finding not in LABELS:
                    raise SourceError(f"{table} row {number}: an unknown label")
            if name not in images:
                missing += 1
                continue
            records.append(Record(images[name], tuple(sorted(map(LABELS.index, findings))), patient))
        return records, missing


class NihCgan7(NihCxr14):
    """The seven findings and 1,501 single-label films of the conditional GAN project that medgan grew from."""

    name = "nih_cgan_7"
    takes = frozenset()
    findings = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumothorax")
    count = 1501

    def listing(self, raw: Raw, options: Options) -> Listing:
        wanted = Options(options.seed, options.limit or self.count, self.findings, single_label=True)
        return super().listing(raw, wanted)
