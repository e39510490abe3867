"""The seam to Ray: connect to a cluster, and one training run as a TorchTrainer job.

Ray owns placement, process groups and restarts. What a run is lies in its own folder: after a restart every rank
reads the newest checkpoint there, so nothing of Ray's is needed to go on.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.queue import Empty, Queue

from medgan.data.shards import filesystem

Event = dict[str, Any]


def connect(verbose: bool = False) -> dict[str, float]:
    """Join the cluster that RAY_ADDRESS or this host names, or start one here; returns the cluster's resources.

    Ray's own messages stay quiet unless verbose.
    """
    if not ray.is_initialized():
        level = logging.INFO if verbose else logging.ERROR
        common: dict[str, Any] = {"log_to_driver": verbose, "logging_level": level}
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        for name in ("ray.data", "ray.train"):
            logging.getLogger(name).setLevel(level)
        try:
            ray.init(address="auto", **common)
        except ConnectionError:
            ray.init(include_dashboard=False, object_store_memory=256 * 2**20, **common)
    return dict(ray.cluster_resources())


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
        count = int(resources.get("GPU", 0)) or min(2, int(resources.get("CPU", 1)))
        return Workers(count, count)


@dataclass
class Outcome:
    """How a run ended: the last event (`done`, or `failed` with a reason), or Ray's error."""

    events: dict[str, Event] = field(default_factory=dict)
    error: str | None = None


def fit(
    config: dict[str, Any],
    data: str,
    out: str,
    workers: Workers,
    on_event: Callable[[Event], None],
    verbose: bool = False,
    max_failures: int = 3,
) -> Outcome:
    """Train on the connected cluster until done; on_event is called here, in the driver, with what rank 0 says.

    config: a validated config as plain types. A worker or host that dies is replaced, and the run goes on from the
    newest checkpoint in `out`, up to max_failures times.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = ray.cluster_resources().get("GPU", 0) > 0
    outcome, queue = Outcome(), Queue(actor_options={"num_cpus": 0})
    listener = Listener(queue, outcome, on_event)
    notes = f"{out}/.ray"
    with warnings.catch_warnings():
        if not verbose:
            warnings.simplefilter("ignore")
        # Ray keeps notes of its own about a run; all that matters is in `out`, so they are thrown away.
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"config": config, "data": data, "out": out, "queue": queue},
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
        listener.start()
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            outcome.error = " ".join(str(error).split())
        finally:
            listener.stop()
            fs, path = filesystem(notes)
            fs.delete_dir(path)
    return outcome


class Listener(threading.Thread):
    """Hands rank 0's events to the driver while the driver waits for Ray."""

    def __init__(self, queue: Queue, outcome: Outcome, on_event: Callable[[Event], None]) -> None:
        super().__init__(daemon=True)
        self.queue, self.outcome, self.on_event = queue, outcome, on_event
        self.over = threading.Event()

    def run(self) -> None:
        while True:
            over = self.over.is_set()
            try:
                event = self.queue.get(timeout=0.5)
            except Empty:
                if over:
                    return
                continue
            except ray.exceptions.RayError:
                return  # the cluster is gone, and with it whoever would speak
            self.outcome.events[event["event"]] = event
            self.on_event(event)

    def stop(self) -> None:
        """After the last event was handed over."""
        self.over.set()
        self.join(timeout=10)
        self.queue.shutdown(force=True)


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
        torch.set_float32_matmul_precision("high")
    queue = payload["queue"]

    def say(event: Event) -> None:
        if world.first:
            queue.actor.put.remote({"time": time.time(), "workers": world.size, **event}, None)

    try:
        run.train(validate(payload["config"]), payload["data"], payload["out"], world, say)
    except (Diverged, DataError, ConfigError, CheckpointError) as error:
        say({"event": "failed", "kind": type(error).__name__, "reason": str(error)})
