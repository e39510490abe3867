"""Any folder of images with a folder per class, with or without a folder per split above or below (see layout.py)."""

from __future__ import annotations

import re

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
from medgan.data.sources.layout import any_layout


class ImageFolder(Source):
    name = "image_folder"
    layout = "CLASS/*.png, *.jpg, ..., SPLIT/CLASS/*.png (train, val, test), or images alone without labels"
    takes = frozenset({"classes", "patient_regex", "patients_unknown", "multi_label"})

    def listing(self, raw: Raw, options: Options) -> Listing:
        pattern = self._pattern(options.patient_regex)
        layout = any_layout(raw, self.layout, options.classes)
        names = tuple(sorted({folder for _, folder, _ in layout.found} - {""}))
        records, rejected, unknown = [], list(layout.rejected), 0
        for split, folder, path in layout.found:
            match = pattern.search(path) if pattern else None
            patient = (match.group(1) if match.re.groups else match.group()) if match else None
            if pattern and not patient and not options.patients_unknown:
                rejected.append((path, f"--patient-regex {options.patient_regex} finds no patient in it"))
                continue
            unknown += not patient
            labels = (names.index(folder),) if folder else ()
            records.append(Record(path, labels, patient or path, split))
        classes = chosen_classes(names, options.classes, raw.location)
        kept = relabel(records, names, classes, lambda record: bool(record.labels) or not names)
        notes = [] if names else ["no class folders: the images have no labels"]
        notes += [*layout.notes, *self._unknown(unknown, options)]
        return Listing(classes, limited(kept, options), rejected, notes)

    @staticmethod
    def _unknown(count: int, options: Options) -> list[str]:
        if not count:
            return []
        if options.patients_unknown:
            return [f"{count:,} images without a patient: each counts as one, as asked for"]
        return [
            "no patient is known: every file counts as a patient of its own, so that one person's images may be in "
            "several splits; --patient-regex says who is who, --patients-unknown that nobody knows"
        ]

    @staticmethod
    def _pattern(text: str | None) -> re.Pattern[str] | None:
        try:
            return re.compile(text) if text else None
        except re.error as error:
            raise SourceError(f"--patient-regex {text}: not a regular expression ({error})") from None
