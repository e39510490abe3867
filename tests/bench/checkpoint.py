"""How long training stands still for a checkpoint, beside one that is written in the midst of it.

A checkpoint every 20 steps of DCGAN at 64x64 (some 40 MB), far more often than anybody would save.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from medgan import config as configs
from medgan.distributed import World
from medgan.folder import RunFolder
from medgan.plan import random_batch
from medgan.state import TrainState, packed
from medgan.step import train_step

EVERY = 20
ROUNDS = 5


def run(scratch: Path) -> Iterator[dict[str, Any]]:
    torch.set_num_threads(1)
    config = configs.load("dcgan", overrides={"precision": "float32", "global_batch": 64})
    config = configs.for_data(config, resolution=64, channels=1, classes=(), manifest_sha256="0")
    state, folder = TrainState.create(config, World()), RunFolder(str(scratch / "run"))
    batch = random_batch(config)
    beside = ThreadPoolExecutor(1)
    writing: list[Future[None]] = []

    def write(snapshot: dict[str, Any]) -> None:
        folder.save_checkpoint(snapshot["images_seen"], packed(snapshot), 2, None)

    def ours() -> None:
        if writing:
            writing.pop().result()
        writing.append(beside.submit(write, state.snapshot()))

    def peer() -> None:
        write(state.snapshot())

    def share(save: Callable[[], None]) -> tuple[float, float]:
        """Of the time of EVERY steps and one save: percent that the save took, and images per second."""
        began = time.perf_counter()
        save()
        stood = time.perf_counter() - began
        for _ in range(EVERY):
            train_step(state, batch)
        took = time.perf_counter() - began
        return 100 * stood / took, EVERY * 64 / took

    for save in (ours, peer):
        share(save)  # warm
    found = [(share(ours), share(peer), share(lambda: None)) for _ in range(ROUNDS)]
    beside.shutdown()
    mine, theirs, speed, without = (
        statistics.median(values) for values in zip(*((a[0], b[0], a[1], c[1]) for a, b, c in found), strict=True)
    )
    yield {"name": "checkpoint/stall", "ours": mine, "peer": theirs, "ratio": theirs / mine, "unit": "% of time"}
    yield {"name": "checkpoint/speed", "ours": speed, "peer": without, "ratio": speed / without, "unit": "img/s"}
