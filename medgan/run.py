"""One rank of a training run: data, state, evaluation and tracking put together around the loop. No Ray in here."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medgan import loop, names, report, sample
from medgan.config import Config, ConfigError, validate
from medgan.data.loader import Batch, Order, Split, batches, open_split, rank_rows
from medgan.data.shards import Manifest, column, label_counts, read_manifest
from medgan.distributed import World
from medgan.folder import CheckpointError, OtherSchema, RunFolder, Stuck
from medgan.guards import Guard, overfit
from medgan.lease import Lease, Lost
from medgan.metrics.features import EXTRACTORS, choose_rows, my_part, real_features
from medgan.metrics.fidelity import class_kid, fidelity, identity
from medgan.models import z_size
from medgan.pixels import encode_png, grid
from medgan.state import Snapshot, TrainState, open_checkpoint, packed
from medgan.streams import stream, stream_seed
from medgan.tracking import JsonlTracker, NullTracker, Row, Several, Tracker, WandbTracker, read_rows

Event = dict[str, Any]
REFERENCE_SPLIT = "val"
ORDER = "order.jsonl"
"""Which rows of DATA every step used, where tracking.sample_ids is set."""


def train(
    config: Config,
    data: str,
    out: str,
    world: World,
    on_event: Callable[[Event], None],
    stopping: Callable[[], bool] = lambda: False,
    noticed: Callable[[], bool] = lambda: False,
    init: str | None = None,
    owner: str | None = None,
    began: float = math.inf,
    until: int | None = None,
) -> None:
    """Train one rank from the newest checkpoint in `out` to total_images, or only `until` so many are seen.

    Every rank of the world calls it. on_event is called at rank 0 with what a person should see: a dict with the key
    `event`. Where `stopping` says so at rank 0, the run saves a checkpoint within seconds and ends; where `noticed`
    says so, on every rank, it saves one as soon and goes on: a host is about to be taken away.
    A new run starts from the weights of the run `init`, if one is named: a path or a URI.
    owner: the command that holds the run's lease; rank 0 takes it over from that command's earlier workers, and every
    save asks for it. began: when the command started, by time.time(), for what a restart of its workers cost.
    Raises loop.Diverged where a value is no longer finite, lease.Lost where another command took the run over,
    folder.Stuck where there are checkpoints and none to go on from.
    """
    folder = RunFolder(out)
    lease = Lease(folder, owner) if owner is not None and world.first else None
    if not world.broadcast(lease is None or lease.renew()):
        raise Lost(f"{out}: another command took the run over")
    start = world.broadcast(secrets.token_hex(8))  # so that a node's ranks check the shards once
    split, val = (open_split(data, name, start) for name in ("train", REFERENCE_SPLIT))
    order = Order(split.labels, config.seed, config.data.balance)
    if config.compile and not compiles(world.device):
        config = config.model_copy(update={"compile": False})
        on_event({"event": "eager"})
    if world.device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
    state = TrainState.create(config, world)
    lots: Iterator[Batch] | None = None
    if config.private:
        from medgan import private  # Opacus takes two seconds to import

        patients = np.unique(column(data, "train", "patient"), return_inverse=True)[1]
        state.ledger = private.opened(config, int(patients.max()) + 1)
        lots = private.lots(split, patients, config, world)
    if world.first:
        folder.remove_unfinished("checkpoints", "samples", "generator")
    newest = world.broadcast(newest_sound(folder, state, on_event) if world.first else None)
    if isinstance(newest, Stuck):
        raise newest
    if newest is not None:
        state.load(folder.read_checkpoint(newest))
        on_event({"event": "resumed", "images_seen": newest})
    elif init is not None:
        other = RunFolder(init)
        state.load_weights(other.read_checkpoint(max(other.checkpoints())))
    state.until = until
    if state.ledger is not None:
        redone = world.broadcast(_redone(folder, state.images_seen) if world.first else 0)
        state.ledger.charge(math.ceil(redone / config.global_batch))
        if redone and world.first:  # before metrics.jsonl, which tells of them, is cut: they may be lost once more
            folder.save_checkpoint(
                state.images_seen, state.save(), config.checkpoint.keep, state.best.get("images_seen")
            )
    part = np.concatenate(rank_rows(config, world.rank, world.size))
    used = Used(lots or batches(split, order, state.images_seen, config.global_batch, part))
    if world.first and config.tracking.real_images:
        folder.write("samples/real.png", real_grid(config, split))
    on_event({"event": "features"})
    evaluator = Evaluator(config, split, val, order, world)
    lost = _lost(folder, state.images_seen, began) if world.first else {}
    evaluator.told = _of_data(data, split) if world.first else {}
    asked = (on_event, stopping, noticed, until)
    with Recorder(config, folder, evaluator, used, lease, state.images_seen, *asked) as recorder:
        if lost:
            recorder.restarted(state, lost)
        loop.run(config, state, used, recorder)
    if world.first:
        on_event(recorder.outcome(state))


def _of_data(data: str, split: Split) -> dict[str, Any]:
    """What a generator's folder tells of the images it learnt from: see sample.export."""
    manifest, _ = read_manifest(data)
    several = bool((split.labels.sum(1) != 1).any())
    patients = column(data, "train", "patient") if several and "train" in manifest.patients else None
    sets = sample.label_sets(split.labels, manifest.classes, patients) if manifest.classes else []
    return {"label_sets": sets, "source": manifest.source, "drawn": manifest.drawn}


def _lost(folder: RunFolder, images_seen: int, began: float) -> Row:
    """What the end of this command's earlier workers cost: images that are trained again, and (as a time) since when
    nothing was. Empty where the command has just begun."""
    written = folder.modified("metrics.jsonl")
    if written is None or written < began or not read_rows(folder.fetch("metrics.jsonl")):
        return {}
    return {"resume/lost_images": _redone(folder, images_seen), "resume/lost_s": written}


def _redone(folder: RunFolder, images_seen: int) -> int:
    """Images that the run has told of past the state it goes on from."""
    rows = read_rows(folder.fetch("metrics.jsonl"))
    return max(0, rows[-1]["images_seen"] - images_seen) if rows else 0


class Used:
    """The batches of a rank as they pass, keeping which rows of DATA each was made of."""

    def __init__(self, source: Iterator[Batch]) -> None:
        self.source = source
        self.passed: list[np.ndarray] = []

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self.source)
        self.passed.append(batch.rows)
        return batch

    def collect(self, state: TrainState) -> list[dict[str, Any]]:
        """A line for each step since the last call, at rank 0; every rank calls it."""
        steps, self.passed = self.passed, []
        if not steps:
            return []
        start = state.images_seen - len(steps) * state.config.global_batch
        mine = [(start + step * state.config.global_batch, row) for step, rows in enumerate(steps) for row in rows]
        gathered = state.world.gather_rows(torch.tensor(mine))
        lines: dict[int, list[int]] = {}
        for seen, row in gathered.tolist() if gathered is not None else ():
            lines.setdefault(seen, []).append(row)
        return [{"images_seen": seen, "workers": state.world.size, "rows": lines[seen]} for seen in sorted(lines)]


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


def newest_sound(folder: RunFolder, state: TrainState, on_event: Callable[[Event], None]) -> int | Stuck | None:
    """images_seen of the newest checkpoint that this state can take over; others are set aside, and it is said.

    None where there never was one. Where there are and the run cannot go on from any, why, for every rank to raise.
    """
    for images_seen in reversed(folder.checkpoints()):
        try:
            state.check(open_checkpoint(folder.read_checkpoint(images_seen), images_seen))
        except OtherSchema as error:
            where = f"{folder.location}: the checkpoint at {images_seen:,} images"
            return Stuck(f"{where}: {error}; go on with the medgan that wrote it, or name another --out")
        except CheckpointError as error:
            folder.set_aside(images_seen)
            on_event({"event": "damaged", "images_seen": images_seen, "reason": str(error)})
        else:
            return images_seen
    aside = folder.aside()
    if aside:
        what = f"{folder.location}: no checkpoint opens; set aside: {', '.join(aside)}"
        return Stuck(f"{what}; put a sound copy in place, or delete them to begin anew")
    return None


def _tracker(
    config: Config, folder: RunFolder, images_seen: int, on_event: Callable[[Event], None], until: int | None
) -> Tracker:
    jsonl = JsonlTracker(folder.fetch("metrics.jsonl"), images_seen)
    if config.tracking.wandb == "disabled":
        return jsonl
    name = folder.location.rstrip("/").rpartition("/")[2]
    # One id per run folder and data, so that a resumed run is the same W&B run.
    run_id = f"{config.data.manifest_sha256[:8] if config.data.manifest_sha256 else 'run'}-{folder.digest[:12]}"
    tell = lambda text: on_event({"event": "wandb", "text": text})
    return Several(jsonl, WandbTracker(config, folder, run_id, name, tell, until))


class Evaluator:
    """Figures of the averaged generator against the val split, overall and by class, with the real-against-real floor.

    Real features are computed once (and cached per node): n images of val, and as many of train for the floor. The
    latents and labels of the generated images are the same each time.
    """

    def __init__(self, config: Config, train_split: Split, val: Split, order: Order, world: World) -> None:
        self.config, self.world = config, world
        self.train_labels = np.asarray(train_split.labels)
        self.told: dict[str, Any] = {}
        """What the generator's folder tells of the data; see `_of_data`."""
        self.label_pool = self.train_labels[order.epoch(0)]
        self.n = min(config.evaluate.n, len(val), len(train_split))
        self.extractor = EXTRACTORS[config.evaluate.extractor](world.device)
        self.identity = identity(self.extractor.identity, self.n, REFERENCE_SPLIT)
        part = my_part(self.n, world)
        self.mine = {split.name: chosen(split, self.n, part) for split in (train_split, val)}
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
        sides = {name: (some, strength * labels) for name, (some, labels) in self.mine.items()}
        known = overfit(state, sides, np.arange(self.n)[part], self.n)
        if fake is None or self.real is None:
            return {}
        row = {**self._row("metric", self.real, fake, self.labels), **self.floor, "metric/n": self.n}
        return row if known is None else {**row, "metric/overfit": known}

    def _row(self, kind: str, real: Tensor, other: Tensor, labels: Tensor) -> Row:
        """kind/kid, kind/kid/CLASS and so on, by names.part; classes where the model is conditional and has enough."""
        row = {f"{kind}/{name}": value for name, value in fidelity(real, other).items()}
        classes = (self.config.data.classes or ()) if self.config.conditional else ()
        by_class = class_kid(real, self.labels, other, labels, classes)
        return row | {f"{kind}/kid/{names.part(name)}": figure["value"] for name, figure in by_class.items()}


def chosen(split: Split, n: int, part: slice) -> tuple[Tensor, Tensor]:
    """(uint8 pixels, float32 labels) of a part of the n rows of a split that figures are of."""
    rows = choose_rows(len(split), n)[part]
    return torch.from_numpy(split.pixels[rows]), torch.from_numpy(split.labels[rows].astype(np.float32))


class Recorder:
    """The loop's hooks: rank 0 writes rows, grids, checkpoints, the generator and the page.

    Checkpoints are written by a thread beside training. A storage that fails, or a lease that is lost, is noted; the
    run then stops at its next report, on every rank, with the last good checkpoint in place. Whoever lost the lease
    writes nothing more: what lies in the folder is the successor's.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        evaluator: Evaluator,
        used: Used,
        lease: Lease | None,
        images_seen: int,
        on_event: Callable[[Event], None],
        stopping: Callable[[], bool],
        noticed: Callable[[], bool],
        until: int | None = None,
    ) -> None:
        """images_seen: of the state that the run goes on from; what was written past it is cut."""
        self.folder, self.evaluator, self.on_event = folder, evaluator, on_event
        self.used, self.lease = used, lease
        self.first = evaluator.world.first
        self.guard = Guard()
        for row in read_rows(folder.fetch("metrics.jsonl")) if self.first else ():
            if 0 < row["images_seen"] <= images_seen:
                self.guard.look(row)
        self.tracker = _tracker(config, folder, images_seen, on_event, until) if self.first else NullTracker()
        self.order: Tracker = NullTracker()
        if self.first and config.tracking.sample_ids:
            self.order = JsonlTracker(folder.fetch(ORDER), images_seen - 1)
        self.asked, self.notice = stopping, noticed
        self.picture = b""
        """The newest sample grid."""
        self.beside = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[None] | None = None
        self.failure: str | None = None
        """Why nothing more can be written."""
        self.lost = False
        self.spent = {"save": 0.0, "evaluate": 0.0}
        """Seconds that training stood still for each."""
        self.began = time.perf_counter()

    def stopping(self) -> bool:
        return self.first and (self.failure is not None or self.asked())

    def noticed(self) -> bool:
        noticed = self.notice()
        if noticed:
            self.on_event({"event": "noticed"})
        return noticed

    def log(self, images_seen: int, row: Row) -> None:
        self._try(self.tracker.log, images_seen, row)
        self.on_event({"event": "progress", "images_seen": images_seen, **row})

    def evaluate(self, state: TrainState) -> None:
        start = time.perf_counter()
        row = self.evaluator(state)
        if not self.first:
            row = {}
        else:
            row["time/evaluate_s"] = time.perf_counter() - start
            self._try(self.tracker.log, state.images_seen, row)
            self._try(self._picture, state)
            self.on_event({"event": "evaluated", "images_seen": state.images_seen, **row})
            for what, text in self.guard.look(row).items() if state.images_seen else ():
                self._try(self.tracker.alert, what, f"at {state.images_seen:,} images: {text}")
                self.on_event({"event": "alarm", "images_seen": state.images_seen, "what": what, "text": text})
        kid = state.world.broadcast(row.get("metric/kid"))
        best = state.best
        assert kid is not None
        # Figures of unlike identity are not compared: with other settings the search for the best starts anew. Of a
        # private run the last is kept: to choose by a figure of real images would cost privacy that nobody counts.
        better = state.ledger is not None or not best
        better = better or best["identity"] != self.evaluator.identity or kid < best["kid"]
        # The untrained generator is nobody's best, nor is one whose labels do not have their full strength yet.
        if better and state.images_seen and state.config.label_strength(state.images_seen) == 1:
            state.best = {"images_seen": state.images_seen, "kid": kid, "identity": self.evaluator.identity}
            if self.first:
                self._try(self._export, state, row)
        if self.first:
            self._try(self._page)
        self.spent["evaluate"] += time.perf_counter() - start

    def save(self, state: TrainState) -> None:
        start = time.perf_counter()
        lines = self.used.collect(state) if state.config.tracking.sample_ids else []
        if self.first:
            self.settle()
            if self.failure is None:
                self.writing = self.beside.submit(self._write, state.config, state.snapshot(), lines)
        self.spent["save"] += time.perf_counter() - start

    def settle(self) -> None:
        """Wait for the checkpoint that is being written; what went wrong with it is noted."""
        if self.writing is not None:
            self._try(self.writing.result)
        self.writing = None

    def restarted(self, state: TrainState, lost: Row) -> None:
        """What it cost that the workers before these ended."""
        row = {**lost, "resume/lost_s": time.time() - lost["resume/lost_s"], "resume/workers": state.world.size}
        self._try(self.tracker.log, state.images_seen, row)
        self.on_event({"event": "restarted", "images_seen": state.images_seen, **row})

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Whatever ended the loop, the checkpoint that is being written gets there and the trackers are closed."""
        self.settle()
        self.beside.shutdown()
        if self.first:
            self._try(self._hold, even_after_failure=True)
            failed = self.lost or kind is not None
            for close in (lambda: self.tracker.close(failed), self.order.close, self._publish, self._page):
                self._try(close, even_after_failure=True)

    def outcome(self, state: TrainState) -> Event:
        """How the run ended, after `__exit__`: done, stopped, or failed where something could not be written."""
        if self.failure is not None:
            return {"event": "failed", "kind": "Lost" if self.lost else "Storage", "reason": self.failure}
        kind = "done" if state.done else "stopped"
        share = {f"{name}_share": took / (time.perf_counter() - self.began) for name, took in self.spent.items()}
        epsilon = {} if state.ledger is None else {"epsilon": state.ledger.epsilon()}
        return {"event": kind, "images_seen": state.images_seen, "best": state.best, **share, **epsilon}

    def _try(self, write: Callable[..., object], *arguments: object, even_after_failure: bool = False) -> None:
        """Write something; the first failure is noted and ends the run at its next report."""
        if self.failure is None or even_after_failure:
            try:
                write(*arguments)
            except Lost as error:
                self.lost, self.failure = True, self.failure or str(error)
            except OSError as error:
                why = error.strerror or str(error)
                self.failure = self.failure or f"{self.folder.location} cannot be written: {why}"

    def _hold(self) -> None:
        """Raises Lost where the run is somebody else's by now."""
        if self.lease is not None:
            self.lease.check()

    def _write(self, config: Config, snapshot: Snapshot, lines: list[Any]) -> None:
        """One checkpoint, in a thread of its own. The rows it used come first: a checkpoint without them had a gap."""
        self._hold()
        for line in lines:
            self.order.log(line.pop("images_seen"), line)
        images_seen = snapshot["images_seen"]
        best = snapshot["best"].get("images_seen")
        self.folder.save_checkpoint(images_seen, packed(snapshot), config.checkpoint.keep, best)
        self._publish()
        self.on_event({"event": "saved", "images_seen": images_seen})

    def _publish(self) -> None:
        self._hold()
        self.folder.publish("metrics.jsonl", "wandb", ORDER)

    def _picture(self, state: TrainState) -> None:
        tiles = sample.grid_samples(state.ema, state.config, state.config.label_strength(state.images_seen))
        png = encode_png(grid(tiles.numpy(), state.config.tracking.grid_columns))
        self._hold()
        self.folder.write(f"samples/{round(state.images_seen / 1000):06d}.png", png)
        self.picture = png
        self.tracker.picture(state.images_seen, "samples", png)

    def _export(self, state: TrainState, row: Row) -> None:
        counts = label_counts(self.evaluator.train_labels, state.config.data.classes or ())
        figure = f"n = {self.evaluator.n} against {REFERENCE_SPLIT}, {self.evaluator.extractor.identity['extractor']}"
        figures = {"images_seen": state.images_seen, "figure": figure, **row, "begun_with": state.begun_with}
        if state.ledger is not None:
            figures["privacy/epsilon"] = state.ledger.epsilon()
        exported = sample.export(state.ema, state.config, counts, figures, self.picture, **self.evaluator.told)
        self._hold()
        for name, content in exported.items():
            self.folder.write(f"generator/{name}", content)

    def _page(self) -> None:
        """The page as things stand. One that cannot be made is told of, and ends no run: it can be made again."""
        self._hold()
        self.folder.publish("metrics.jsonl")
        try:
            self.folder.write("report.html", report.run_page(self.folder))
        except Exception as error:
            self.on_event({"event": "pageless", "reason": " ".join(f"{type(error).__name__}: {error}".split())})


def compiles(device: torch.device) -> bool:
    """Whether torch.compile finds a compiler for the device: a C++ one, or Triton."""
    try:
        torch.compile(torch.sin)(torch.ones(2, device=device))
    except RuntimeError:  # what TorchDynamo raises, whatever is missing
        return False
    return True


def settled(config: Config, manifest: Manifest, gpu: bool) -> Config:
    """The config with what depends on the machine and on DATA filled in: the precision, and a private run's noise.

    Raises ConfigError.
    """
    precision = precision_of(config.precision, gpu)
    if config.private:
        from medgan import private  # Opacus takes two seconds to import

        if config.precision == "auto":
            precision = "float32"
        if "train" not in manifest.patients:
            raise ConfigError("privacy.dp.epsilon: DATA does not say whose its images are")
        config = private.settled(config, manifest.patients["train"])
    return validate({**config.dump(), "precision": precision})


def precision_of(wanted: str, gpu: bool, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """`auto` settled: bfloat16 on GPU and where the CPU has AMX or AVX512-BF16, float32 elsewhere."""
    if wanted != "auto":
        return wanted
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return "bfloat16" if gpu or flags & {"amx_bf16", "avx512_bf16"} else "float32"
