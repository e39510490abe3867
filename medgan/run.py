"""One rank of a training run: data, state, evaluation and tracking put together around the loop. No Ray in here."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medgan import loop, report, sample
from medgan.config import Config
from medgan.data.loader import Order, Split, batches, open_split, rank_slice
from medgan.data.shards import label_counts
from medgan.distributed import World
from medgan.folder import RunFolder, checkpoint_name
from medgan.metrics.features import EXTRACTORS, choose_rows, my_part, real_features
from medgan.metrics.fidelity import class_kid, fidelity, identity
from medgan.models import z_size
from medgan.pixels import encode_png, grid
from medgan.state import CheckpointError, TrainState, open_checkpoint
from medgan.streams import stream, stream_seed
from medgan.tracking import JsonlTracker, NullTracker, Row, Several, Tracker, WandbTracker

Event = dict[str, Any]
REFERENCE_SPLIT = "val"


def train(
    config: Config,
    data: str,
    out: str,
    world: World,
    on_event: Callable[[Event], None],
    stopping: Callable[[], bool] = lambda: False,
    init: str | None = None,
) -> None:
    """Train one rank from the newest checkpoint in `out` to total_images.

    Every rank of the world calls it. on_event is called at rank 0 with what a person should see: a dict with the key
    `event`. Where `stopping` says so at rank 0, the run saves a checkpoint at the next report and ends.
    A new run starts from the weights of the run `init`, if one is named: a path or a URI.
    Raises loop.Diverged where a value is no longer finite.
    """
    folder = RunFolder(out)
    start = world.broadcast(secrets.token_hex(8))  # so that a node's ranks check the shards once
    split, val = (open_split(data, name, start) for name in ("train", REFERENCE_SPLIT))
    order = Order(split.labels, config.seed, config.data.balance)
    state = TrainState.create(config, world)
    newest = world.broadcast(newest_sound(folder, on_event) if world.first else None)
    if newest is not None:
        state.load(folder.read(checkpoint_name(newest)))
        on_event({"event": "resumed", "images_seen": newest})
    elif init is not None:
        other = RunFolder(init)
        state.load_weights(other.read(checkpoint_name(max(other.checkpoints()))))
    tracker = _tracker(config, folder, state.images_seen) if world.first else NullTracker()
    part = rank_slice(config.global_batch, config.sample_group, world.rank, world.size)
    failed = True
    if world.first and config.tracking.real_images:
        folder.write("samples/real.png", real_grid(config, split))
    try:
        on_event({"event": "features"})
        evaluator = Evaluator(config, split, val, order, world)
        recorder = Recorder(folder, tracker, evaluator, on_event, stopping)
        loop.run(config, state, batches(split, order, state.images_seen, config.global_batch, part), recorder)
        if world.first:
            recorder.finish(state)
        failed = False
    finally:
        tracker.close(failed)
        if world.first:
            folder.publish("metrics.jsonl", "wandb")


def real_grid(config: Config, split: Split) -> bytes:
    """Real images arranged as the samples are: a row per class, or four rows; black where a class has too few. PNG."""
    columns, classes = config.tracking.grid_columns, len(config.data.classes or ())
    shuffled = np.random.default_rng(stream_seed(config.seed, "real grid", 0)).permutation(len(split))
    if config.conditional:
        rows = [shuffled[split.labels[shuffled, index] > 0][:columns] for index in range(classes)]
    else:
        rows = [shuffled[row * columns : (row + 1) * columns] for row in range(4)]
    tiles = np.zeros((len(rows), columns, *split.pixels.shape[1:]), np.uint8)
    for row, chosen in enumerate(rows):
        tiles[row, : len(chosen)] = split.pixels[chosen]
    return encode_png(grid(tiles.reshape(-1, *split.pixels.shape[1:]), columns))


def newest_sound(folder: RunFolder, on_event: Callable[[Event], None]) -> int | None:
    """images_seen of the newest checkpoint that opens; damaged ones are set aside, and it is said."""
    for images_seen in reversed(folder.checkpoints()):
        try:
            open_checkpoint(folder.read(checkpoint_name(images_seen)))
        except CheckpointError as error:
            folder.set_aside(images_seen)
            on_event({"event": "damaged", "images_seen": images_seen, "reason": str(error)})
        else:
            return images_seen
    return None


def _tracker(config: Config, folder: RunFolder, images_seen: int) -> Tracker:
    jsonl = JsonlTracker(folder.fetch("metrics.jsonl"), images_seen)
    if config.tracking.wandb == "disabled":
        return jsonl
    name = folder.location.rstrip("/").rpartition("/")[2]
    # One id per run folder and data, so that a resumed run is the same W&B run.
    run_id = f"{config.data.manifest_sha256[:8] if config.data.manifest_sha256 else 'run'}-{folder.digest[:12]}"
    return Several(jsonl, WandbTracker(config, folder, run_id, name))


class Evaluator:
    """Figures of the averaged generator against the val split, overall and by class, with the real-against-real floor.

    Real features are computed once (and cached per node): n images of val, and as many of train for the floor. The
    latents and labels of the generated images are the same each time.
    """

    def __init__(self, config: Config, train_split: Split, val: Split, order: Order, world: World) -> None:
        self.config, self.world = config, world
        self.train_labels = np.asarray(train_split.labels)
        self.label_pool = self.train_labels[order.epoch(0)]
        self.n = min(config.evaluate.n, len(val), len(train_split))
        self.extractor = EXTRACTORS[config.evaluate.extractor](world.device)
        self.identity = identity(self.extractor.identity, self.n, REFERENCE_SPLIT)
        self.labels = torch.from_numpy(val.labels[choose_rows(len(val), self.n)].astype(np.float32))
        self.real = real_features(val, self.n, self.extractor, world)
        other = real_features(train_split, self.n, self.extractor, world)
        self.floor: Row = {}
        if self.real is not None and other is not None:
            rows = choose_rows(len(train_split), self.n)
            self.floor = self._row("floor", self.real, other, torch.from_numpy(train_split.labels[rows]))

    def __call__(self, state: TrainState) -> Row:
        """metric/* and floor/* at rank 0, nothing elsewhere. Calibrates the averaged generator."""
        strength = self.config.label_strength(state.images_seen)
        sample.calibrate(state.ema, self.config, self.label_pool, strength)
        part = my_part(self.n, self.world)
        z = torch.randn(self.n, z_size(self.config), generator=stream(self.config.seed, "evaluate", 0))
        pixels = sample.generate(state.ema, z[part], strength * self.labels[part])
        fake = self.world.gather_rows(self.extractor(pixels))
        if fake is None or self.real is None:
            return {}
        return {**self._row("metric", self.real, fake, self.labels), **self.floor, "metric/n": self.n}

    def _row(self, kind: str, real: Tensor, other: Tensor, labels: Tensor) -> Row:
        """kind/kid, kind/kid/CLASS and so on; classes where the model is conditional and has enough of them."""
        row = {f"{kind}/{name}": value for name, value in fidelity(real, other).items()}
        classes = (self.config.data.classes or ()) if self.config.conditional else ()
        by_class = class_kid(real, self.labels, other, labels, classes)
        return row | {f"{kind}/kid/{name}": figure["value"] for name, figure in by_class.items()}


class Recorder:
    """The loop's hooks: rank 0 writes rows, grids, checkpoints, the generator and the page."""

    def __init__(
        self,
        folder: RunFolder,
        tracker: Tracker,
        evaluator: Evaluator,
        on_event: Callable[[Event], None],
        stopping: Callable[[], bool],
    ) -> None:
        self.folder, self.tracker, self.evaluator, self.on_event = folder, tracker, evaluator, on_event
        self.first = evaluator.world.first
        self.asked = stopping
        self.picture = b""
        """The newest sample grid."""

    def stopping(self) -> bool:
        return self.first and self.asked()

    def log(self, images_seen: int, row: Row) -> None:
        self.tracker.log(images_seen, row)
        self.on_event({"event": "progress", "images_seen": images_seen, **row})

    def evaluate(self, state: TrainState) -> None:
        start = time.perf_counter()
        row = self.evaluator(state)
        if not self.first:
            row = {}
        else:
            row["time/evaluate_s"] = time.perf_counter() - start
            self.tracker.log(state.images_seen, row)
            self.on_event({"event": "evaluated", "images_seen": state.images_seen, **row})
            self._picture(state)
        kid = state.world.broadcast(row.get("metric/kid"))
        best = state.best
        assert kid is not None
        # Figures of unlike identity are not compared: with other settings the search for the best starts anew.
        better = not best or best["identity"] != self.evaluator.identity or kid < best["kid"]
        # The untrained generator is nobody's best, nor is one whose labels do not have their full strength yet.
        if better and state.images_seen and state.config.label_strength(state.images_seen) == 1:
            state.best = {"images_seen": state.images_seen, "kid": kid, "identity": self.evaluator.identity}
            if self.first:
                self._export(state, row)
        if self.first:
            self._page()

    def save(self, state: TrainState) -> None:
        if self.first:
            keep = state.config.checkpoint.keep
            self.folder.save_checkpoint(state.images_seen, state.save(), keep, state.best.get("images_seen"))
            self.folder.publish("metrics.jsonl", "wandb")
            self.on_event({"event": "saved", "images_seen": state.images_seen})

    def finish(self, state: TrainState) -> None:
        kind = "done" if state.images_seen >= state.config.total_images else "stopped"
        if kind == "stopped":  # a run that is done has just been evaluated
            self._page()
        self.on_event({"event": kind, "images_seen": state.images_seen, "best": state.best})

    def _picture(self, state: TrainState) -> None:
        tiles = sample.grid_samples(state.ema, state.config, state.config.label_strength(state.images_seen))
        png = encode_png(grid(tiles.numpy(), state.config.tracking.grid_columns))
        self.folder.write(f"samples/{round(state.images_seen / 1000):06d}.png", png)
        self.picture = png
        self.tracker.picture(state.images_seen, "samples", png)

    def _export(self, state: TrainState, row: Row) -> None:
        counts = label_counts(self.evaluator.train_labels, state.config.data.classes or ())
        figure = f"n = {self.evaluator.n} against {REFERENCE_SPLIT}, {self.evaluator.extractor.identity['extractor']}"
        figures = {"images_seen": state.images_seen, "figure": figure, **row}
        for name, content in sample.export(state.ema, state.config, counts, figures, self.picture).items():
            self.folder.write(f"generator/{name}", content)

    def _page(self) -> None:
        self.folder.publish("metrics.jsonl")
        self.folder.write("report.html", report.run_page(self.folder))


def precision_of(wanted: str, gpu: bool, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """`auto` settled: bfloat16 on GPU and where the CPU has AMX or AVX512-BF16, float32 elsewhere."""
    if wanted != "auto":
        return wanted
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return "bfloat16" if gpu or flags & {"amx_bf16", "avx512_bf16"} else "float32"
