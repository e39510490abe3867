"""Images per second of more workers beside fewer: DCGAN at 64x64, global batch 128, every worker one thread.

All of it in one run, in turns: one and two workers of this machine, two halves that do not know of each other (what the
machine gives at most), options of how gradients travel, and three workers on three hosts of cluster/hosts.py beside
three of this machine. results/scaling.json keeps what the capacity plan's
formula is held against.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cluster.hosts import Hosts, why_not
from medgan import config as configs
from medgan.config import Config
from medgan.data.loader import Batch, rank_slice
from medgan.distributed import World, leave
from medgan.plan import gradient_bytes, random_batch
from medgan.ray_connect import interface_of
from medgan.state import TrainState
from medgan.step import train_step

ROOT = Path(__file__).parents[2]
GLOBAL_BATCH = 128
ROUNDS = 3
STEPS = 3
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bucket1": {"optim.bucket_mb": 1.0},
    "bucket100": {"optim.bucket_mb": 100.0},
    "bfloat16": {"optim.compression": "bfloat16"},
}


def config_of(option: str) -> Config:
    overrides = {"global_batch": GLOBAL_BATCH, "precision": "float32", **OPTIONS[option]}
    config = configs.load("dcgan", overrides=overrides)
    return configs.for_data(config, resolution=64, channels=1, classes=(), manifest_sha256="0")


def worker(rank: int, size: int, address: str, port: int, options: list[str]) -> None:
    """Join the others; at rank 0 print a JSON line of seconds per step and per sum of the gradients, per option."""
    torch.set_num_threads(1)
    if size > 1:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
            route.connect((address, port))  # sends nothing; says from which of our addresses it would
            os.environ["GLOO_SOCKET_IFNAME"] = str(interface_of(route.getsockname()[0]))
        store = dist.TCPStore(address, port, size, is_master=rank == 0, timeout=timedelta(seconds=60))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    world, found = World.current(), {}
    for option in options:
        config = config_of(option)
        state = TrainState.create(config, world)
        whole, part = random_batch(config), rank_slice(GLOBAL_BATCH, config.sample_group, rank, size)
        batch = Batch(whole.pixels[part], whole.labels[part], whole.rows[part])
        train_step(state, batch)
        began = time.perf_counter()
        for _ in range(STEPS):
            train_step(state, batch)
        found[option] = {"step_s": (time.perf_counter() - began) / STEPS}
        if size > 1:
            gradients = torch.zeros(gradient_bytes(config) // 4)
            dist.all_reduce(gradients)
            began = time.perf_counter()
            for _ in range(STEPS):
                dist.all_reduce(gradients)
            found[option]["sum_s"] = (time.perf_counter() - began) / STEPS
    if rank == 0:
        print(json.dumps(found), flush=True)
    if size > 1:
        del state
        dist.barrier()
    leave()


def together(size: int, port: int, options: list[str], hosts: Hosts | None = None) -> dict[str, dict[str, float]]:
    """What so many workers find, on this machine or one on each host."""
    address = hosts.address("host1") if hosts else "127.0.0.1"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = []
    for rank in range(size):
        command = [sys.executable, "-m", "tests.bench.scaling", str(rank), str(size), address, str(port), *options]
        if hosts:
            inside = hosts.on(f"host{rank + 1}", ["env", f"PYTHONPATH={ROOT}", "OMP_NUM_THREADS=1", *command])
            command = inside
        processes.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    failed = [process.returncode for process in processes if process.returncode]
    if failed:
        raise RuntimeError(f"a worker of {size} ended with {failed[0]}")
    return json.loads(outputs[0])  # type: ignore[no-any-return]


@contextmanager
def three_hosts(folder: Path) -> Iterator[Hosts | None]:
    """Hosts without Ray; None where they cannot be had."""
    if why_not():
        yield None
        return
    hosts = Hosts(folder)
    try:
        hosts.up(3, ray=False)
        yield hosts
    finally:
        hosts.down()


def run(scratch: Path) -> Iterator[dict[str, Any]]:
    runs: list[dict[str, Any]] = []
    with three_hosts(scratch / "hosts") as hosts:
        for number in range(ROUNDS):
            port = 29600 + 10 * number
            one, two = together(1, port, ["plain"]), together(2, port + 1, list(OPTIONS))
            with ThreadPoolExecutor(2) as pool:  # they wait for processes
                halves = list(pool.map(lambda port: together(1, port, ["plain"])["plain"], (port + 4, port + 5)))
            three, apart = together(3, port + 2, ["plain"]), None
            if hosts:
                apart = together(3, port + 3, ["plain"], hosts)
            strangers = {"plain": {"step_s": 1 / sum(1 / half["step_s"] for half in halves)}}
            runs.append({"one": one, "two": two, "strangers": strangers, "three": three, "apart": apart})

    def speed(size: str, option: str = "plain") -> list[float]:
        return [GLOBAL_BATCH / run[size][option]["step_s"] for run in runs]

    def row(name: str, ours: list[float], peer: list[float]) -> dict[str, Any]:
        ratio = statistics.median(a / b for a, b in zip(ours, peer, strict=True))
        return {
            "name": f"scaling/{name}",
            "ours": statistics.median(ours),
            "peer": statistics.median(peer),
            "ratio": ratio,
            "unit": "img/s",
        }

    yield row("2workers", speed("two"), speed("one"))
    yield row("2strangers", speed("strangers"), speed("one"))
    if hosts:
        yield row("3hosts", speed("apart"), speed("three"))
    for option in list(OPTIONS)[1:]:
        yield row(option, speed("two", option), speed("two"))
    weight = gradient_bytes(config_of("plain"))
    yield {
        "name": "scaling/bytes",
        "ours": weight / 1e6,
        "peer": gradient_bytes(config_of("bfloat16")) / 1e6,
        "ratio": gradient_bytes(config_of("bfloat16")) / weight,
        "unit": "MB a step",
    }
    (ROOT / "results/scaling.json").write_text(
        json.dumps(
            {
                "global_batch": GLOBAL_BATCH,
                "gradient_bytes": weight,
                "command": "make bench ONLY=scaling",
                "hardware": f"{os.cpu_count()} CPU cores, one thread a worker, float32, gloo on loopback",
                "runs": [
                    {
                        "step_s": {"1": run["one"]["plain"]["step_s"], "2": run["two"]["plain"]["step_s"]},
                        "sum_s": run["two"]["plain"]["sum_s"],
                    }
                    for run in runs
                ],
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("rank", "size"):
        parser.add_argument(name, type=int)
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("options", nargs="+")
    args = parser.parse_args()
    worker(args.rank, args.size, args.address, args.port, args.options)
