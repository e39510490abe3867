"""The data folder: Parquet schema, manifest, patient-disjoint split, keyed ids, checksums.

    DATA/manifest.json  rejected.parquet  summary.html  train/00000.parquet ...  val/...  test/...

Shards hold pixels at training resolution, so reading is a copy and not a decode. They are plain Parquet: pyarrow,
pandas, DuckDB, Ray Data and `datasets` open them as they are.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import importlib.metadata
import io
import json
import os
import platform
import re
import secrets
import stat
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

import medgan
from medgan.config import RESOLUTIONS, Refused
from medgan.locations import check_secrets
from medgan.names import one_line, wrong_with

SCHEMA_VERSION = 1
SPLITS = {"train": 0.8, "val": 0.1, "test": 0.1}
PARTS = ".parts"
"""Below a folder that is being written: what is known of its finished parts."""
SMALL_STRATUM = 100
OURS = re.compile(
    r"((train|val|test)/\d{5}\.parquet|png/[^/]+/\d{6,}\.png|dicom/[^/]+/\d{6,}\.dcm"
    r"|\.lease/[^/]+|\.parts/(request|(train|val|test)-\d{5}\.parquet\.json|[0-9a-f]{32}\.(json|npz))"
    r"|manifest\.json|rejected\.parquet|summary\.html|evaluation\.json|report\.html|README\.md)(\.[0-9a-f]{8}\.tmp)?"
)


LARGEST = 2**34
"""Bytes of a file that is read whole, checkpoints the largest of them; what comes from others may be endless."""
UNFINISHED = re.compile(r"\.[0-9a-f]{8}\.tmp$")
"""How a file's name ends that is being written, or whose writer was killed."""


class DataError(Refused):
    """A data folder that cannot be used. One line: which file, what is wrong, what to do."""


class SchemaError(ValueError):
    """A manifest of another schema; its one argument is which."""


# A manifest may come from anybody: what is read is checked against these.
Count = Annotated[int, Field(ge=0, le=2**40)]
SplitName = Annotated[str, Field(pattern="^(train|val|test)$")]
Word = Annotated[str, Field(max_length=1000)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
STRICT = ConfigDict(extra="forbid", strict=True)


def fault(error: ValidationError) -> str:
    """The first of what is wrong: the field and why."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


@dataclass(frozen=True)
class Shard:
    """One Parquet file: path below DATA, rows, bytes, SHA-256 of the file in hex."""

    __pydantic_config__ = STRICT

    path: Annotated[str, Field(pattern=r"^(train|val|test)/\d{5}\.parquet$")]
    rows: Count
    bytes: Count
    sha256: Sha256


@dataclass(frozen=True)
class Manifest:
    """What a data folder holds; manifest.json is this, as JSON with sorted keys."""

    __pydantic_config__ = STRICT

    source: Word
    classes: Annotated[tuple[Word, ...], Field(max_length=1000)]
    resolution: int
    channels: int
    splits: dict[SplitName, list[Shard]]
    schema_version: int = SCHEMA_VERSION
    synthetic: bool = False
    seed: int = 0
    fit: Word = "crop"
    counts: dict[SplitName, dict[Word, Count]] = field(default_factory=dict)
    """Per split: images of each class."""
    patients: dict[SplitName, Count] = field(default_factory=dict)
    """Per split: how many patients."""
    rejected: Count = 0
    key_fingerprint: Word | None = None
    request: Word = ""
    """Digest of what was asked for and what lay in the raw folder; equal requests make equal folders."""
    versions: dict[Word, Word] = field(default_factory=dict)
    mirror: bool = False
    """Whether a mirrored image is still one of its kind; what a source does not know is no."""
    drawn: bool = False
    """Whether a program drew the images, or those that their generator learnt from, so that none is of a patient; what
    does not say so may be of patients."""
    trained_on: Sha256 | None = None
    """Of a release: SHA-256 of the manifest that its generator was trained on."""

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.resolution, self.resolution

    def facts(self, sha256: str) -> dict[str, Any]:
        """What config.for_data wants to know; sha256: of this manifest."""
        found = {name: getattr(self, name) for name in ("resolution", "channels", "classes", "mirror")}
        return {**found, "manifest_sha256": sha256}

    def rows(self, split: str) -> int:
        return sum(shard.rows for shard in self.splits.get(split, []))

    def to_json(self) -> str:
        tree = asdict(self)
        for name in ("trained_on", "drawn"):
            if not tree[name]:
                del tree[name]  # so that folders of real images stay what they are
        return json.dumps(tree, indent=1, sort_keys=True) + "\n"

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Raises SchemaError where it is of another version, and ValueError saying what else is wrong."""
        tree = from_json(text)  # which knows how deep is too deep
        version = tree.get("schema_version") if isinstance(tree, dict) else None
        if isinstance(version, int) and version != SCHEMA_VERSION:
            raise SchemaError(version)
        try:
            manifest = TypeAdapter(Manifest).validate_json(text)
        except ValidationError as error:
            raise ValueError(fault(error)) from None
        if manifest.resolution not in RESOLUTIONS:
            raise ValueError(f"resolution: {manifest.resolution} is none of {', '.join(map(str, RESOLUTIONS))}")
        if manifest.channels not in (1, 3):
            raise ValueError(f"channels: {manifest.channels} is neither 1 nor 3")
        for split, shards in manifest.splits.items():
            for shard in shards:
                if not shard.path.startswith(f"{split}/"):
                    raise ValueError(f"splits: {shard.path} is listed in {split}")
        paths = [shard.path for shards in manifest.splits.values() for shard in shards]
        if len(set(paths)) < len(paths):
            raise ValueError("splits: a shard is listed twice")
        return replace(manifest, splits={name: manifest.splits[name] for name in SPLITS if name in manifest.splits})


# -- where a folder is -------------------------------------------------------------------------------------------


def filesystem(location: str | Path) -> tuple[pafs.FileSystem, str]:
    """A path or a URI that pyarrow.fs opens -> (file system, path on it)."""
    if "://" in str(location):
        check_secrets(str(location))
        try:
            return pafs.FileSystem.from_uri(str(location))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{location}: not a location that can be opened ({error})") from None
    return pafs.LocalFileSystem(), os.path.abspath(location)


class Unsafe(OSError):
    """A file that is not touched; strerror is a reason of ours, without the folder."""


def check_inside(path: str, name: str) -> None:
    """Raises Unsafe where a link that lies in a folder of this host leads out of it: the folder may come from somebody
    else, who wants a file of ours shown, overwritten or deleted."""
    root = os.path.realpath(path)
    found = os.path.realpath(f"{path}/{name}")
    if found != root and not found.startswith(f"{root.rstrip('/')}/"):
        raise Unsafe(errno.ELOOP, f"{name} leads out of it by a link: put what it points to in its place", path)


def write_file(folder: str | Path, name: str, content: bytes) -> None:
    """A file below a folder or URI: complete or not there. Raises OSError, which names the folder."""
    fs, path = filesystem(folder)
    if isinstance(fs, pafs.LocalFileSystem):
        check_inside(path, str(Path(name).parent))  # a link in the file's own place is replaced
    try:
        _write(fs, f"{path}/{name}", content)
    except OSError as error:
        if error.errno is None:  # a storage's own words
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(folder)) from error


def _write(fs: pafs.FileSystem, file: str, content: bytes) -> None:
    fs.create_dir(file.rpartition("/")[0], recursive=True)
    if isinstance(fs, pafs.LocalFileSystem):
        # A name of this write's own: two may be at the same file, a page that is made by hand beside a run's.
        unfinished = Path(f"{file}.{secrets.token_hex(4)}.tmp")  # see UNFINISHED
        try:
            with open(unfinished, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())  # or a host that dies leaves the new name with nothing in it
            unfinished.replace(file)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
    else:  # an object appears when its upload ends
        with fs.open_output_stream(file) as stream:
            stream.write(content)


def begin(folder: str | Path, mark: str) -> bool:
    """Begin or go on with the request that the mark stands for; returns whether some of it may be there.

    What lies in `.parts` and in the splits is kept where it is of the same request, and cleared where it is not.
    """
    try:
        same = read_file(folder, f"{PARTS}/request").decode() == mark
    except OSError:
        same = False
    if not same:
        clear(folder)
        write_file(folder, f"{PARTS}/request", mark.encode())
    return same


def read_file(folder: str | Path, name: str, *, inside: bool = False, most: int = LARGEST) -> bytes:
    """A file below a folder or URI. Raises FileNotFoundError or another OSError.

    inside: refuse one that lies elsewhere and is only linked, for what is shown or sent on. most: bytes.
    """
    fs, path = filesystem(folder)
    if isinstance(fs, pafs.LocalFileSystem):
        if inside:
            check_inside(path, name)
        if not stat.S_ISREG(Path(f"{path}/{name}").stat().st_mode):
            raise OSError(errno.EINVAL, "not a plain file")  # a pipe would be waited for
    with fs.open_input_file(f"{path}/{name}") as file:
        if file.size() > most:
            raise Unsafe(errno.EFBIG, f"{name} has {file.size():,} bytes, more than the {most:,} that are read", path)
        return bytes(file.read())


def names(folder: str | Path, below: str = "") -> list[str]:
    """File and folder names directly below a folder, sorted; none where it does not exist."""
    fs, path = filesystem(folder)
    if isinstance(fs, pafs.LocalFileSystem):  # pyarrow fails where the folder is made meanwhile
        try:
            return sorted(entry.name for entry in Path(f"{path}/{below}").iterdir())
        except FileNotFoundError:
            return []
    selector = pafs.FileSelector(f"{path}/{below}".rstrip("/"), allow_not_found=True)
    return sorted(entry.base_name for entry in fs.get_file_info(selector))


def remove(folder: str | Path, name: str) -> None:
    """Remove a file, or a folder and all below it; nothing to do where there is none."""
    fs, path = filesystem(folder)
    if isinstance(fs, pafs.LocalFileSystem):
        check_inside(path, str(Path(name).parent))
        if (place := Path(path, name)).is_symlink():  # what it points to is not ours
            place.unlink()
            return
    kind = fs.get_file_info(f"{path}/{name}").type
    if kind == pafs.FileType.File:
        fs.delete_file(f"{path}/{name}")
    elif kind == pafs.FileType.Directory:
        fs.delete_dir(f"{path}/{name}")


def told(error: OSError | ValueError, otherwise: str = "no answer") -> str:
    """What the system says of an error, without the path, which may hold a patient's id (pyarrow's messages do); of a
    ValueError, which is one of ours, its own words."""
    if isinstance(error, Unsafe):
        return str(error.strerror)
    if not isinstance(error, OSError):
        return str(error)
    return os.strerror(error.errno) if error.errno else otherwise


# -- schema ------------------------------------------------------------------------------------------------------


def schema(shape: tuple[int, int, int], classes: Sequence[str], synthetic: bool = False) -> pa.Schema:
    """Columns of a shard, and the file's own metadata. Real rows carry keyed patient and image ids, synthetic ones the
    seed of their latent; a file of those says so wherever it lies.
    """
    fields = [pa.field("pixels", pa.binary(int(np.prod(shape))), nullable=False)]
    if classes:
        item = pa.field("element", pa.uint8(), nullable=False)  # as Parquet calls it
        fields.append(pa.field("labels", pa.list_(item, len(classes)), nullable=False))
    if synthetic:
        fields.append(pa.field("seed", pa.int64(), nullable=False))
    else:
        fields += [pa.field("patient", pa.string()), pa.field("image_id", pa.string())]
    meta = {"schema_version": SCHEMA_VERSION, "shape": list(shape), "classes": list(classes)}
    if synthetic:
        meta["synthetic"] = True
    return pa.schema(fields, metadata={"medgan": json.dumps(meta, sort_keys=True)})


def shard_bytes(
    pixels: np.ndarray, labels: np.ndarray, classes: Sequence[str], columns: Mapping[str, Sequence[Any]]
) -> bytes:
    """One shard as the bytes of a Parquet file; equal rows give equal bytes.

    pixels: uint8 (N, C, R, R); labels: uint8 (N, K), multi-hot over classes; columns: `patient` and `image_id`, or
    `seed`.
    """
    shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
    columns_schema = schema(shape, classes, synthetic="seed" in columns)
    arrays: list[pa.Array] = []
    for column in columns_schema:
        if column.name == "pixels":
            flat = pa.py_buffer(np.ascontiguousarray(pixels))
            arrays.append(pa.Array.from_buffers(column.type, len(pixels), [None, flat]))
        elif column.name == "labels":
            values = pa.array(labels.reshape(-1), pa.uint8())
            arrays.append(pa.FixedSizeListArray.from_arrays(values, type=column.type))
        else:
            arrays.append(pa.array(columns[column.name], column.type))
    buffer = io.BytesIO()
    table = pa.Table.from_arrays(arrays, schema=columns_schema)
    pq.write_table(table, buffer, row_group_size=512, compression="NONE", use_dictionary=False)
    return buffer.getvalue()


def shard_pixels(table: pa.Table, shape: tuple[int, int, int]) -> np.ndarray:
    """The pixels column -> uint8 (N, C, R, R), without copying where the column is one chunk."""
    column = table.column("pixels").combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    size = int(np.prod(shape))
    flat = np.frombuffer(column.buffers()[1], np.uint8, len(column) * size, column.offset * size)
    return flat.reshape(len(column), *shape)


def shard_labels(table: pa.Table, classes: Sequence[str]) -> np.ndarray:
    """The labels column -> uint8 (N, K); K = 0 gives (N, 0)."""
    if not classes:
        return np.zeros((table.num_rows, 0), np.uint8)
    values = table.column("labels").combine_chunks().flatten()
    return values.to_numpy(zero_copy_only=False).reshape(-1, len(classes))


def write_shard(
    out: str | Path,
    name: str,
    pixels: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> Shard:
    """Write rows (see `shard_bytes`) to a file below a data folder."""
    content = shard_bytes(pixels, labels, classes, columns)
    write_file(out, name, content)
    return Shard(name, len(pixels), len(content), hashlib.sha256(content).hexdigest())


# -- keyed ids ---------------------------------------------------------------------------------------------------


def derived(key: bytes, *parts: str | bytes) -> bytes:
    """HMAC-SHA256 of the parts under the key, 32 bytes: as good as random to whoever has not the key."""
    message = b"\0".join(part.encode() if isinstance(part, str) else part for part in parts)
    return hmac.new(key, message, hashlib.sha256).digest()


def keyed_id(key: bytes, *parts: str | bytes) -> str:
    """`derived`, as 32 hexadecimal digits."""
    return derived(key, *parts).hex()[:32]


def fingerprint(key: bytes) -> str:
    """By which a key is told from others, 16 hexadecimal digits."""
    return keyed_id(key, "fingerprint")[:16]


# -- the split ---------------------------------------------------------------------------------------------------


def split_patients(patients: Iterable[tuple[str, tuple[int, ...]]], seed: int, test: bool = True) -> dict[str, str]:
    """Patient -> split, one split each; every set of classes is divided 80/10/10 by images, 80/10 without a test.

    patients: (patient, labels) of each image. A patient with images of several classes counts with all of them.
    The order in which patients are dealt depends on the seed and their ids alone. Sets of fewer than 100 patients
    share one account, set after set: each by itself would be rounded, and always to the same side.
    """
    images: dict[str, int] = defaultdict(int)
    labels: dict[str, set[int]] = defaultdict(set)
    for patient, classes in patients:
        images[patient] += 1
        labels[patient].update(classes)
    strata: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for patient, found in labels.items():
        strata[tuple(sorted(found))].append(patient)
    names = [split for split in SPLITS if test or split != "test"]
    shared = dict.fromkeys(names, 0)
    split_of: dict[str, str] = {}
    for stratum in sorted(strata):
        members = sorted(strata[stratum], key=lambda p: hashlib.sha256(f"{seed}/split/{p}".encode()).digest())
        given = shared if len(members) < SMALL_STRATUM else dict.fromkeys(names, 0)
        for patient in members:  # to the split that is furthest behind its share
            split = min(given, key=lambda name: (given[name] / SPLITS[name], -SPLITS[name]))
            split_of[patient] = split
            given[split] += images[patient]
    return split_of


# -- a folder being written --------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """What wrote the pixels."""
    return {
        "medgan": medgan.__version__,
        "python": platform.python_version(),
        "pillow": PIL.__version__,
        "tifffile": importlib.metadata.version("tifffile"),
        "imagecodecs": importlib.metadata.version("imagecodecs"),
        "numpy": np.__version__,
        "pyarrow": pa.__version__,
    }


def check_target(out: str | Path) -> None:
    """Refuse a folder that holds anything but data of ours, finished or not. Raises DataError."""
    fs, path = filesystem(out)
    info = fs.get_file_info(path)
    if info.type == pafs.FileType.File:
        raise DataError(f"--out {out}: is a file")
    if info.type == pafs.FileType.Directory:
        for entry in fs.get_file_info(pafs.FileSelector(path, recursive=True)):
            name = entry.path[len(path) :].lstrip("/")
            if entry.type == pafs.FileType.File and not OURS.fullmatch(name):
                raise DataError(f"--out {out}: holds files that are not medgan data; choose another folder")


def clear(out: str | Path) -> None:
    """Remove the manifest, then shards, pictures and what was found of them, and nothing that is not ours."""
    check_target(out)
    remove(out, "manifest.json")  # first: without it the rest is no data set
    for name in (*SPLITS, "png", "dicom", PARTS, "evaluation.json", "report.html", "summary.html"):
        remove(out, name)


def prepared(out: str | Path, request: str, overwrite: bool = False) -> Manifest | None:
    """The manifest where the folder already holds what is asked for, None where it is to be written.

    Raises DataError where it holds other data or is damaged, unless that is to be overwritten.
    """
    fs, path = filesystem(out)
    if overwrite or fs.get_file_info(f"{path}/manifest.json").type == pafs.FileType.NotFound:
        return None
    try:
        manifest, _ = read_manifest(out, "--out")
    except DataError as error:
        raise DataError(f"{error}, with --overwrite") from None
    if manifest.request != request:
        raise DataError(
            f"--out {out}: holds other data ({manifest.source}, {manifest.resolution}x{manifest.resolution}, "
            f"seed {manifest.seed}); choose another folder, or --overwrite"
        )
    try:
        verify(out, manifest)
    except DataError as error:
        raise DataError(f"{error}, with --overwrite".replace("--data", "--out", 1)) from None
    remove(out, PARTS)  # where the last call was cut after its last file
    return manifest


# -- reading back ------------------------------------------------------------------------------------------------


def read_manifest(data: str | Path, flag: str = "--data") -> tuple[Manifest, str]:
    """(manifest, SHA-256 of manifest.json in hex) of a data folder. Raises DataError."""
    try:
        content = read_file(data, "manifest.json")
    except OSError:
        raise DataError(f"{flag} {data}: no manifest.json in it; make a data folder with jobs/prepare.py") from None
    return parse_manifest(content, f"{flag} {data}"), hashlib.sha256(content).hexdigest()


def parse_manifest(content: bytes, where: str) -> Manifest:
    """The manifest in the bytes of a manifest.json. Raises DataError, which begins with `where`."""
    try:
        manifest = Manifest.from_json(content.decode())
    except SchemaError as error:
        raise DataError(
            f"{where}: schema version {error}, but {SCHEMA_VERSION} is needed; "
            "prepare it again, or use the medgan that made it"
        ) from None
    except ValueError as error:
        told_so = f"manifest.json is damaged ({one_line(str(error))})"
        raise DataError(f"{where}: {told_so}; prepare the folder again") from None
    if why := wrong_with(manifest.classes):
        raise DataError(f"{where}: manifest.json: {why}")
    return manifest


def read_shard(data: str | Path, shard: Shard) -> bytes:
    """A shard's bytes, checked against the manifest. Raises DataError naming the file."""
    fs, path = filesystem(data)
    found = fs.get_file_info(f"{path}/{shard.path}")
    if found.type == pafs.FileType.NotFound:
        raise DataError(f"--data {data}: {shard.path} is missing; prepare the folder again")
    if found.type == pafs.FileType.File and found.size != shard.bytes:  # known before anything is read
        raise DataError(
            f"--data {data}: {shard.path} has {found.size} bytes, the manifest says {shard.bytes}; prepare it again"
        )
    try:
        content = read_file(data, shard.path)
    except OSError as error:
        raise DataError(f"--data {data}: {shard.path} cannot be read ({told(error)}); prepare it again") from None
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise DataError(f"--data {data}: {shard.path} is not what was written (SHA-256 differs); prepare it again")
    return content


def read_table(data: str | Path, manifest: Manifest, shard: Shard) -> pa.Table:
    """A shard's rows, which are as the manifest says: columns, number, nothing missing, labels of 0 and 1.

    Raises DataError naming the file.
    """
    content = read_shard(data, shard)
    try:
        table = pq.read_table(pa.BufferReader(content))
    except pa.ArrowException as error:
        raise DataError(f"--data {data}: {shard.path}: {one_line(str(error))}; prepare it again") from None
    if why := _wrong_rows(table, manifest, shard):
        raise DataError(f"--data {data}: {shard.path}: {why}; prepare it again")
    return table


def _wrong_rows(table: pa.Table, manifest: Manifest, shard: Shard) -> str | None:
    expected = schema(manifest.shape, manifest.classes, manifest.synthetic)
    if not table.schema.equals(expected, check_metadata=True):
        return "its columns or metadata are not those of this data set"
    if len(table) != shard.rows:
        return f"{len(table)} rows, the manifest says {shard.rows}"
    for name in table.column_names:
        if table.column(name).null_count:
            return f"a row without {name}"
    if (shard_labels(table, manifest.classes) > 1).any():
        return "labels that are neither 0 nor 1"
    return None


def column(data: str | Path, split: str, name: str) -> list[Any]:
    """One column of a split, such as `patient`, in the order of its rows. Raises DataError."""
    manifest, _ = read_manifest(data)
    return [value for shard in manifest.splits[split] for value in read_table(data, manifest, shard)[name].to_pylist()]


def verify(data: str | Path, manifest: Manifest) -> None:
    """Every shard as `read_table` has it, and no patient or image in two splits. Raises DataError."""
    _, _, whose = _survey(data, manifest, None)
    for line in _shared(whose):
        raise DataError(f"--data {data}: {line}; prepare it again")


def problems(data: str | Path) -> list[str]:
    """All that is wrong with a data folder, a line each: checksums, schema, rows, counts, patients, stray shards.

    Raises DataError where there is no manifest that can be read.
    """
    manifest, _ = read_manifest(data)
    wrong: list[str] = []
    counts, patients, whose = _survey(data, manifest, wrong)
    if wrong:
        return wrong  # counts of a part would only repeat it
    for split in manifest.splits:
        if counts[split] != manifest.counts.get(split):
            wrong.append(
                f"{split}: images per class are {counts[split]}, the manifest says {manifest.counts.get(split)}"
            )
        if not manifest.synthetic and patients[split] != manifest.patients.get(split):
            wrong.append(f"{split}: {patients[split]} patients, the manifest says {manifest.patients.get(split)}")
    wrong += _shared(whose)
    if not manifest.synthetic:
        wrong += _beside(data, manifest)
    fs, root = filesystem(data)
    listed_paths = {shard.path for shards in manifest.splits.values() for shard in shards}
    for split in SPLITS:
        for entry in fs.get_file_info(pafs.FileSelector(f"{root}/{split}", allow_not_found=True)):
            if f"{split}/{entry.base_name}" not in listed_paths:
                wrong.append(f"{split}/{entry.base_name}: not in the manifest")
    return wrong


Ids = dict[str, dict[str, set[str]]]
"""Per kind, patient or image, and split: which there are."""


def _survey(
    data: str | Path, manifest: Manifest, wrong: list[str] | None
) -> tuple[dict[str, dict[str, int]], dict[str, int], Ids]:
    """Of all shards: images of each class and patients by split, and who is where.

    Raises the DataError of a shard that is not as it should be or, where a list is given, notes what is wrong with it.
    """
    counts = {split: dict.fromkeys(manifest.classes, 0) for split in manifest.splits}
    kinds = () if manifest.synthetic else ("patient", "image_id")
    whose: Ids = {kind: {split: set() for split in manifest.splits} for kind in kinds}
    listed = [(split, shard) for split, shards in manifest.splits.items() for shard in shards]

    def look(item: tuple[str, Shard]) -> tuple[dict[str, int], dict[str, set[str]]]:
        table = read_table(data, manifest, item[1])
        found = label_counts(shard_labels(table, manifest.classes), manifest.classes)
        return found, {kind: set(table.column(kind).to_pylist()) for kind in kinds}

    with ThreadPoolExecutor(8) as pool:
        for (split, _), future in [(item, pool.submit(look, item)) for item in listed]:
            try:
                found, ids = future.result()
            except DataError as error:
                if wrong is None:
                    raise
                wrong.append(str(error).removeprefix(f"--data {data}: "))
                continue
            for name, count in found.items():
                counts[split][name] += count
            for kind in kinds:
                whose[kind][split] |= ids[kind]
    patients = {split: len(ids) for split, ids in whose.get("patient", {}).items()}
    return counts, patients, whose


def _shared(whose: Ids) -> list[str]:
    """Which patients and images are in two splits, a line for each pair."""
    called = {"patient": "patients", "image_id": "images"}
    return [
        f"{shared} {called[kind]} are in {one} and in {other}"
        for kind, ids in whose.items()
        for one, other in combinations(ids, 2)
        if (shared := len(ids[one] & ids[other]))
    ]


def _beside(data: str | Path, manifest: Manifest) -> list[str]:
    """What is wrong with the files beside the shards of real images."""
    there, wrong = names(data), []
    if "summary.html" not in there:
        wrong.append("summary.html is missing")
    try:
        rows = pq.read_metadata(pa.BufferReader(read_file(data, "rejected.parquet"))).num_rows
        if rows != manifest.rejected:
            wrong.append(f"rejected.parquet: {rows} rows, the manifest says {manifest.rejected}")
    except OSError:
        wrong.append("rejected.parquet is missing")
    except pa.ArrowException:
        wrong.append("rejected.parquet is damaged")
    return wrong


def label_counts(labels: np.ndarray, classes: Sequence[str]) -> dict[str, int]:
    """Images of each class in uint8 (N, K)."""
    return {name: int(labels[:, index].sum()) for index, name in enumerate(classes)}
