"""Records -> shards, on Ray Data: every shard is one task, so the bytes do not depend on how many workers there are."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from medgan.data.shards import (
    SPLITS,
    Manifest,
    Shard,
    check_target,
    clear,
    keyed_id,
    label_counts,
    publish,
    split_patients,
    versions,
    write_shard,
)
from medgan.data.sources import SOURCES, Record, SourceError
from medgan.pixels import Fit, decode


@dataclass(frozen=True)
class Request:
    """What prepare was asked for."""

    source: str
    raw: Path | None
    out: str
    resolution: int
    channels: int = 1
    seed: int = 0
    fit: Fit = "crop"
    limit: int | None = None
    rows_per_shard: int = 1024


@dataclass(frozen=True)
class Plan:
    """A checked request: every record, its split, and the digest by which an equal request is recognised."""

    request: Request
    key: bytes
    records: dict[str, list[Record]]
    digest: str

    @property
    def count(self) -> int:
        return sum(map(len, self.records.values()))


def find(request: Request) -> list[Record]:
    """List and check the records; nothing is written. Raises SourceError or DataError."""
    source = SOURCES[request.source]
    if source.needs_raw:
        if request.raw is None:
            raise SourceError(f"--source {source.name} reads files: name their folder with --raw")
        if not request.raw.is_dir():
            raise SourceError(f"--raw {request.raw}: no such folder")
    elif request.raw is not None:
        raise SourceError(f"--raw {request.raw}: --source {source.name} draws its images; leave --raw out")
    found = list(source.records(request.raw, request.seed, request.limit))
    if not found:
        raise SourceError(f"--raw {request.raw}: the class folders are empty")
    if source.needs_raw and not any(_decodes(request, record) for record in found):
        raise SourceError(f"--raw {request.raw}: none of its {len(found)} files is an image that can be read")

    check_target(request.out)
    return found


def plan(request: Request, found: list[Record], key: bytes) -> Plan:
    """Split and order what `find` found; nothing is written."""
    split_of = split_patients(((record.patient, record.labels) for record in found), request.seed)
    records: dict[str, list[Record]] = {split: [] for split in SPLITS}
    # A keyed order: shards mix the classes, and the order tells nothing about patients.
    for record in sorted(found, key=lambda record: keyed_id(key, "order", record.name)):
        records[split_of[record.patient]].append(record)
    listing = [[record.name, record.labels, record.patient] for record in found]
    asked = [request.source, request.resolution, request.channels, request.seed, request.fit, request.rows_per_shard]
    digest = keyed_id(key, json.dumps([asked, listing]))
    return Plan(request, key, records, digest)


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
    rejected: list[dict[str, str]] = []
    for result in _on_ray(items, plan):
        written[result["split"]].append(result)
        rejected += result["rejected"]
        done += result["shard"]["rows"] + len(result["rejected"])
        progress(done, rejected)

    splits, counts, patients = {}, {}, {}
    for split, results in written.items():
        results.sort(key=lambda result: result["shard"]["path"])
        splits[split] = [Shard(**result["shard"]) for result in results]
        total: Counter[str] = Counter(dict.fromkeys(source.classes, 0))
        for result in results:
            total.update(result["counts"])
        counts[split] = dict(total)
        patients[split] = len({patient for result in results for patient in result["patients"]})
    manifest = Manifest(
        source=source.name,
        classes=source.classes,
        resolution=request.resolution,
        channels=request.channels,
        splits=splits,
        seed=request.seed,
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
            content = source.read(request.raw, request.seed, record)
            pixels.append(decode(content, request.resolution, request.channels, request.fit))
        except (OSError, ValueError) as error:
            # A message of the operating system holds the path, and so the patient's id.
            reason = (error.strerror or "cannot be read") if isinstance(error, OSError) else str(error)
            rejected.append({"name": record.name, "reason": reason})
            continue
        labels.append([int(index in record.labels) for index in range(len(source.classes))])
        patients.append(keyed_id(plan.key, source.name, record.patient))
        image_ids.append(keyed_id(plan.key, content))
    shape = (request.channels, request.resolution, request.resolution)
    rows = np.array(pixels, np.uint8).reshape(-1, *shape)
    hot = np.array(labels, np.uint8).reshape(-1, len(source.classes))
    name = f"{item['split']}/{item['number']:05d}.parquet"
    ids = {"patient": patients, "image_id": image_ids}
    shard = write_shard(request.out, name, rows, hot, source.classes, ids)
    return json.dumps(
        {
            "split": item["split"],
            "shard": asdict(shard),
            "counts": label_counts(hot, source.classes),
            "patients": sorted(set(patients)),
            "rejected": rejected,
        }
    )


def _decodes(request: Request, record: Record) -> bool:
    try:
        decode(SOURCES[request.source].read(request.raw, request.seed, record), 32, 1)
    except (OSError, ValueError):
        return False
    return True
