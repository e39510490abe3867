"""Any folder of images with a folder per class, with or without a folder per split above."""

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

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")


class ImageFolder(Source):
    name = "image_folder"
    layout = "CLASS/*.png, *.jpg, ..., SPLIT/CLASS/*.png (train, val, test), or images alone without labels"
    takes = frozenset({"classes", "patient_regex"})

    def listing(self, raw: Raw, options: Options) -> Listing:
        pattern = self._pattern(options.patient_regex)
        files = [name.split("/") for name in raw.files()]
        split_above = any(len(parts) > 2 and parts[0].lower() in SPLITS for parts in files)
        depth = 1 if split_above else 0
        if not split_above and files and all(len(parts) == 1 for parts in files):
            files, depth = [["", *parts] for parts in files], 0  # one folder of images without classes
        found, rejected = [], []
        for parts in files:
            path = "/".join(filter(None, parts))
            if len(parts) < depth + 2 or (split_above and parts[0].lower() not in SPLITS):
                rejected.append((path, "not in a class folder"))
            elif not path.lower().endswith(IMAGES):
                rejected.append((path, f"not one of {' '.join(IMAGES)}"))
            else:
                found.append((SPLITS[parts[0].lower()] if split_above else None, parts[depth], path))
        if not found:
            raise SourceError(f"--raw {raw.location}: expected {self.layout}")
        names = tuple(sorted({folder for _, folder, _ in found} - {""}))
        records = []
        for split, folder, path in found:
            match = pattern.search(path) if pattern else None
            patient = (match.group(1) if match.re.groups else match.group()) if match else None
            if pattern and not patient:
                rejected.append((path, f"--patient-regex {options.patient_regex} finds no patient in it"))
                continue
            labels = (names.index(folder),) if folder else ()
            records.append(Record(path, labels, patient or path, split))
        classes = chosen_classes(names, options.classes, raw.location)
        kept = relabel(records, names, classes, lambda record: bool(record.labels) or not names)
        notes = [] if names else ["no class folders: the images have no labels"]
        notes += [] if pattern else ["every file counts as a patient of its own; --patient-regex says who is who"]
        return Listing(classes, limited(kept, options), rejected, notes)

    @staticmethod
    def _pattern(text: str | None) -> re.Pattern[str] | None:
        try:
            return re.compile(text) if text else None
        except re.error as error:
            raise SourceError(f"--patient-regex {text}: not a regular expression ({error})") from None
