"""How busy a search keeps the cores, beside a shell loop that gives the same trainings to jobs/train.py, two at a time.

Busy is the processor time of all the processes of a search over cores times seconds, from the first trial's start to
the last one's end. The machine must be otherwise idle.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medgan.folder import SearchFolder

ROOT = Path(__file__).resolve().parents[2]
TRIALS = 6
IMAGES = 60_000
FIXED = {
    "total_images": IMAGES,
    "model.width": 32,
    "model.max_width": 128,
    "global_batch": 64,
    "evaluate.n": 128,
    "evaluate.interval_kimg": IMAGES / 3000,
    "checkpoint.interval_kimg": IMAGES / 3000,
    "tracking.wandb": "disabled",
}


class Watch(threading.Thread):
    """Processor seconds of all processes that carry a mark in their environment, sampled until stopped."""

    def __init__(self, mark: str) -> None:
        super().__init__(daemon=True)
        self.mark, self.spent, self.ended = mark.encode(), dict[int, float](), threading.Event()
        self.marked: dict[int, bool] = {}

    def run(self) -> None:
        tick = os.sysconf("SC_CLK_TCK")
        while not self.ended.wait(0.2):
            for entry in Path("/proc").glob("[0-9]*"):
                pid = int(entry.name)
                try:
                    if pid not in self.marked:
                        self.marked[pid] = self.mark in (entry / "environ").read_bytes()
                    if self.marked[pid]:
                        fields = (entry / "stat").read_text().rpartition(")")[2].split()
                        self.spent[pid] = (int(fields[11]) + int(fields[12])) / tick
                except OSError:
                    continue  # it has ended

    @property
    def seconds(self) -> float:
        return sum(self.spent.values())


def call(mark: str, *words: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "MEDGAN_BENCH_MARK": mark, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def searched(data: Path, out: Path) -> tuple[float, float]:
    """Busy share and images per second of a search."""
    mark = uuid.uuid4().hex
    watch = Watch(mark)
    fixed = [word for key, value in FIXED.items() for word in ("--set", f"{key}={value}")]
    kind = ("--algorithm", "random", "--scheduler", "none", "--finalists", 0, "--space", "model.name=cgan")
    process = call(mark, "jobs/search.py", "--data", data, "--out", out, "--trials", TRIALS, *kind, *fixed)
    folder = SearchFolder(str(out))
    while process.poll() is None and not (out / "trials").exists():
        time.sleep(0.1)
    began = time.monotonic()
    watch.start()
    while process.poll() is None and not ended(folder):
        time.sleep(0.1)
    wall, spent = time.monotonic() - began, watch.seconds
    process.wait()
    watch.ended.set()
    if process.returncode:
        raise SystemExit(f"the search ended with {process.returncode}")
    images = sum(record["images_seen"] for record in folder.trials())
    return spent / wall / (os.cpu_count() or 1), images / wall


def ended(folder: SearchFolder) -> bool:
    records = folder.trials()
    return len(records) == TRIALS and all(record["status"] in ("done", "failed") for record in records)


def looped(data: Path, found: SearchFolder, out: Path) -> tuple[float, float]:
    """The same of a loop that starts a training whenever one of two ended."""
    mark = uuid.uuid4().hex
    watch = Watch(mark)
    runs = [f"{found.location}/trials/{record['run']}/config.yaml" for record in found.trials()]
    waiting, running = list(enumerate(runs)), list[subprocess.Popen[bytes]]()
    began = time.monotonic()
    watch.start()
    while waiting or running:
        running = [process for process in running if process.poll() is None]
        while waiting and len(running) < (os.cpu_count() or 1):
            number, config = waiting.pop(0)
            words = ("--config", config, "--data", data, "--out", out / str(number), "--workers", 1)
            running.append(call(mark, "jobs/train.py", *words))
        time.sleep(0.1)
    wall, spent = time.monotonic() - began, watch.seconds
    watch.ended.set()
    return spent / wall / (os.cpu_count() or 1), TRIALS * IMAGES / wall


def run(scratch: Path) -> Iterator[dict[str, Any]]:
    data = scratch / "data"
    prepare = ("--source", "phantom_cxr", "--limit", 1000, "--out", data, "--resolution", 32)
    if call("", "jobs/prepare.py", *prepare).wait():
        raise SystemExit("the films could not be prepared")
    busy, pace = searched(data, scratch / "search")
    loop_busy, loop_pace = looped(data, SearchFolder(str(scratch / "search")), scratch / "loop")
    yield {"name": "search/busy", "ours": 100 * busy, "peer": 100 * loop_busy, "ratio": busy / loop_busy, "unit": "%"}
    yield {"name": "search/images", "ours": pace, "peer": loop_pace, "ratio": pace / loop_pace, "unit": "img/s"}
