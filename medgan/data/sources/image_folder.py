"""Any folder of images with a folder per class, with or without a folder per split above."""

from __future__ import annotations

import io
import re
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from medgan.data.decode import frames, open_image
from medgan.data.shards import filesystem
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
from medgan.data.sources.frames import MULTI_FRAME, frame_names, parted, read_frame

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".jp2", ".j2k")
SEVERAL = (".tif", ".tiff", ".gif", ".webp", ".png")
"""Of these a file may hold several images."""


class ImageFolder(Source):
    name = "image_folder"
    layout = "CLASS/*.png, *.jpg, ..., SPLIT/CLASS/*.png (train, val, test), or images alone without labels"
    takes = frozenset({"allow", "classes", "patient_regex"})

    def listing(self, raw: Raw, options: Options) -> Listing:
        for word in options.allow:
            if word != MULTI_FRAME:
                raise SourceError(f"--allow {word}: must be {MULTI_FRAME}")
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
        counts = _counts(raw, [path for _, _, path in found]) if options.allow else {}
        records = []
        for split, folder, path in found:
            match = pattern.search(path) if pattern else None
            patient = (match.group(1) if match.re.groups else match.group()) if match else None
            if pattern and not patient:
                rejected.append((path, f"--patient-regex {options.patient_regex} finds no patient in it"))
                continue
            labels = (names.index(folder),) if folder else ()
            names_of = frame_names(path, counts.get(path, 1))
            records += [Record(name, labels, patient or path, split) for name in names_of]
        classes = chosen_classes(names, options.classes, raw.location)
        kept = relabel(records, names, classes, lambda record: bool(record.labels) or not names)
        notes = [] if names else ["no class folders: the images have no labels"]
        notes += [] if pattern else ["every file counts as a patient of its own; --patient-regex says who is who"]
        return Listing(classes, limited(kept, options), rejected, notes)

    def read(self, raw: Raw, record: Record, options: Options) -> bytes:
        return read_frame(raw.read, record.name)

    def image(self, content: bytes) -> Image.Image:
        return open_image(*parted(content))

    @staticmethod
    def _pattern(text: str | None) -> re.Pattern[str] | None:
        try:
            return re.compile(text) if text else None
        except re.error as error:
            raise SourceError(f"--patient-regex {text}: not a regular expression ({error})") from None


def _counts(raw: Raw, paths: list[str]) -> dict[str, int]:
    """How many images the files hold that may hold several, by path."""
    fs, root = filesystem(raw.location)

    def count(path: str) -> int:
        try:
            with fs.open_input_file(f"{root}/{path}") as file:
                return frames(io.BufferedReader(file))
        except OSError:  # whoever reads the image says why
            return 1

    several = [path for path in paths if path.lower().endswith(SEVERAL)]
    with ThreadPoolExecutor(16) as pool:
        return dict(zip(several, pool.map(count, several), strict=True))
