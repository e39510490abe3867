"""Random batches from the node cache, beside torchvision's ImageFolder and DataLoader on JPEG files of that size."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Grayscale, PILToTensor

from medgan.data import phantom, shards, summary
from medgan.data.loader import Order, batches, open_split
from medgan.pixels import fit_image

BATCH = 64
ROUNDS = 5
ROWS = {64: 20_000, 256: 4_000}
FILES = 2_000
START = 100_000
WORKERS = 4
CLASSES = phantom.CLASSES


def films(resolution: int, count: int) -> np.ndarray:
    """Drawn films, uint8 (count, 1, R, R): 64 of them, again and again in other order of rows."""
    drawn = [Image.fromarray(phantom.chest_film(0, number, 0, number % 2)) for number in range(64)]
    few = np.stack([fit_image(image, resolution, 1) for image in drawn])
    return np.stack([np.roll(few[number % 64], number // 64, 1) for number in range(count)])


def write(folder: Path, resolution: int, count: int) -> Path:
    written = []
    for number, start in enumerate(range(0, count, 1024)):
        pixels = films(resolution, min(1024, count - start))
        labels = np.eye(2, dtype=np.uint8)[np.arange(len(pixels)) % 2]
        ids = {name: [f"{start + row}" for row in range(len(pixels))] for name in ("patient", "image_id")}
        written.append(shards.write_shard(folder, f"train/{number:05d}.parquet", pixels, labels, CLASSES, ids))
    summary.publish(folder, shards.Manifest("bench", CLASSES, resolution, 1, {"train": written}))
    return folder


def ours(data: Path) -> Iterator[torch.Tensor]:
    split = open_split(data, "train")
    for batch in batches(split, Order(split.labels, 0), 0, BATCH, slice(0, BATCH)):
        yield batch.pixels


def peer(folder: Path) -> Iterator[torch.Tensor]:
    dataset = ImageFolder(str(folder), Compose([Grayscale(), PILToTensor()]))
    while True:
        yield from (images for images, _ in DataLoader(dataset, BATCH, shuffle=True))


def speed(source: Iterator[torch.Tensor], seconds: float) -> float:
    """Images per second, the first batch left out."""
    next(source)
    began, seen = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        seen += len(next(source))
    return seen / (time.perf_counter() - began)


def random_batches(scratch: Path, resolution: int) -> dict[str, Any]:
    data = write(scratch / f"data{resolution}", resolution, ROWS[resolution])
    for number, image in enumerate(films(resolution, FILES)):
        file = scratch / f"jpeg{resolution}" / CLASSES[number % 2] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(file, quality=90)
    readers = ours(data), peer(scratch / f"jpeg{resolution}")
    found = [[speed(reader, 1.0) for reader in readers] for _ in range(ROUNDS)]
    mine, theirs = (statistics.median(values) for values in zip(*found, strict=True))
    ratio = statistics.median(a / b for a, b in found)
    return {"name": f"loader/{resolution}", "ours": mine, "peer": theirs, "ratio": ratio, "unit": "img/s"}


def start(scratch: Path) -> dict[str, Any]:
    """Seconds from nothing in the cache to the first batch of 100,000 images, beside the 5 s that it may take."""
    data = write(scratch / "many", 64, START)
    began = time.perf_counter()
    next(ours(data))
    took = time.perf_counter() - began
    return {"name": "loader/start", "ours": took, "peer": 5.0, "ratio": 5.0 / took, "unit": "s"}


READER = """
import sys, time
from medgan.data.loader import open_split
def own():
    parts = dict(line.split(":") for line in open("/proc/self/smaps_rollup").read().splitlines()[1:])
    return int(parts["Pss"].split()[0]) / 1024
before = own()
split = open_split(sys.argv[1], "train")
total = sum(int(split.pixels[first : first + 1024].sum()) for first in range(0, len(split), 1024))
print("ready", flush=True)
sys.stdin.readline()
print(own() - before, flush=True)
sys.stdin.readline()
"""


def memory(scratch: Path) -> dict[str, Any]:
    """MB that the workers of a node hold of the data together, beside what one holds alone."""
    data = write(scratch / "memory", 64, 100_000)

    def held(workers: int) -> float:
        started = [
            subprocess.Popen(
                [sys.executable, "-c", READER, str(data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for _ in range(workers)
        ]
        for _ in range(2):
            lines = []
            for process in started:
                assert process.stdout is not None
                lines.append(process.stdout.readline())
            for process in started:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
        for process in started:
            process.communicate()
        return sum(map(float, lines))

    one, many = held(1), held(WORKERS)
    return {"name": "loader/memory", "ours": many, "peer": one, "ratio": one / many, "unit": f"MB of {WORKERS} and 1"}


def run(scratch: Path) -> Iterator[dict[str, Any]]:
    os.environ["MEDGAN_CACHE"] = str(scratch / "cache")
    torch.set_num_threads(1)
    yield random_batches(scratch, 64)
    yield random_batches(scratch, 256)
    yield start(scratch)
    yield memory(scratch)
