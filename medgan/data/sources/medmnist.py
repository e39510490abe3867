"""MedMNIST v2 (Yang et al. 2023, doi:10.1038/s41597-022-01721-8): any of its two-dimensional sets, as its npz file."""

from __future__ import annotations

import hashlib
import importlib
import io
import math
import zipfile
from functools import lru_cache

import numpy as np
from PIL import Image

from medgan.data import cache
from medgan.data.sources.base import Listing, Options, Raw, Record, Source, SourceError, limited
from medgan.data.sources.raw import most_unpacked

SPLITS = ("train", "val", "test")
CLASSES = {
    "pneumoniamnist": ("normal", "pneumonia"),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "breastmnist": ("malignant", "normal, benign"),
}
"""Names of the classes of the sets that this project is about; others are numbered."""


class Medmnist(Source):
    """Official splits are kept; images that are in two of them leave train. No patients are published: every image is
    its own."""

    name = "medmnist"
    layout = "one NAME.npz of a two-dimensional set; or --download NAME, NAME_64, ..."
    split = "published"

    def fetch(self, name: str) -> str:
        """Downloaded into the node cache by the package, which checks the published MD5."""
        kind, _, size = name.partition("_")
        try:
            info = importlib.import_module("medmnist").INFO
        except ImportError:
            raise SourceError(f"--download {name}: needs the medmnist package: pip install medmnist") from None
        sizes = [text for text in ("", "28", "64", "128", "224") if not text or f"MD5_{text}" in info.get(kind, {})]
        if kind not in info or size not in sizes:
            raise SourceError(
                f"--download {name}: no MedMNIST set; give one such as pneumoniamnist or pneumoniamnist_64"
            )
        folder = cache.place("medmnist", name)
        dataset = getattr(importlib.import_module("medmnist"), info[kind]["python_class"])
        try:
            dataset(split="test", root=str(folder), size=int(size or 28), download=True)
        except (OSError, RuntimeError) as error:
            raise SourceError(f"--download {name}: failed ({' '.join(str(error).split())[:200]})") from None
        return str(folder)

    def listing(self, raw: Raw, options: Options) -> Listing:
        tables = [name for name in raw.files() if name.endswith(".npz")]
        if len(tables) != 1:
            raise SourceError(f"--raw {raw.location}: expected {self.layout}, found {len(tables)}")
        images, labels = _arrays(raw, tables[0])
        kind = tables[0].rpartition("/")[2].removesuffix(".npz").partition("_")[0]
        multi = max(found.shape[1] for found in labels.values()) > 1
        count = labels["train"].shape[1] if multi else 1 + max(int(found.max()) for found in labels.values())
        classes = CLASSES.get(kind, tuple(str(index) for index in range(count)))
        elsewhere = {_digest(image) for split in ("val", "test") for image in images[split]}
        records, copies = [], 0
        for split in SPLITS:
            for row, (image, hot) in enumerate(zip(images[split], labels[split], strict=True)):
                if split == "train" and _digest(image) in elsewhere:
                    copies += 1
                    continue
                found = tuple(np.flatnonzero(hot).tolist()) if multi else (int(hot[0]),)
                name = f"{tables[0]}/{split}/{row}"
                records.append(Record(name, found, name, split))
        notes = ["no patients are published: every image counts as one"]
        if copies:
            notes.append(f"{copies} images of train are in val or test too, and were left out")
        return Listing(classes, limited(records, options), (), notes)

    def read(self, raw: Raw, record: Record, options: Options) -> bytes:
        table, split, row = record.name.rsplit("/", 2)
        image = _arrays(raw, table)[0][split][int(row)]
        channels = image.shape[2] if image.ndim == 3 else 1
        return b"%d %d %d " % (*image.shape[:2], channels) + image.tobytes()

    def image(self, content: bytes) -> Image.Image:
        height, width, channels, rest = content.split(b" ", 3)
        shape = (int(height), int(width), 3) if int(channels) == 3 else (int(height), int(width))
        return Image.fromarray(np.frombuffer(rest, np.uint8).reshape(shape))


@lru_cache(maxsize=1)
def _arrays(raw: Raw, table: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    try:
        content = raw.read(table)
        _check_sizes(content)
        with np.load(io.BytesIO(content)) as file:
            images = {split: file[f"{split}_images"] for split in SPLITS}
            labels = {split: file[f"{split}_labels"].reshape(len(images[split]), -1) for split in SPLITS}
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise SourceError(f"{table}: not a MedMNIST file ({type(error).__name__}: {error})") from None
    for split, array in images.items():
        if array.dtype != np.uint8 or not (array.ndim == 3 or (array.ndim == 4 and array.shape[3] == 3)):
            raise SourceError(f"{table}: {split}_images is {array.dtype} {array.shape}, expected a two-dimensional set")
    return images, labels


def _check_sizes(content: bytes) -> None:
    """Raises ValueError for an array that is not as large as its header says, or too large once unpacked."""
    most = most_unpacked(len(content))
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        for info in file.infolist():
            with file.open(info) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(member)
                if math.prod(shape) * dtype.itemsize + member.tell() != info.file_size or info.file_size > most:
                    raise ValueError(f"{info.filename} has {info.file_size:,} bytes for an array {shape} of {dtype}")


def _digest(image: np.ndarray) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()
