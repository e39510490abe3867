"""Records -> shards, on Ray Data: every shard is one task, so the bytes do not depend on how many workers there are.

A preparation that was cut goes on: what is known of each finished shard lies in DATA/.parts until the manifest is
written. When all are there, files that lie in several classes are left out or get all their labels, and images that
two splits share leave one of them (see copies.py).
"""

from __future__ import annotations

import errno
import io
import json
import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from medgan.config import Refused
from medgan.data.contradictions import Row, settled
from medgan.data.copies import Images, copies, nearest
from medgan.data.isolated import Isolated
from medgan.data.limits import MOST_PIXELS
from medgan.data.shards import (
    PARTS,
    SPLITS,
    DataError,
    Manifest,
    Shard,
    begin,
    check_target,
    derived,
    fingerprint,
    keyed_id,
    label_counts,
    names,
    read_file,
    read_shard,
    remove,
    shard_labels,
    shard_pixels,
    split_patients,
    told,
    versions,
    write_file,
    write_shard,
)
from medgan.data.sources import SOURCES, Listing, Options, Raw, Record, SourceError, fitted
from medgan.data.sources.base import relabel
from medgan.data.sources.raw import packed
from medgan.data.summary import publish
from medgan.names import wrong_with
from medgan.pixels import Fit

Thing = TypeVar("Thing")
Result = TypeVar("Result")
Report = Callable[[str, int, int, int], None]
"""(verb, done, of, rejected)"""

decoder = Isolated("medgan.data.sources:fitted")
COMPARED = 512
"""So many images are compared with those of another split in one task."""
SMALL_VAL = 0.05
"""A published val of fewer images than this share of train is too small to validate on."""


@dataclass(frozen=True)
class Request:
    """What prepare was asked for."""

    source: str
    raw: str | None
    out: str
    resolution: int
    channels: int = 1
    options: Options = field(default_factory=Options)
    fit: Fit = "crop"
    split: Literal["ratio", "published"] | None = None
    """None: the source's own way."""
    rows_per_shard: int = 1024
    max_pixels: int = MOST_PIXELS
    """An image of more, those of each channel counted, is left out."""
    keep_paths: bool = False
    """Write the paths of rejected files into rejected.parquet: they mostly hold patient ids."""
    show_paths: bool = False
    """Name files by their path in messages."""

    @property
    def folder(self) -> Raw:
        return Raw(self.raw or "")


@dataclass(frozen=True)
class Rejected:
    """A file that is left out: its path below the raw folder and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """A checked request: every record, its split, and the digest by which an equal request is recognised."""

    request: Request
    key: bytes
    classes: tuple[str, ...]
    records: dict[str, list[Record]]
    rejected: list[Rejected]
    notes: tuple[str, ...]
    digest: str

    @property
    def count(self) -> int:
        return sum(map(len, self.records.values()))

    @property
    def work(self) -> Work:
        return Work(self.request, derived(self.key, "images"), self.classes)

    def keyed(self, record: Record) -> Record:
        """The record as it may travel and be written."""
        return replace(record, patient=keyed_id(self.key, self.request.source, record.patient))

    def called(self, name: str) -> str:
        """What a file is called in messages: its keyed id, for paths hold patient ids, or its path if wanted."""
        return name if self.request.show_paths else keyed_id(self.key, "name", name)


@dataclass(frozen=True)
class Work:
    """What a worker knows of a plan. The key of the patients' ids is not among it: a cluster has other eyes."""

    request: Request
    image_key: bytes
    """Of the images' ids, which need their bytes. It is drawn from the patients' key, which cannot be found by it."""
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """The records of one shard, their patients as keyed ids, and its path below DATA."""

    name: str
    records: tuple[Record, ...]

    @property
    def split(self) -> str:
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class Part:
    """A finished shard and what the manifest needs of it."""

    shard: Shard
    counts: dict[str, int]
    patients: list[str]
    rejected: list[tuple[int, str]]
    """Positions among the item's records, which tell nothing by themselves, and why."""
    sizes: list[tuple[int, int]]
    """Width and height of each image before it was fitted."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: bytes) -> Part:
        tree = json.loads(text)
        rejected = [(position, reason) for position, reason in tree["rejected"]]
        sizes = [(width, height) for width, height in tree["sizes"]]
        return Part(Shard(**tree["shard"]), tree["counts"], tree["patients"], rejected, sizes)


@dataclass(frozen=True)
class Edit:
    """What becomes of a shard's rows: the reasons for which some are left out, and the labels that others get."""

    item: Item
    part: Part
    dropped: dict[int, str] = field(default_factory=dict)
    labels: dict[int, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """What `write` made, every file that it left out, and the notes of the plan and of the writing."""

    manifest: Manifest
    rejected: list[Rejected]
    notes: tuple[str, ...]


def find(request: Request) -> Listing:
    """List and check the records; nothing is written. Raises SourceError or DataError."""
    source = SOURCES[request.source]
    if source.needs_raw:
        if request.raw is None:
            raise SourceError(f"--source {source.name} reads files: name their folder with --raw")
        request.folder.check()
    elif request.raw is not None:
        raise SourceError(f"--raw {request.raw}: --source {source.name} draws its images; leave --raw out")
    found = source.listing(request.folder, request.options)
    if not found.records:
        why = f": {_most([Rejected(*row) for row in found.rejected])}" if found.rejected else ""
        hint = packed(request.folder.files()) if source.needs_raw else ""
        raise SourceError(f"--raw {request.raw}: no image in it that can be used{why}{hint}")
    if wrong := wrong_with(found.classes):
        raise SourceError(f"--raw {request.raw}: {wrong}")
    faults = list(takewhile(bool, (_fault(request, record) for record in found.records))) if source.needs_raw else []
    if len(faults) == len(found.records):
        raise SourceError(
            f"--raw {request.raw}: none of its {len(faults)} files is an image that can be read; "
            f"mostly: {Counter(faults).most_common(1)[0][0]}"
        )
    check_target(request.out)
    return found


def tally(found: Listing) -> list[str]:
    """How many images there are of each class: a line, or one for each published split."""
    lines = []
    for split in sorted({record.split or "" for record in found.records}, key=("", *SPLITS).index):
        records = [record for record in found.records if (record.split or "") == split]
        count = Counter(label for record in records for label in record.labels)
        each = [f"{name} {count[index]:,}" for index, name in enumerate(found.classes)]
        bare = sum(not record.labels for record in records)
        each += [f"without a label {bare:,}"] if bare else []
        lines.append(f"found{' in ' if split else ''}{split}: {', '.join(each)}")
    return lines


def plan(request: Request, found: Listing, key: bytes) -> Plan:
    """Split and order what `find` found; nothing is written. Raises SourceError."""
    split_of = _splits(request, found.records)
    train = [record for record in found.records if split_of[record.patient] == "train"]
    shown = {label for record in train for label in record.labels}
    absent = [name for index, name in enumerate(found.classes) if index not in shown]
    for name in absent:
        if name in request.options.classes:
            raise SourceError(f"--classes {name}: no image of it in train")
    classes = tuple(name for name in found.classes if name not in absent)
    kept: Sequence[Record] = found.records
    notes = [*found.notes]
    if absent:
        kept = relabel(kept, found.classes, classes, lambda record: True)
        notes.append(f"no image in train of {', '.join(absent)}: left out of the classes")
    records: dict[str, list[Record]] = {split: [] for split in SPLITS}
    # A keyed order: shards mix the classes, and the order tells nothing about patients.
    for record in sorted(kept, key=lambda record: keyed_id(key, "order", record.name)):
        records[split_of[record.patient]].append(record)
    sizes = request.folder.sizes() if SOURCES[request.source].needs_raw else {}
    listing = [[record.name, record.labels, record.patient] for record in found.records]
    asked = [request.source, request.resolution, request.channels, request.fit, request.split]
    asked += [request.rows_per_shard, request.keep_paths]
    asked += [request.max_pixels] if request.max_pixels != MOST_PIXELS else []
    digest = keyed_id(key, json.dumps([asked, asdict(request.options), listing, found.rejected, sizes]))
    rejected = [Rejected(name, reason) for name, reason in found.rejected]
    return Plan(request, key, classes, records, rejected, tuple(notes), digest)


def _splits(request: Request, records: Sequence[Record]) -> dict[str, str]:
    """The split of each patient: dealt by ratio, or as published."""
    pairs = [(record.patient, record.labels) for record in records]
    if (request.split or SOURCES[request.source].split) == "ratio":
        return split_patients(pairs, request.options.seed)
    published: dict[str, str] = {}
    leaking: dict[str, str] = {}
    for record in records:
        if record.split is None:
            raise SourceError(f"--split published: --source {request.source} publishes none here")
        if published.setdefault(record.patient, record.split) != record.split:
            leaking.setdefault(record.patient, f"{published[record.patient]} and {record.split}")
    if leaking:
        where = next(iter(leaking.values()))
        named = f", the first of them {next(iter(leaking))}" if request.show_paths else ""
        raise SourceError(
            f"--split published: {len(leaking)} patients are in two splits ({where}{named}); use --split ratio"
        )
    counts = Counter(record.split for record in records)
    if counts["val"] < SMALL_VAL * counts["train"]:
        own = {patient for patient, split in published.items() if split != "test"}
        dealt = split_patients([pair for pair in pairs if pair[0] in own], request.options.seed, test=False)
        published |= dealt
    return published


def write(plan: Plan, progress: Report = lambda *_: None) -> Written:
    """Write every shard, then rejected.parquet, summary.html and last the manifest, without which DATA is no data.

    Shards that an earlier call for the same plan finished are kept. progress(verb, done, of, rejected) is called as
    shards are done. Needs a running Ray. Raises OSError where storage fails, after which another call goes on, and
    DataError where no image of train can be used, or none of a class that was asked for.
    """
    request = plan.request
    items = [
        Item(f"{split}/{number:05d}.parquet", tuple(map(plan.keyed, records[start : start + request.rows_per_shard])))
        for split, records in plan.records.items()
        for number, start in enumerate(range(0, len(records), request.rows_per_shard))
    ]
    parts = _finished(plan)
    missing = [item for item in items if item.name not in parts]
    done = sum(part.shard.rows + len(part.rejected) for part in parts.values())
    rejected = len(plan.rejected) + sum(len(part.rejected) for part in parts.values())
    progress("kept", done, plan.count, rejected)
    seen: dict[str, Images] = {}
    for part, images in _on_ray(partial(_write_shard, plan.work), missing):
        parts[part.shard.path], seen[part.shard.path] = part, images
        done += part.shard.rows + len(part.rejected)
        rejected += len(part.rejected)
        progress("prepare", done, plan.count, rejected)
    kept = sorted(parts.keys() - seen.keys())
    for number, (path, images) in enumerate(zip(kept, _on_ray(partial(_survey, plan.work), kept), strict=True), 1):
        seen[path] = images
        progress("compare", number, len(kept), 0)
    plan, edits = _without_contradictions(plan, items, parts, seen)
    parts = _without_copies(plan, edits, seen)
    plan, parts = _without_empty_classes(plan, items, parts)
    return _publish(plan, items, parts)


def _on_ray(task: Callable[[Thing], Result], things: Sequence[Thing]) -> Iterator[Result]:
    """task(thing) of each as a Ray task of one CPU, in the given order. Raises the OSError of one that failed."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True

    def run(row: dict[str, Any]) -> dict[str, Any]:
        # A result is a pickle: as columns, Arrow would have to guess the type of an empty list.
        try:
            return {"result": pickle.dumps(task(things[row["item"]]))}
        except OSError as error:
            return {"result": pickle.dumps(error)}

    if not things:
        return
    dataset = ray.data.from_items([{"item": index} for index in range(len(things))], override_num_blocks=len(things))
    for row in dataset.map(run, num_cpus=1).iter_rows():
        result = pickle.loads(row["result"])
        if isinstance(result, OSError):
            raise result
        yield result


def _finished(plan: Plan) -> dict[str, Part]:
    """Shards of this plan that an earlier call finished, by path; any other content of the folder is cleared."""
    out = plan.request.out
    mark = json.dumps([plan.digest, versions()])  # another Pillow may give other pixels
    if not begin(out, mark):
        return {}
    found: dict[str, Part] = {}
    for name in names(out, PARTS):
        if not name.endswith(".json"):
            continue
        part = Part.from_json(read_file(out, f"{PARTS}/{name}"))
        try:
            read_shard(out, part.shard)
        except DataError:  # a file that lost the race with a kill, or a train shard whose copies are out already
            continue
        found[part.shard.path] = part
    return found


def _write_shard(work: Work, item: Item) -> tuple[Part, Images]:
    """Read, decode and write one shard, then what is known of it; with what its images are compared by."""
    request = work.request
    pixels, labels, patients, image_ids, rejected, sizes = [], [], [], [], [], []
    for position, record in enumerate(item.records):
        try:
            content = _read(work, record)
            image, size = _fitted(request, content)
        except ValueError as error:
            rejected.append((position, str(error)))
            continue
        labels.append([int(index in record.labels) for index in range(len(work.classes))])
        patients.append(record.patient)
        image_ids.append(keyed_id(work.image_key, content))
        pixels.append(image)
        sizes.append(size)
    shape = (request.channels, request.resolution, request.resolution)
    rows = np.array(pixels, np.uint8).reshape(-1, *shape)
    hot = np.array(labels, np.uint8).reshape(len(labels), len(work.classes))
    ids = {"patient": patients, "image_id": image_ids}
    shard = write_shard(request.out, item.name, rows, hot, work.classes, ids)
    part = Part(shard, label_counts(hot, work.classes), sorted(set(patients)), rejected, sizes)
    write_file(request.out, f"{PARTS}/{item.name.replace('/', '-')}.json", part.to_json().encode())
    return part, Images.of(rows, image_ids)


def _fitted(request: Request, content: bytes) -> tuple[np.ndarray, tuple[int, int]]:
    """`sources.fitted`, in a process of its own where the file came from others. Raises ValueError."""
    call = decoder if SOURCES[request.source].needs_raw else fitted
    asked = (request.resolution, request.channels, request.fit, request.max_pixels)
    found: tuple[np.ndarray, tuple[int, int]] = call(request.source, content, *asked)
    return found


def _read(work: Work, record: Record) -> bytes:
    """The bytes of one image. Raises ValueError where this file is to blame, OSError where the storage is.

    Messages of the operating system hold the path, and so the patient's id; these do not.
    """
    request = work.request
    for pause in (0.5, 2.0, None):
        try:
            return SOURCES[request.source].read(request.folder, record, request.options)
        except Refused as error:  # an archive that this host cannot open
            raise OSError(str(error)) from None
        except OSError as error:
            why = told(error)
            if (
                error.errno in (errno.EACCES, errno.EISDIR, errno.ELOOP)
                or Path(request.raw or "", record.name).is_symlink()
            ):
                raise ValueError(f"cannot be read ({why})") from None
            if pause is None:
                raise OSError(f"--raw: a file of the listing cannot be read ({why}); can every host read it?") from None
            time.sleep(pause)
    raise AssertionError("unreachable")


def _without_contradictions(
    plan: Plan, items: list[Item], parts: dict[str, Part], images: dict[str, Images]
) -> tuple[Plan, dict[str, Edit]]:
    """What becomes of files that are there several times, and the plan with notes on them."""
    edits = {item.name: Edit(item, parts[item.name]) for item in items}
    where, rows = [], []
    for path, edit in edits.items():
        unread = {position for position, _ in edit.part.rejected}
        records = [record for position, record in enumerate(edit.item.records) if position not in unread]
        for place, (record, image_id) in enumerate(zip(records, images[path].ids, strict=True)):
            where.append((path, place))
            rows.append(Row(edit.item.split, image_id, record.labels, record.patient))
    made = settled(rows, plan.request.options.multi_label)
    for index, reason in made.dropped.items():
        path, place = where[index]
        edits[path].dropped[place] = reason
    for index, labels in made.labels.items():
        path, place = where[index]
        edits[path].labels[place] = labels
    return replace(plan, notes=(*plan.notes, *made.notes)), edits


def _without_copies(plan: Plan, edits: dict[str, Edit], images: dict[str, Images]) -> dict[str, Part]:
    """Take images out of train and val that test has too, and out of train what val has: the same file, or a copy."""
    where: dict[str, list[tuple[str, int]]] = {split: [] for split in SPLITS}
    surveyed: dict[str, list[Images]] = {split: [] for split in SPLITS}
    for path, edit in sorted(edits.items()):
        rows = [row for row in range(len(images[path])) if row not in edit.dropped]
        surveyed[edit.item.split].append(images[path].some(np.array(rows, int)))
        where[edit.item.split] += [(path, row) for row in rows]
    seen = {split: Images.together(several) for split, several in surveyed.items()}
    for split, others in (("val", ("test",)), ("train", ("test", "val"))):
        for other in others:
            for index, reason in copies(seen[split], seen[other], _nearest).items():
                path, row = where[split][index]
                edits[path].dropped.setdefault(row, f"{reason} an image in {other}")
    changed = [edit for _, edit in sorted(edits.items()) if edit.dropped or edit.labels]
    parts = {path: edit.part for path, edit in edits.items()}
    return parts | {part.shard.path: part for part in _on_ray(partial(_rewrite, plan.work, plan.classes), changed)}


def _nearest(images: Images, others: Images) -> tuple[np.ndarray, np.ndarray]:
    """copies.nearest on every CPU of the cluster where it is worth it; the same for any number of them."""
    starts = range(0, len(images), COMPARED)
    pieces = [images.some(np.arange(start, min(start + COMPARED, len(images)))) for start in starts]
    if len(pieces) == 1:
        return nearest(images, others)
    likeness, partner = zip(*_on_ray(partial(_nearest_of, others), pieces), strict=True)
    return np.concatenate(likeness), np.concatenate(partner)


def _nearest_of(others: Images, images: Images) -> tuple[np.ndarray, np.ndarray]:
    return nearest(images, others)


def _without_empty_classes(plan: Plan, items: list[Item], parts: dict[str, Part]) -> tuple[Plan, dict[str, Part]]:
    """Classes of which no image of train could be used are no classes, or refused where they were asked for."""
    train = [part for path, part in parts.items() if path.startswith("train/")]
    classes = tuple(name for name in plan.classes if any(part.counts[name] for part in train))
    empty = [name for name in plan.classes if name not in classes]
    rejected = [*plan.rejected, *(Rejected("", reason) for part in parts.values() for _, reason in part.rejected)]
    for name in empty:
        if name in plan.request.options.classes:
            raise DataError(f"--classes {name}: no usable image of it in train; {_most(rejected)}")
    if not any(part.shard.rows for part in train):
        raise DataError(f"--out {plan.request.out}: no usable image in train; {_most(rejected)}")
    if not empty:
        return plan, parts
    tasks = [Edit(item, parts[item.name]) for item in items]
    rewritten = {part.shard.path: part for part in _on_ray(partial(_rewrite, plan.work, classes), tasks)}
    note = f"no usable image in train of {', '.join(empty)}: left out of the classes"
    return replace(plan, classes=classes, notes=(*plan.notes, note)), rewritten


def _survey(work: Work, path: str) -> Images:
    """What the images of a shard are compared by that an earlier call finished."""
    table = pq.read_table(pa.BufferReader(read_file(work.request.out, path)))
    shape = (work.request.channels, work.request.resolution, work.request.resolution)
    return Images.of(shard_pixels(table, shape), table.column("image_id").to_pylist())


def _rewrite(work: Work, classes: Sequence[str], edit: Edit) -> Part:
    """The shard as edited, and with those classes alone."""
    item, part = edit.item, edit.part
    shape = (work.request.channels, work.request.resolution, work.request.resolution)
    table = pq.read_table(pa.BufferReader(read_shard(work.request.out, part.shard)))
    keep = [row for row in range(len(table)) if row not in edit.dropped]
    ids = {name: [table.column(name)[row].as_py() for row in keep] for name in ("patient", "image_id")}
    hot = shard_labels(table, work.classes).copy()
    for row, several in edit.labels.items():
        hot[row, list(several)] = 1
    labels = hot[keep][:, [work.classes.index(name) for name in classes]]
    shard = write_shard(work.request.out, item.name, shard_pixels(table, shape)[keep], labels, classes, ids)
    unread = {position for position, _ in part.rejected}
    position_of = [position for position in range(len(item.records)) if position not in unread]
    rejected = [*part.rejected, *((position_of[row], reason) for row, reason in edit.dropped.items())]
    sizes = [part.sizes[row] for row in keep]
    return Part(shard, label_counts(labels, classes), sorted(set(ids["patient"])), sorted(rejected), sizes)


def _most(rejected: Sequence[Rejected]) -> str:
    """How many were left out, and the reason most often given."""
    reasons = Counter(row.reason for row in rejected).most_common(1)
    return f"{len(rejected)} were left out, mostly: {reasons[0][0]}" if reasons else "none was listed"


def _publish(plan: Plan, items: list[Item], parts: dict[str, Part]) -> Written:
    request = plan.request
    rejected = list(plan.rejected)
    splits: dict[str, list[Shard]] = {split: [] for split in SPLITS}
    counts = {split: Counter(dict.fromkeys(plan.classes, 0)) for split in SPLITS}
    patients: dict[str, set[str]] = {split: set() for split in SPLITS}
    sizes: list[tuple[int, int]] = []
    for item in items:
        part = parts[item.name]
        rejected += [Rejected(item.records[position].name, reason) for position, reason in part.rejected]
        if part.shard.rows:
            splits[item.split].append(part.shard)
            counts[item.split].update(part.counts)
            patients[item.split].update(part.patients)
            sizes += part.sizes
        else:
            remove(request.out, part.shard.path)
    manifest = Manifest(
        source=request.source,
        classes=plan.classes,
        resolution=request.resolution,
        channels=request.channels,
        splits=splits,
        seed=request.options.seed,
        fit=request.fit,
        counts={split: dict(count) for split, count in counts.items()},
        patients={split: len(ids) for split, ids in patients.items()},
        rejected=len(rejected),
        key_fingerprint=fingerprint(plan.key),
        request=plan.digest,
        versions=versions(),
        mirror=SOURCES[request.source].mirror,
        drawn=not SOURCES[request.source].needs_raw,
    )
    # File names hold patient ids: the folder gets keyed ones.
    rows = [
        {"name_id": keyed_id(plan.key, "name", r.name), "reason": r.reason}
        | ({"path": r.name} if request.keep_paths else {})
        for r in rejected
    ]
    rows.sort(key=lambda row: row["name_id"])
    columns = ["name_id", "reason", *(["path"] if request.keep_paths else [])]
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in columns])), table)
    reasons = Counter(r.reason for r in rejected).most_common()
    files = {"rejected.parquet": table.getvalue()}
    publish(request.out, manifest, files, reasons=reasons, sizes=sizes, notes=plan.notes)
    remove(request.out, PARTS)
    return Written(manifest, rejected, plan.notes)


def _fault(request: Request, record: Record) -> str | None:
    """Why an image cannot be read, or None."""
    try:
        _fitted(request, SOURCES[request.source].read(request.folder, record, request.options))
    except (OSError, ValueError) as error:
        return told(error)
    return None
