"""Any folder of images with a folder per class, with or without a folder per split above or below (see layout.py)."""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from medgan.data.decode import frames, open_image
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
from medgan.data.sources.layout import any_layout

SEVERAL = (".tif", ".tiff", ".gif", ".webp", ".png")
"""Of these a file may hold several images."""


class ImageFolder(Source):
    name = "image_folder"
    layout = "CLASS/*.png, *.jpg, ..., SPLIT/CLASS/*.png (train, val, test), or images alone without labels"
    takes = frozenset({"allow", "classes", "patient_regex", "patients_unknown", "multi_label"})

    def listing(self, raw: Raw, options: Options) -> Listing:
        for word in options.allow:
            if word != MULTI_FRAME:
                raise SourceError(f"--allow {word}: must be {MULTI_FRAME}")
        pattern = self._pattern(options.patient_regex)
        layout = any_layout(raw, self.layout, options.classes)
        names = tuple(sorted({folder for _, folder, _ in layout.found} - {""}))
        counts = _counts(raw, [path for _, _, path in layout.found]) if options.allow else {}
        records, rejected, unknown = [], list(layout.rejected), 0
        for split, folder, path in layout.found:
            match = pattern.search(path) if pattern else None
            patient = (match.group(1) if match.re.groups else match.group()) if match else None
            if pattern and not patient and not options.patients_unknown:
                rejected.append((path, f"--patient-regex {options.patient_regex} finds no patient in it"))
                continue
            unknown += not patient
            labels = (names.index(folder),) if folder else ()
            names_of = frame_names(path, counts.get(path, 1))
            records += [Record(name, labels, patient or path, split) for name in names_of]
        images = Counter(folder for _, folder, _ in layout.found)
        classes = named_classes({name: images[name] for name in names}, options.classes, raw, raw.location)
        kept = relabel(records, names, classes, lambda record: bool(record.labels) or not names)
        notes = [] if names else ["no class folders: the images have no labels"]
        notes += [*layout.notes, *self._unknown(unknown, options)]
        return Listing(classes, limited(kept, options), rejected, notes)

    def read(self, raw: Raw, record: Record, options: Options) -> bytes:
        return read_frame(raw.read, record.name)

    def image(self, content: bytes) -> Image.Image:
        return open_image(*parted(content))

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


def _counts(raw: Raw, paths: list[str]) -> dict[str, int]:
    """How many images the files hold that may hold several, by path."""

    def count(path: str) -> int:
        try:
            with raw.open(path) as file:
                return frames(file)
        except (OSError, ValueError):  # whoever reads the image says why
            return 1

    several = [path for path in paths if path.lower().endswith(SEVERAL)]
    with ThreadPoolExecutor(16) as pool:
        return dict(zip(several, pool.map(count, several), strict=True))
