"""Shards -> node cache -> batches whose content depends on (seed, images_seen) alone.

One process per node checks the shards and writes a split's pixels into a memory-mapped array below the cache folder;
every worker of the node gathers random rows from it. The page cache is shared, shuffling is perfect, resuming is one
integer, and data larger than memory works.
"""

from __future__ import annotations

import fcntl
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from medgan.data.shards import Manifest, read_manifest, read_shard, shard_labels, shard_pixels, write_file
from medgan.streams import stream_seed


@dataclass(frozen=True)
class Split:
    """One split in the node cache. pixels: uint8 (N, C, R, R), memory-mapped; labels: uint8 (N, K)."""

    pixels: np.ndarray
    labels: np.ndarray
    name: str
    cache: Path
    """Where the node keeps what is derived from this DATA: one folder per manifest."""

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class Batch:
    """A rank's slice of a global batch. pixels: uint8 (n, C, R, R); labels: float32 (n, K); rows: int64 (n,)."""

    pixels: Tensor
    labels: Tensor
    rows: np.ndarray


def cache_folder() -> Path:
    """Node-local folder for caches: $MEDGAN_CACHE, or ~/.cache/medgan."""
    return Path(os.environ.get("MEDGAN_CACHE") or "~/.cache/medgan").expanduser()


def open_split(data: str | Path, split: str) -> Split:
    """A split as arrays, from the node cache, which is filled first if need be.

    The shards' bytes are checked against the manifest each time, also where the cache is warm. Raises DataError.
    """
    manifest, sha256 = read_manifest(data)
    folder = cache_folder() / sha256[:32]
    folder.mkdir(parents=True, exist_ok=True)
    pixels, labels = folder / f"{split}.pixels.npy", folder / f"{split}.labels.npy"
    with open(folder / f"{split}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the first process of a node fills, the others wait
        if labels.exists() and pixels.exists():
            for shard in manifest.splits[split]:
                read_shard(data, shard)
        else:
            _fill(data, manifest, split, pixels, labels)
    return Split(np.load(pixels, mmap_mode="r"), np.load(labels), split, folder)


def _fill(data: str | Path, manifest: Manifest, split: str, pixels: Path, labels: Path) -> None:
    count = manifest.rows(split)
    unfinished = pixels.with_suffix(".tmp")
    target = np.lib.format.open_memmap(unfinished, "w+", np.uint8, (count, *manifest.shape))
    found = np.zeros((count, len(manifest.classes)), np.uint8)
    start = 0
    for shard in manifest.splits[split]:
        table = pq.read_table(pa.BufferReader(read_shard(data, shard)))
        target[start : start + shard.rows] = shard_pixels(table, manifest.shape)
        found[start : start + shard.rows] = shard_labels(table, manifest.classes)
        start += shard.rows
    target.flush()
    del target
    unfinished.replace(pixels)
    keep_array(labels, found)


def keep_array(file: Path, array: np.ndarray) -> None:
    """An array as a file of the cache: complete or not there."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_file(file.parent, file.name, buffer.getvalue())


def rank_slice(global_batch: int, group: int, rank: int, world: int) -> slice:
    """The part of a global batch that a rank takes: whole groups, as even as they allow.

    Raises ValueError where there are fewer groups than ranks.
    """
    groups = global_batch // group
    if world > groups:
        raise ValueError(f"global_batch={global_batch} has {groups} groups of {group}: too few for {world} workers")
    return slice(groups * rank // world * group, groups * (rank + 1) // world * group)


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, rows: int) -> np.ndarray:
    return np.random.default_rng(stream_seed(seed, "epoch", epoch)).permutation(rows)


def batch_rows(seed: int, images_seen: int, global_batch: int, rows: int) -> np.ndarray:
    """Row numbers of the global batch that starts at images_seen: int64 (global_batch,).

    Every row comes once per epoch; a batch may straddle two epochs.
    """
    positions = np.arange(images_seen, images_seen + global_batch)
    chosen = np.empty(global_batch, np.int64)
    for epoch in range(positions[0] // rows, positions[-1] // rows + 1):
        here = positions // rows == epoch
        chosen[here] = _epoch_order(seed, int(epoch), rows)[positions[here] % rows]
    return chosen


def batches(split: Split, seed: int, images_seen: int, global_batch: int, part: slice) -> Iterator[Batch]:
    """This rank's slices of the global batches from images_seen on, without end."""
    while True:
        rows = batch_rows(seed, images_seen, global_batch, len(split))[part]
        yield Batch(
            torch.from_numpy(split.pixels[rows]),
            torch.from_numpy(split.labels[rows].astype(np.float32)),
            rows,
        )
        images_seen += global_batch
