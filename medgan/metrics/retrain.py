"""A short training in one process on some rows of train: the recipe of a run, rehearsed on fewer patients.

What asks whether synthetic images help, or whether a recipe gives patients away, needs generators that have seen
exactly such patients and no others.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from medgan import loop, sample
from medgan.cells import Result
from medgan.config import Config, validate
from medgan.data.loader import Order, Split, batches, open_split
from medgan.distributed import World
from medgan.models import z_size
from medgan.state import TrainState
from medgan.streams import stream, stream_seed

SCHEDULES = (
    ("model", "anneal_from_kimg"),
    ("model", "anneal_to_kimg"),
    ("optim", "warmup_kimg"),
    ("optim", "decay_kimg"),
    ("loss", "gamma_kimg"),
    ("augment", "kimg"),
)
"""Settings that say when something begins or ends; the ramp's `augment.kimg` is one, ADA's is a speed."""


class Quiet:
    """The loop's hooks of a training that nobody watches: the end counts, no evaluation chooses among checkpoints."""

    def log(self, images_seen: int, row: dict[str, float]) -> None:
        pass

    def evaluate(self, state: TrainState) -> None:
        pass

    def save(self, state: TrainState) -> None:
        pass

    def stopping(self) -> bool:
        return False

    def noticed(self) -> bool:
        return False


def recipe(config: Mapping[str, Any], seed: int, images: int) -> Config:
    """A run's settled config, as plain types, for so many images, with schedules that fit into them."""
    tree = {**config, "seed": seed, "total_images": images}
    for section, key in SCHEDULES:
        part = tree[section]
        if part.get(key) and (section != "augment" or part["name"] == "ramp"):
            tree[section] = {**part, key: part[key] * images / config["total_images"]}
    return validate(tree)


def fit(
    config: Config, split: Split, rows: np.ndarray, device: str = "cpu", begin: bytes | None = None
) -> tuple[TrainState, dict[str, Any]]:
    """(the state after a training on those rows of a split alone, its averaged generator ready to draw;
    {images_seen, seconds}).

    rows: int64 (n,). begin: a checkpoint whose networks it starts from. Raises loop.Diverged.
    """
    part = replace(split, pixels=split.pixels[rows], labels=split.labels[rows])
    began = time.monotonic()
    state = TrainState.create(config, World(device=torch.device(device)))
    if begin is not None:
        state.load_weights(begin)
    order = Order(part.labels, config.seed, config.data.balance)
    everything = slice(0, config.global_batch)
    loop.run(config, state, batches(part, order, 0, config.global_batch, everything), Quiet())
    sample.calibrate(state.ema, config, part.labels[order.epoch(0)])
    return state, {"images_seen": state.images_seen, "seconds": time.monotonic() - began}


def unlabelled(*, data: dict[str, str], config: dict[str, Any], images: int, seed: int) -> Result:
    """A training on all train images as if none had a label: {checkpoint: uint8, what `fit` may begin with; failed:
    why there is none}. Where labels are few and images are not.
    """
    train = open_split(data["location"], "train")
    blank = replace(train, labels=np.zeros_like(train.labels))
    settled = recipe(config, stream_seed(seed, "unlabelled", 0), images)
    try:
        state, spent = fit(settled, blank, np.arange(len(train)), device())
    except loop.Diverged as error:
        return {"failed": str(error)}
    return {"checkpoint": np.frombuffer(state.save(), np.uint8), **spent}


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def draw(generator: nn.Module, config: Config, labels: np.ndarray, name: str) -> np.ndarray:
    """uint8 (N, C, R, R) for labels uint8 (N, K), from the latents of the config's seed and that name."""
    z = torch.randn(len(labels), z_size(config), generator=stream(config.seed, name, 0))
    return sample.generate(generator, z, torch.from_numpy(labels.astype(np.float32))).numpy()
