"""The training loop: until total_images: step, log, evaluate, save.

Everything that happens now and then happens at the first whole global batch at or past its interval, so that it
depends on images_seen alone. No Ray in here.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Protocol

import torch

from medgan.config import Config
from medgan.data.loader import Batch
from medgan.state import TrainState
from medgan.step import SCALARS, parts, train_step

ASK_S = 2.0
"""Seconds between two questions whether to stop or to save."""


class Diverged(RuntimeError):
    """A loss or a weight is no longer a finite number."""


class Hooks(Protocol):
    """What the loop calls; on ranks other than the first, all but `evaluate` do nothing."""

    def log(self, images_seen: int, row: dict[str, float]) -> None:
        """A row of losses."""

    def evaluate(self, state: TrainState) -> None:
        """Figures and a sample grid of the averaged generator; sets state.best. Every rank calls it."""

    def save(self, state: TrainState) -> None:
        """A checkpoint."""

    def stopping(self) -> bool:
        """Whether somebody wants the run to stop; any rank may say so."""

    def noticed(self) -> bool:
        """Whether a checkpoint is wanted now, without stopping; the same answer on every rank."""


def due(interval_kimg: float, before: int, now: int) -> bool:
    """Whether a multiple of the interval was reached or passed between two counts of images."""
    interval = interval_kimg * 1000
    return now // interval > before // interval


def run(config: Config, state: TrainState, batches: Iterator[Batch], hooks: Hooks) -> None:
    """Train until total_images or the end of a budget, or until a stop is asked for: then a checkpoint is saved first.

    Ranks ask each other about a stop, and whether a checkpoint is wanted, at every report and every ASK_S in between.

    Raises Diverged, after which the newest checkpoint is still good.
    """
    world = state.world
    if state.images_seen == 0:
        hooks.evaluate(state)
    meter, asking = Meter(), 1
    while not state.done:
        before = state.images_seen
        batch = meter.wait(batches)
        meter.add(train_step(state, batch), config.global_batch, parts(config, before))
        now = state.images_seen
        last = state.done
        evaluating = last or due(config.evaluate.interval_kimg, before, now)
        saving = last or due(config.checkpoint.interval_kimg, before, now)
        reporting = evaluating or saving or due(config.tracking.interval_kimg, before, now)
        noticed = False
        if reporting or meter.steps % asking == 0:
            noticed = hooks.noticed()
            reporting = reporting or noticed or bool(world.sum(meter.total.new_tensor([float(hooks.stopping())])))
        if reporting:
            asked = meter.total.new_tensor([float(hooks.stopping()), meter.step_s() if world.first else 0.0])
            *total, stopped, step_s = world.sum(torch.cat([meter.total, asked])).tolist()
            row, asking = meter.read(total), max(1, round(ASK_S / step_s))
            for name, value in row.items():
                if not math.isfinite(value):
                    raise Diverged(f"{name} is {value} at {now:,} images")
            if not state.finite():
                raise Diverged(f"a weight is not finite at {now:,} images")
            if config.augmentations:
                row["augment/p"] = state.strength.of(config.augment, now)
            if evaluating and state.ledger is not None:
                row["privacy/epsilon"] = state.ledger.epsilon()
            hooks.log(now, row)
            best = state.best.get("images_seen")
            if evaluating:
                hooks.evaluate(state)
            if saving or noticed or stopped or state.best.get("images_seen") != best:
                hooks.save(state)
            if stopped:
                return
            meter = Meter()


class Meter:
    """Sums of one stretch of steps, without waiting for the device: scalars, steps, time, time spent on data."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.total = torch.zeros(len(SCALARS), dtype=torch.float64)
        self.steps = self.images = 0
        self.having: Counter[str] = Counter()
        """How many of the steps had each scalar."""
        self.waited = 0.0

    def wait(self, batches: Iterator[Batch]) -> Batch:
        before = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - before
        return batch

    def add(self, scalars: torch.Tensor, images: int, having: Iterable[str]) -> None:
        self.total = self.total.to(scalars.device) + scalars
        self.steps += 1
        self.having.update(having)
        self.images += images

    def step_s(self) -> float:
        return (time.perf_counter() - self.start) / self.steps

    def read(self, total: list[float]) -> dict[str, float]:
        """total: the scalars summed over ranks. Means of each over the steps that had it, and times."""
        seconds = time.perf_counter() - self.start
        means = zip(SCALARS, total, strict=True)
        row = {name: value / self.having[name] for name, value in means if self.having[name]}
        return row | {
            "time/images_per_s": self.images / seconds,
            "time/step_s": seconds / self.steps,
            "time/data_wait_s": self.waited / self.steps,
        }
