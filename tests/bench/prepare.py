"""Preparing JPEG films of a hospital's size, beside a bare loop of Pillow that decodes and resizes them.

What a second core is worth is a matter of the machine too: two bare loops beside each other say how much there is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import ray
from PIL import Image

from medgan.data import ingest, phantom
from medgan.data.sources import Options

COUNT = 6_000
SIZE = (1300, 1000)
RESOLUTION = 64
ROUNDS = 2


def write(folder: Path) -> list[Path]:
    """Films as Kermany's are: 1300 x 1000 pixels, grey JPEG, each with noise of its own."""
    files = []
    random = np.random.default_rng(0)
    for number in range(COUNT):
        film = Image.fromarray(phantom.chest_film(0, number, 0, number % 2)).resize(SIZE, Image.Resampling.BICUBIC)
        noise = random.integers(-6, 7, (SIZE[1] // 2, SIZE[0] // 2)).repeat(2, 0).repeat(2, 1)
        file = folder / phantom.CLASSES[number % 2] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(np.asarray(film) + noise, 0, 255).astype(np.uint8)).save(file, quality=88)
        files.append(file)
    return files


def bare(files: list[Path]) -> float:
    """Images per second of one process."""
    began = time.perf_counter()
    for file in files:
        with Image.open(file) as image:
            side = min(image.size)
            left, top = (image.width - side) / 2, (image.height - side) / 2
            box = (left, top, left + side, top + side)
            np.asarray(image.convert("L").resize((RESOLUTION, RESOLUTION), Image.Resampling.LANCZOS, box=box))
    return len(files) / (time.perf_counter() - began)


def both(files: list[Path]) -> float:
    """Images per second of two such loops beside each other."""
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        list(pool.map(bare, [files[:2], files[:2]]))  # they have started
        began = time.perf_counter()
        list(pool.map(bare, [files[::2], files[1::2]]))
        return len(files) / (time.perf_counter() - began)


def prepared(raw: Path, out: Path, limit: int | None = None) -> float:
    """Images per second from the start of writing to the manifest, on the Ray that runs."""
    request = ingest.Request(
        "image_folder", str(raw), str(out), RESOLUTION, options=Options(limit=limit), rows_per_shard=100
    )
    plan = ingest.plan(request, ingest.find(request), bytes(32))
    began = time.perf_counter()
    ingest.write(plan)
    return plan.count / (time.perf_counter() - began)


def run(scratch: Path) -> Iterator[dict[str, Any]]:
    files = write(scratch / "raw")
    found: dict[int, list[float]] = {1: [], 2: []}
    loop, loops = [], []
    for number in range(ROUNDS):
        loop.append(bare(files[: COUNT // 2]))
        loops.append(both(files[: COUNT // 2]))
        for cpus in found:
            ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False)
            try:
                prepared(
                    scratch / "raw", scratch / f"warm{cpus}-{number}", limit=200
                )  # workers import their packages once
                found[cpus].append(prepared(scratch / "raw", scratch / f"out{cpus}-{number}"))
            finally:
                ray.shutdown()

    def row(name: str, ours: list[float], peer: list[float]) -> dict[str, Any]:
        ratio = statistics.median(a / b for a, b in zip(ours, peer, strict=True))
        made = {"ours": statistics.median(ours), "peer": statistics.median(peer), "ratio": ratio}
        return {"name": f"prepare/{name}", **made, "unit": "img/s"}

    yield row("core", found[1], loop)
    yield row("scaling", found[2], found[1])
    yield row("2cores", found[2], loops)
    yield row("bare2cores", loops, loop)
