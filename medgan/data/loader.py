"""Shards -> node cache -> batches whose content depends on (seed, images_seen) alone.

One process per node checks the shards and writes a split's pixels into a memory-mapped array below the cache folder;
every worker of the node gathers random rows from it. The page cache is shared, shuffling is perfect, resuming is one
integer, and data larger than memory works.
"""

from __future__ import annotations

import fcntl
import io
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medgan.config import Config
from medgan.data import cache
from medgan.data.shards import (
    DataError,
    Manifest,
    read_manifest,
    read_table,
    shard_labels,
    shard_pixels,
    told,
)
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
    places: np.ndarray | None = None
    """int64 (n,): the place in the batch of generated images beside which D sees each, where it is not its own: in
    private training, where n is drawn too."""


def open_split(data: str | Path, split: str, start: str = "") -> Split:
    """A split as arrays, from the node cache, which is filled first if need be.

    The shards' bytes are checked against the manifest, also where the cache is warm: each time, or once per node for
    all processes that give the same `start`, such as the ranks of a run. Raises DataError.
    """
    manifest, sha256 = read_manifest(data)
    folder = cache.place(sha256[:32])
    pixels, labels = folder / f"{split}.pixels.npy", folder / f"{split}.labels.npy"
    try:
        with open(folder / f"{split}.lock", "a+", opener=cache.closed) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the first process of a node fills or checks, the others wait
            lock.seek(0)
            known = bool(start) and lock.read() == start
            there = labels.exists() and pixels.exists() if known else cache.whole(labels) and cache.whole(pixels)
            if not there:
                _fill(data, manifest, split, pixels, labels)
            elif not known:
                with ThreadPoolExecutor(8) as pool:
                    list(pool.map(partial(read_table, data, manifest), manifest.splits[split]))
            lock.truncate(0)
            lock.write(start)
        cache.sweep()
    except OSError as error:
        why = told(error, str(error))
        size = math.prod((manifest.rows(split), *manifest.shape)) / 1e6
        raise DataError(
            f"cache {folder}: {why}; it needs {size:,.0f} MB for {split}: "
            "set MEDGAN_CACHE to a folder of a disk that has them"
        ) from None
    return Split(np.load(pixels, mmap_mode="r"), np.load(labels), split, folder)


def _fill(data: str | Path, manifest: Manifest, split: str, pixels: Path, labels: Path) -> None:
    found = [np.zeros((0, len(manifest.classes)), np.uint8)]

    def content() -> Iterator[Any]:
        header = io.BytesIO()
        shape = (manifest.rows(split), *manifest.shape)
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        yield header.getbuffer()
        for shard in manifest.splits[split]:
            table = read_table(data, manifest, shard)
            yield shard_pixels(table, manifest.shape).data
            found.append(shard_labels(table, manifest.classes))

    for unfinished in pixels.parent.glob(f"{pixels.name}.*.tmp"):  # of a process that was killed
        unfinished.unlink()
    cache.keep(pixels, content())
    cache.keep_array(labels, np.concatenate(found))


def rank_slice(global_batch: int, group: int, rank: int, world: int) -> slice:
    """The part of a global batch that a rank takes: whole groups, as even as they allow.

    Raises ValueError where there are fewer groups than ranks.
    """
    groups = global_batch // group
    if world > groups:
        raise ValueError(f"global_batch={global_batch} has {groups} groups of {group}: too few for {world} workers")
    return slice(groups * rank // world * group, groups * (rank + 1) // world * group)


def rank_rows(config: Config, rank: int, world: int) -> list[np.ndarray]:
    """Places in a global batch, int64, that a rank takes of each of its optim.accumulation pieces; see `rank_slice`."""
    size = config.global_batch // config.optim.accumulation
    part = rank_slice(size, config.sample_group, rank, world)
    return [np.arange(start + part.start, start + part.stop) for start in range(0, config.global_batch, size)]


class Order:
    """Which row comes when: a function of (seed, images_seen) alone.

    labels: uint8 (N, K). An epoch has N places. With balance 0 every row comes once in it. With more, rows of rare
    classes come more often: a class's share of an epoch goes with its frequency to the power 1 - balance, so that at
    1 all classes are equally frequent. Each row then comes floor or ceil of its expected number of times.
    """

    def __init__(self, labels: np.ndarray, seed: int, balance: float = 0.0) -> None:
        self.seed, self.rows = seed, len(labels)
        self.weights = row_weights(labels, balance) if balance and labels.shape[1] else None
        self.epoch = lru_cache(maxsize=2)(self._epoch)

    def _epoch(self, epoch: int) -> np.ndarray:
        random = np.random.default_rng(stream_seed(self.seed, "epoch", epoch))
        order = random.permutation(self.rows)
        if self.weights is None:
            return order
        # Systematic resampling: one offset, then every whole step of the summed weights picks a row. Sorted by
        # weight, so that each class gets its share to within one row.
        order = order[np.argsort(self.weights[order], kind="stable")]
        steps = np.cumsum(self.weights[order]) * (self.rows / self.weights.sum())
        picks = np.searchsorted(steps, np.arange(self.rows) + random.random())
        return random.permutation(order[np.minimum(picks, self.rows - 1)])

    def batch(self, images_seen: int, global_batch: int) -> np.ndarray:
        """Row numbers of the global batch that starts at images_seen: int64 (global_batch,). It may straddle epochs."""
        positions = np.arange(images_seen, images_seen + global_batch)
        chosen = np.empty(global_batch, np.int64)
        for epoch in range(positions[0] // self.rows, positions[-1] // self.rows + 1):
            here = positions // self.rows == epoch
            chosen[here] = self.epoch(int(epoch))[positions[here] % self.rows]
        return chosen


def row_weights(labels: np.ndarray, balance: float) -> np.ndarray:
    """How often each row should come, relative to others: float64 (N,).

    Each class, and having none, weighs its frequency to the power -balance; a row of several the mean of theirs.
    """
    hot = np.concatenate([labels, ~labels.any(1, keepdims=True)], 1).astype(float)
    of_class = np.maximum(hot.mean(0), 1 / len(hot)) ** -balance
    weights: np.ndarray = hot @ of_class / hot.sum(1)
    return weights


def batches(
    split: Split, order: Order, images_seen: int, global_batch: int, part: slice | np.ndarray
) -> Iterator[Batch]:
    """What a rank takes of the global batches from images_seen on, without end. part: places in the global batch."""
    while True:
        rows = order.batch(images_seen, global_batch)[part]
        yield Batch(
            torch.from_numpy(split.pixels[rows]),
            torch.from_numpy(split.labels[rows].astype(np.float32)),
            rows,
        )
        images_seen += global_batch
