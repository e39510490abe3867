"""The seam to Ray: connect to a cluster, and one training run as a TorchTrainer job.

Ray owns placement, process groups and restarts. What a run is lies in its own folder: after a restart every rank
reads the newest checkpoint there, so nothing of Ray's is needed to go on.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray
from ray.util.queue import Empty, Queue

from medgan.config import Refused
from medgan.data.shards import filesystem

Event = dict[str, Any]


def connect(verbose: bool = False) -> dict[str, float]:
    """Join the cluster that RAY_ADDRESS names or that runs on this host, or start one here; returns its resources.

    Ray's own messages stay quiet unless verbose. Raises Refused where nobody answers at RAY_ADDRESS.
    """
    if not ray.is_initialized():
        level = logging.INFO if verbose else logging.ERROR
        common: dict[str, Any] = {"log_to_driver": verbose, "logging_level": level}
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        for name in ("ray.data", "ray.train"):
            logging.getLogger(name).setLevel(level)
        address = cluster_address()
        if address == "local":
            common |= {"include_dashboard": False, "object_store_memory": 256 * 2**20}
        ray.init(address=address, **common)
    return dict(ray.cluster_resources())


def hosts() -> int:
    """How many hosts the cluster has that this process joined."""
    return sum(node["Alive"] for node in ray.nodes())


def cluster_address(note: Path | None = None) -> str:
    """RAY_ADDRESS, or the head that `ray start` noted on this host if it still answers, or `local`.

    Ray's own `auto` also joins another user's private instance, and waits for minutes where a head died and left its
    note behind. Raises Refused where nobody answers at RAY_ADDRESS.
    """
    named = os.environ.get("RAY_ADDRESS", "")
    if named and named not in ("auto", "local") and "://" not in named:
        if not _answers(named):
            raise Refused(f"RAY_ADDRESS={named}: nobody answers there; start the head, or unset it to run here")
        return named
    if named and named != "auto":
        return named
    note = note or Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray/ray_current_cluster"
    noted = note.read_text().strip() if note.exists() else ""
    return noted if noted and _answers(noted) else "local"


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return True
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class Workers:
    """How many training workers: a number, or a range within which the run grows and shrinks with the cluster."""

    low: int
    high: int

    @staticmethod
    def parse(text: str) -> Workers:
        """'2' or '1-3'. Raises ValueError."""
        low, dash, high = text.partition("-")
        if not low.isdigit() or (dash and not high.isdigit()):
            raise ValueError(f"--workers {text}: give a number such as 2, or a range such as 1-3")
        workers = Workers(int(low), int(high or low))
        if not 1 <= workers.low <= workers.high:
            raise ValueError(f"--workers {text}: must be at least 1, and a range must not fall")
        return workers

    @staticmethod
    def default(resources: dict[str, float]) -> Workers:
        """Every GPU of the cluster, or min(2, CPUs) where there is none."""
        count = int(resources.get("GPU", 0)) or max(1, min(2, int(resources.get("CPU", 0))))
        return Workers(count, count)


@dataclass
class Outcome:
    """How a run ended: the last event of each kind (`done`, `stopped`, or `failed` with a reason), or Ray's error."""

    events: dict[str, Event] = field(default_factory=dict)
    error: str | None = None


def fit(
    config: dict[str, Any],
    data: str,
    out: str,
    workers: Workers,
    on_event: Callable[[Event], None],
    init: str | None = None,
    max_failures: int = 3,
    interrupt: Interrupt | None = None,
) -> Outcome:
    """Train on the connected cluster until done; on_event is called here, in the driver, with what rank 0 says.

    config: a validated config as plain types. A worker or host that dies is replaced, and the run goes on from the
    newest checkpoint in `out`, up to max_failures times. interrupt: what asks the run to stop; Ctrl-C and SIGTERM if
    none is given. Workers(0, 0) trains in this process.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = ray.cluster_resources().get("GPU", 0) > 0
    outcome = Outcome()
    queue, orders = Queue(actor_options={"num_cpus": 0}), Queue(actor_options={"num_cpus": 0})
    # Ray keeps notes of its own about a run; all that matters is in `out`, so they are thrown away.
    notes = f"{out}/.ray"
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"config": config, "data": data, "out": out, "queue": queue, "orders": orders, "init": init},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers.low if workers.low == workers.high else (workers.low, workers.high), use_gpu=gpu
        ),
        run_config=RunConfig(
            name=f"medgan-{os.getpid()}",
            storage_path=notes,
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    )
    training, interrupt, told = Training(trainer), interrupt or Interrupt(), False
    training.start()
    with interrupt:
        while (event := _next(queue)) or training.is_alive():
            if interrupt.asked and not told:
                told = True
                on_event({"event": "stopping"})
                orders.put("stop")
            if event:
                outcome.events[event["event"]] = event
                on_event(event)
    training.join()
    fs, path = filesystem(notes)
    if fs.get_file_info(path).type == pafs.FileType.Directory:
        fs.delete_dir(path)
    outcome.error = training.error
    return outcome


def _next(queue: Queue) -> Event | None:
    """The next event, or None after half a second without one."""
    try:
        return queue.get(timeout=0.5)
    except Empty:
        return None


class Interrupt:
    """Within it, the first Ctrl-C or SIGTERM is only noted, and a second one ends the process at once.

    An exception raised in the midst of one of Ray's calls can end the process without a word.
    """

    def __init__(self) -> None:
        self.asked = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self._note)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.asked:
            os._exit(128 + number)
        self.asked = True


class Training(threading.Thread):
    """trainer.fit in a thread of its own, so that Ctrl-C stays ours: in the main thread Ray takes it and exits 0."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(daemon=True)
        self.trainer = trainer
        self.error: str | None = None

    def run(self) -> None:
        try:
            self.trainer.fit()
        except Exception as error:  # shown by whoever started the run
            self.error = " ".join(str(error).split()) or type(error).__name__


def train_worker(payload: dict[str, Any]) -> None:
    """What Ray runs on every worker. An end that a restart cannot mend is an event, not an exception."""
    import ray.train
    import ray.train.torch
    import torch

    from medgan import run
    from medgan.config import ConfigError, validate
    from medgan.data.shards import DataError
    from medgan.distributed import World
    from medgan.loop import Diverged
    from medgan.state import CheckpointError

    device = ray.train.torch.get_device()
    world = World.current(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # object collectives use the current device
        torch.set_float32_matmul_precision("high")
    queue = payload["queue"]

    def say(event: Event) -> None:
        if world.first:
            queue.actor.put.remote({"time": time.time(), "workers": world.size, **event}, None)

    try:
        config = validate(payload["config"])
        stopping = lambda: not payload["orders"].empty()
        run.train(config, payload["data"], payload["out"], world, say, stopping, payload["init"])
    except (Diverged, DataError, ConfigError, CheckpointError) as error:
        if not world.first and not isinstance(error, Diverged):
            raise  # it is this rank's alone: ended quietly, the others would wait for it
        say({"event": "failed", "kind": type(error).__name__, "reason": str(error)})
