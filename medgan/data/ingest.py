"""Records -> shards, on Ray Data: every shard is one task, so the bytes do not depend on how many workers there are."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray.data

from medgan.data.shards import (
    SPLITS,
    Manifest,
    Shard,
    check_target,
    clear,
    filesystem,
    keyed_id,
    label_counts,
    publish,
    split_patients,
    versions,
    write_shard,
)
from medgan.data.sources import SOURCES, Listing, Options, Raw, Record, SourceError
from medgan.data.sources.base import relabel
from medgan.pixels import Fit, fit_image

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

    @property
    def folder(self) -> Raw:
        return Raw(self.raw or "")


@dataclass(frozen=True)
class Plan:
    """A checked request: every record, its split, and the digest by which an equal request is recognised."""

    request: Request
    key: bytes
    classes: tuple[str, ...]
    records: dict[str, list[Record]]
    rejected: list[dict[str, str]]
    """Name and reason of what was listed and cannot be used."""
    notes: tuple[str, ...]
    digest: str

    @property
    def count(self) -> int:
        return sum(map(len, self.records.values()))


def find(request: Request) -> Listing:
    """List and check the records; nothing is written. Raises SourceError or DataError."""
    source = SOURCES[request.source]
    if source.needs_raw:
        if request.raw is None:
            raise SourceError(f"--source {source.name} reads files: name their folder with --raw")
        fs, path = filesystem(request.raw)
        if fs.get_file_info(path).type != pafs.FileType.Directory:
            raise SourceError(f"--raw {request.raw}: no such folder")
    elif request.raw is not None:
        raise SourceError(f"--raw {request.raw}: --source {source.name} draws its images; leave --raw out")
    found = source.listing(request.folder, request.options)
    if not found.records:
        why = f" ({found.rejected[0][0]}: {found.rejected[0][1]})" if found.rejected else ""
        raise SourceError(f"--raw {request.raw}: no image in it that can be used{why}")
    if source.needs_raw and not any(_decodes(request, record) for record in found.records):
        raise SourceError(f"--raw {request.raw}: none of its {len(found.records)} files is an image that can be read")
    check_target(request.out)
    return found


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
    listing = [[record.name, record.labels, record.patient] for record in found.records]
    asked = [request.source, request.resolution, request.channels, request.fit, request.split, request.rows_per_shard]
    digest = keyed_id(key, json.dumps([asked, asdict(request.options), listing]))
    rejected = [{"name": name, "reason": reason} for name, reason in found.rejected]
    return Plan(request, key, classes, records, rejected, tuple(notes), digest)


def _splits(request: Request, records: Sequence[Record]) -> dict[str, str]:
    """The split of each patient: dealt by ratio, or as published."""
    pairs = [(record.patient, record.labels) for record in records]
    if (request.split or SOURCES[request.source].split) == "ratio":
        return split_patients(pairs, request.options.seed)
    published: dict[str, str] = {}
    for record in records:
        if record.split is None:
            raise SourceError(f"--split published: --source {request.source} publishes none here")
        if published.setdefault(record.patient, record.split) != record.split:
            raise SourceError(
                f"--split published: {record.name} is in {record.split}, and another image of its patient in "
                f"{published[record.patient]}; use --split ratio"
            )
    counts = Counter(record.split for record in records)
    if counts["val"] < SMALL_VAL * counts["train"]:
        own = {patient for patient, split in published.items() if split != "test"}
        dealt = split_patients([pair for pair in pairs if pair[0] in own], request.options.seed, test=False)
        published |= dealt
    return published


def write(plan: Plan, progress: Callable[[int, list[dict[str, str]]], None] = lambda done, rejected: None) -> Manifest:
    """Write every shard, then rejected.parquet, summary.html and last the manifest, without which DATA is no data.

    progress(done, rejected) is called after each shard; rejected lists the name and reason of every file so far.
    Needs a running Ray.
    """
    request, source = plan.request, SOURCES[plan.request.source]
    clear(request.out)
    items = [
        {"split": split, "number": number, "records": records[start : start + request.rows_per_shard]}
        for split, records in plan.records.items()
        for number, start in enumerate(range(0, len(records), request.rows_per_shard))
    ]
    written: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    done = 0
    rejected = list(plan.rejected)
    for result in _on_ray(items, plan):
        written[result["split"]].append(result)
        rejected += result["rejected"]
        done += result["shard"]["rows"] + len(result["rejected"])
        progress(done, rejected)

    splits, counts, patients = {}, {}, {}
    for split, results in written.items():
        results.sort(key=lambda result: result["shard"]["path"])
        splits[split] = [Shard(**result["shard"]) for result in results]
        total: Counter[str] = Counter(dict.fromkeys(plan.classes, 0))
        for result in results:
            total.update(result["counts"])
        counts[split] = dict(total)
        patients[split] = len({patient for result in results for patient in result["patients"]})
    manifest = Manifest(
        source=source.name,
        classes=plan.classes,
        resolution=request.resolution,
        channels=request.channels,
        splits=splits,
        seed=request.options.seed,
        fit=request.fit,
        counts=counts,
        patients=patients,
        rejected=len(rejected),
        key_fingerprint=keyed_id(plan.key, "fingerprint")[:16],
        request=plan.digest,
        versions=versions(),
    )
    # File names hold patient ids: the folder gets keyed ones, the caller the names.
    rows = [{"name_id": keyed_id(plan.key, "name", row["name"]), "reason": row["reason"]} for row in rejected]
    rows.sort(key=lambda row: row["name_id"])
    columns = pa.schema([("name_id", pa.string()), ("reason", pa.string())])
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, columns), table)
    publish(request.out, manifest, {"rejected.parquet": table.getvalue()})
    return manifest


def _on_ray(items: list[dict[str, Any]], plan: Plan) -> Iterator[dict[str, Any]]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False

    def shard(row: dict[str, Any]) -> dict[str, Any]:
        # A result is a pickle: as columns, Arrow would have to guess the type of an empty list.
        return {"result": _write_shard(items[row["item"]], plan)}

    dataset = ray.data.from_items([{"item": index} for index in range(len(items))], override_num_blocks=len(items))
    for row in dataset.map(shard, num_cpus=1).iter_rows():
        yield json.loads(row["result"])


def _write_shard(item: dict[str, Any], plan: Plan) -> str:
    """Read, decode and write one shard; returns what the manifest needs of it, as JSON."""
    request, source = plan.request, SOURCES[plan.request.source]
    pixels, labels, patients, image_ids, rejected = [], [], [], [], []
    for record in item["records"]:
        try:
            content = source.read(request.folder, record, request.options)
            pixels.append(fit_image(source.image(content), request.resolution, request.channels, request.fit))
        except (OSError, ValueError) as error:
            # A message of the operating system holds the path, and so the patient's id.
            reason = (error.strerror or "cannot be read") if isinstance(error, OSError) else str(error)
            rejected.append({"name": record.name, "reason": reason})
            continue
        labels.append([int(index in record.labels) for index in range(len(plan.classes))])
        patients.append(keyed_id(plan.key, source.name, record.patient))
        image_ids.append(keyed_id(plan.key, content))
    shape = (request.channels, request.resolution, request.resolution)
    rows = np.array(pixels, np.uint8).reshape(-1, *shape)
    hot = np.array(labels, np.uint8).reshape(-1, len(plan.classes))
    name = f"{item['split']}/{item['number']:05d}.parquet"
    ids = {"patient": patients, "image_id": image_ids}
    shard = write_shard(request.out, name, rows, hot, plan.classes, ids)
    return json.dumps(
        {
            "split": item["split"],
            "shard": asdict(shard),
            "counts": label_counts(hot, plan.classes),
            "patients": sorted(set(patients)),
            "rejected": rejected,
        }
    )


def _decodes(request: Request, record: Record) -> bool:
    source = SOURCES[request.source]
    try:
        source.image(source.read(request.folder, record, request.options))
    except (OSError, ValueError):
        return False
    return True
