"""One trial as Ray Tune sees it: the same run as jobs/train.py makes, in SEARCH/trials/NUMBER.

A step lasts until the run's next evaluation. What a run is lies in its folder, so that a trial whose process died, or
whose whole search did, goes on from its newest checkpoint; Tune's own checkpoints are pointers to those.
"""

from __future__ import annotations

import contextlib
import json
import queue
import secrets
import threading
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.exceptions import GetTimeoutError, RayActorError

from medgan import config as configs
from medgan import lease
from medgan.config import Config, ConfigError
from medgan.data.shards import Manifest
from medgan.folder import RunFolder, SearchFolder
from medgan.lease import Lease
from medgan.locations import redact
from medgan.ray_train import Event, Interrupt, Outcome, Workers, fit
from medgan.run import settled
from medgan.schemas import Birth
from medgan.tracking import rows_of

Row = dict[str, Any]


BIRTH = "takeover.json"
"""In the folder of a run that began with another's weights: whose, and its settings. Written last."""


@dataclass(frozen=True)
class Plan:
    """What all trials of a search have in common."""

    data: str
    out: str
    manifest: str
    """DATA/manifest.json."""
    sha256: str
    workers: int
    gpu: bool
    """Whether a worker takes a GPU."""
    segment: int = 0
    """Population based training: images between two chances to take over another trial's weights; 0: none."""

    def config(self, settings: dict[str, Any]) -> Config:
        """The config that jobs/train.py would make of such settings and this DATA."""
        named = {"tracking.group": self.out.rstrip("/").rpartition("/")[2], "tracking.wait_s": 5.0, **settings}
        return configs.for_data(configs.load(overrides=named), **Manifest.from_json(self.manifest).facts(self.sha256))


@ray.remote(num_cpus=0)
class Flag:
    """Whether the search is to stop, for all of its trials."""

    def __init__(self) -> None:
        self.raised = False

    def raise_(self) -> None:
        self.raised = True

    def read(self) -> bool:
        return self.raised


class Wish(Interrupt):
    """Asks one run to stop: its own trial does, or the whole search. It touches no signals."""

    def __init__(self, flag: Any) -> None:
        super().__init__()
        self.own, self.flag, self.looked = False, flag, 0.0

    @property
    def asked(self) -> bool:
        if not self.own and time.monotonic() - self.looked > 1:
            # The flag lies beside the driver: where that is gone, Ray ends the trial.
            with contextlib.suppress(RayActorError, GetTimeoutError):
                self.own = ray.get(self.flag.read.remote(), timeout=5)
            self.looked = time.monotonic()
        return self.own

    @asked.setter
    def asked(self, value: bool) -> None:
        self.own = value

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class Training(threading.Thread):
    """`fit` beside the trial's own thread, so that Tune can be answered while it trains. `events` ends with None."""

    def __init__(self, config: Config, location: str, plan: Plan, flag: Any, until: int | None = None) -> None:
        super().__init__(daemon=True)
        self.config, self.location, self.plan, self.until = config, location, plan, until
        self.owner = seized(RunFolder(location))
        self.wish = Wish(flag)
        self.events: queue.Queue[Event | None] = queue.Queue()
        self.outcome = Outcome(error="the trial's process ended early")

    def run(self) -> None:
        # One worker is this process itself: nothing more has to be started, and a crash is seen as the trial's.
        workers = Workers(0, 0) if self.plan.workers == 1 else Workers(self.plan.workers, self.plan.workers)
        try:
            self.outcome = fit(
                self.config.dump(),
                self.plan.data,
                self.location,
                workers,
                self.events.put,
                max_failures=1,
                owner=self.owner,
                interrupt=self.wish,
                gpu=self.plan.gpu,
                until=self.until,
            )
        except Exception as error:  # told by the trial
            self.outcome = Outcome(error=f"{type(error).__name__}: {error}")
        with contextlib.suppress(OSError):  # what is left of it the next owner takes away
            Lease(RunFolder(self.location), self.owner).end()
        self.events.put(None)


def seized(folder: RunFolder) -> str:
    """Become the holder of a run whoever holds it, and return the owner.

    The search holds a lease of its own, so that a process that still writes this run is one that was given up: its next
    save, and its workers' next start, see that the run is another's.
    """
    owner = secrets.token_hex(8)
    while not Lease(folder, owner).renew():
        folder.delete(lease.FOLDER)
    return owner


class Trial(tune.Trainable):
    """config: {"job": {"name": of the trial, "settings": dotted}}."""

    training: Training | None = None

    def setup(self, config: dict[str, Any], plan: Plan, flag: Any) -> None:
        self.plan, self.flag = plan, flag
        self.name, self.given = config["job"]["name"], config["job"]["settings"]
        self.settings = self.given
        self.generation, self.parent = 0, ""
        while RunFolder(self.place(self.generation + 1)).exists(BIRTH):
            self.generation += 1
        if self.generation:  # the search may have ended before it heard of them
            birth = RunFolder(self.place(self.generation)).checked(Birth, BIRTH)
            self.settings, self.parent = birth["settings"], birth["parent"]
        self.row: Row = {"images_seen": 0}

    def place(self, generation: int) -> str:
        """The run folder. A trial that takes over another's weights goes on in a folder of its own."""
        suffix = f"-after{generation}" if generation else ""
        return SearchFolder(self.plan.out).run({"run": f"{self.name}{suffix}"}).location

    # -- what Tune calls ---------------------------------------------------------------------------------------------

    def step(self) -> Row:
        """Train up to the next evaluation, or to the next chance to take over weights. The last row says how the
        trial ended: status and, where it failed, reason."""
        if self.training is None:
            try:
                self._start()
            except (ConfigError, configs.Refused) as error:
                return self._end("failed", str(error))
        assert self.training is not None
        while (event := self.training.events.get()) is not None:
            if event["event"] == "evaluated" and event["images_seen"]:
                self._note(event)
                if not self.plan.segment:
                    return self.row
            elif event["event"] == "progress":
                self.row["images_per_s"] = event["time/images_per_s"]
            elif event["event"] == "wandb":
                self.row["wandb"] = event["text"]
        return self._ended(self.training)

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """A pointer to the run's newest checkpoint."""
        folder = RunFolder(self.place(self.generation))
        return {"run": folder.location, "images_seen": max(folder.checkpoints(), default=0), "row": self.row}

    def load_checkpoint(self, pointer: dict[str, Any]) -> None:
        """Go on where the trial was, or, where the pointer is another trial's, from a copy of that one's weights."""
        if pointer["run"] == self.place(self.generation):
            self.row = dict(pointer["row"])
            return
        donor, self.generation, self.settings = RunFolder(pointer["run"]), self.generation + 1, self.given
        child = RunFolder(self.place(self.generation))
        taken = take_over(donor, pointer["images_seen"], child)
        self.parent = f"{donor.location.rpartition('/')[2]} at {taken}"
        child.write(BIRTH, json.dumps({"parent": self.parent, "settings": self.settings}))
        self.row = {**pointer["row"], **self._who()}

    def cleanup(self) -> None:
        """End the run at its next report, where it saves a checkpoint."""
        if self.training is not None:
            self.training.wish.asked = True
            self.training.join()

    # -- the run -----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        folder = RunFolder(self.place(self.generation))
        config = self.plan.config(self.settings)
        if folder.exists("config.yaml"):
            stored = folder.config()
            assert stored is not None
            config = configs.resume(stored, config)
        config = settled(config, Manifest.from_json(self.plan.manifest), self.plan.gpu)
        folder.write("config.yaml", configs.to_yaml(config))
        folder.write("manifest.json", self.plan.manifest)
        if folder.exists("metrics.jsonl"):  # what was known before a restart
            for row in rows_of(folder):
                if "metric/kid" in row and row["images_seen"]:
                    self._note(row)
        until = None
        if self.plan.segment:
            until = (max(folder.checkpoints(), default=0) // self.plan.segment + 1) * self.plan.segment
        self.training = Training(config, folder.location, self.plan, self.flag, until)
        self.training.start()

    def _note(self, event: Event) -> None:
        """Take an evaluation into the row. The objective is the best KID so far: of the generator that is kept."""
        kid = event["metric/kid"]
        better = kid < self.row.get("kid", float("inf"))
        best = {"kid": kid, "kid_at": event["images_seen"]} if better else {}
        if better:
            best |= {name: event[f"metric/{name}"] for name in ("fid", "precision", "recall", "coverage")}
        self.row |= {
            "images_seen": event["images_seen"],
            "kid_now": kid,
            "floor": event["floor/kid"],
            **best,
            **self._who(),
            "status": "running",
            "done": False,
        }

    def _who(self) -> Row:
        """Which run the figures are of."""
        run = self.place(self.generation).rpartition("/")[2]
        return {"run": run, "generation": self.generation, "parent": self.parent, "settings": self.settings}

    def _ended(self, training: Training) -> Row:
        outcome, self.training = training.outcome, None
        if "failed" in outcome.events:
            return self._end("failed", outcome.events["failed"]["reason"])
        if "done" in outcome.events:
            seen = outcome.events["done"]["images_seen"]
            self.row["images_seen"] = seen
            goes_on = self.plan.segment and seen < self.plan.config(self.settings).total_images
            return self.row if goes_on else self._end("done")
        if "stopped" in outcome.events:
            return self._end("interrupted")
        return self._end("failed", reason_of(outcome.error or "the workers ended early"))

    def _end(self, status: str, reason: str = "") -> Row:
        return self.row | {"status": status, "reason": redact(reason), "settings": self.settings, "done": True}


def take_over(donor: RunFolder, images_seen: int, child: RunFolder) -> int:
    """Give a new run folder what a donor was at a checkpoint: weights, figures up to there, its best generator.

    Returns the images_seen of that checkpoint: a later one, where the donor has trained on and dropped it.
    """
    kept = donor.checkpoints()
    taken = images_seen if images_seen in kept else max(kept)
    child.save_checkpoint(taken, donor.read_checkpoint(taken), keep=1, best=None)
    for part in ("generator", "samples"):
        for name in donor.names(part):
            child.write(f"{part}/{name}", donor.read(f"{part}/{name}"))
    child.write("metrics.jsonl", donor.read("metrics.jsonl"))  # the run cuts what lies past the checkpoint
    return taken


OUT_OF_MEMORY = ("out of memory", "outofmemory", "can't allocate memory", "cannot allocate memory", "memoryerror")
LOST = ("actordied", "actor died", "node died", "workercrashed", "worker died", "nodediederror", "unavailable")


LOST_WORKER = "lost its worker: the same command goes on with it"
LOST_AGAIN = "lost its worker twice at the same place: perhaps for want of memory, as kernels say nothing"


def reason_of(error: str) -> str:
    """What Ray or torch said, in a few words."""
    low = error.lower()
    if any(words in low for words in OUT_OF_MEMORY):
        return "out of memory: a smaller model.width or global_batch needs less"
    if any(words in low for words in LOST):
        return LOST_WORKER
    error = redact(error)
    return error if len(error) <= 200 else error[:197] + "..."
