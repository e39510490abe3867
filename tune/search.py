"""A search: trials drawn, packed onto the cluster, ranked, the best trained again by more seeds, the winner written.

What a search knows lies in its folder, a record per trial, so that the same command goes on after anything: trials
that were done stay, those that were cut go on from their checkpoints, and the algorithm is told both.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray import tune
from ray.tune.execution import class_cache
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from scipy import stats

from medgan import config as configs
from medgan.config import Refused
from medgan.data.shards import Manifest, filesystem
from medgan.folder import RunFolder, SearchFolder
from medgan.ray_train import Interrupt, taken
from medgan.search_page import search_page
from medgan.tracking import rows_of
from tune import schedulers
from tune.algorithms import UNFINISHED, Draws, distribution, trial_name
from tune.spaces import Choice, Domain, Space
from tune.trial import LOST_AGAIN, LOST_WORKER, Flag, Plan, Trial, reason_of

Record = dict[str, Any]
# Tune hands keys of storage on to trials, and Ray writes them into its logs. Every host has its own, as for a training.
class_cache.ENV_VARS_TO_PROPAGATE = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")}

SHOWN = ("kid", "kid_at", "kid_now", "fid", "precision", "recall", "coverage", "floor", "images_seen", "images_per_s")
"""What a record takes from a trial's row as it is."""


@dataclass(frozen=True)
class Request:
    """What a search is asked for."""

    data: str
    out: str
    trials: int
    workers: int = 1
    """Workers per trial."""
    use: str = "auto"
    """What a worker takes: auto (GPUs where there are any now), gpu or cpu."""
    at_once: int | None = None
    """How many trials at a time, whether there is room for them yet or not; None: as many as there is room for now."""
    space: tuple[str, ...] = ()
    """Narrowings, as given to --space."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Settings that every trial has."""
    algorithm: str = "tpe"
    objectives: tuple[str, ...] = ("kid",)
    scheduler: str = "asha"
    finalists: int = 2
    seeds: int = 3
    """Fresh seeds per finalist."""
    seed: int = 0
    """Of the drawing; the trials' own is the setting `seed`."""

    @property
    def total_images(self) -> int:
        return int(self.fixed["total_images"])

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same where a search goes on. The number of trials and of workers may differ, what they take,
        and how many finalists there are."""
        tree = asdict(self)
        free = ("out", "data", "trials", "workers", "use", "at_once", "finalists", "seeds")
        kept = {key: list(value) if isinstance(value, tuple) else value for key, value in tree.items()}
        return {key: dict(value) if key == "fixed" else value for key, value in kept.items() if key not in free}


def with_defaults(fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of every trial: how long it trains and how often it is looked at, where the user did not say."""
    total = int(fixed.get("total_images", 100_000))
    every = total / schedulers.FIRST / 1000
    given = {"evaluate.interval_kimg": every, "checkpoint.interval_kimg": every}
    return {"total_images": total, **given, "tracking.interval_kimg": min(1.0, total / 50_000), **fixed}


def check_same(stored: Mapping[str, Any], wanted: Mapping[str, Any], out: str) -> None:
    """Raises Refused, naming every key in which a stored search is another one."""
    old, new = configs.flatten(stored["search"]), configs.flatten(wanted)
    keys = sorted(key for key in {**old, **new} if old.get(key) != new.get(key))
    differing = [f"{key}={new.get(key)} (it has {old.get(key)})" for key in keys]
    if differing:
        raise Refused(f"--out {out}: another search: {', '.join(differing)}")


def check_data(space: Space, request: Request, manifest: Manifest, sha256: str) -> None:
    """Raises Refused where settings that all trials share do not suit DATA."""
    settings = space.random(np.random.default_rng(0))
    Plan(request.data, request.out, manifest.to_json(), sha256, request.workers, False).config(settings)


# -- the cluster -------------------------------------------------------------------------------------------------------


def slots(
    resources: Mapping[str, float], workers: int, use: str = "auto", at_once: int | None = None
) -> tuple[int, str]:
    """(how many trials run at a time, on GPUs or CPUs). at_once: so many, those that an autoscaler has to make room for
    included; None: as many as there is room for now. Raises Refused where there is none for one."""
    unit, have = taken(resources, use, "--at-once 8")
    if at_once is not None:
        return at_once, unit
    if workers > have:
        raise Refused(f"--workers-per-trial {workers}: the cluster has {have} {unit}s")
    return have // workers, unit


def bundle(gpu: bool, workers: int) -> PlacementGroupFactory:
    """What a trial's own process takes: a core and a GPU where it trains itself, else memory alone, since its workers
    take theirs."""
    if workers > 1:
        return PlacementGroupFactory([{"memory": 300 * 2**20}])
    return PlacementGroupFactory([{"CPU": 1, "GPU": 1} if gpu else {"CPU": 1}])


def prepare_nodes(data: str, n: int, extractor: str, gpu: bool) -> None:
    """Fill the data cache and measure the real images, once on every node, before trials start beside each other."""
    tasks = []
    for node in ray.nodes():
        unit = "GPU" if gpu else "CPU"
        if node["Alive"] and node["Resources"].get(unit, 0) >= 1:
            options = {"num_cpus": 0 if gpu else 1, "num_gpus": 1 if gpu else 0}
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            tasks.append(ray.remote(_prepare).options(**options, scheduling_strategy=here).remote(data, n, extractor))
    ray.get(tasks)


def _prepare(data: str, n: int, extractor: str) -> None:
    import torch

    from medgan.data.loader import open_split
    from medgan.distributed import World
    from medgan.metrics.features import EXTRACTORS, real_features

    world = World(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    measure = EXTRACTORS[extractor](world.device)
    splits = [open_split(data, name) for name in ("train", "val")]
    for split in splits:
        real_features(split, min(n, *map(len, splits)), measure, world)


# -- what is known -----------------------------------------------------------------------------------------------------


class Ledger(tune.Callback):
    """Every trial's record, written whenever it changes. `on_change` is called with it, or a line, in Tune's thread."""

    def __init__(self, folder: SearchFolder, on_change: Callable[[Any], None]) -> None:
        self.folder, self.on_change = folder, on_change
        self.records: dict[str, Record] = {record["name"]: record for record in folder.trials()}
        for record in self.records.values():
            if record["reason"] == LOST_WORKER:  # what was lost was no fault of the trial's, unless it happens again
                if record.get("lost_at") == record["images_seen"]:
                    record["reason"] = LOST_AGAIN
                else:
                    record |= {"status": "interrupted", "reason": "", "lost_at": record["images_seen"]}
        self.began: dict[str, float] = {}
        self.warned = False

    def add(self, record: Record) -> None:
        self.records[record["name"]] = record
        self.folder.write_trial(record)

    def _of(self, trial: Any) -> Record:
        return self.records[trial.config["job"]["name"]]

    def _keep(self, record: Record) -> None:
        self.folder.write_trial(record)
        self.on_change(record)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        record = self._of(trial)
        self.began[record["name"]] = time.time()
        record["status"] = "running"
        self._keep(record)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        record = self._of(trial)
        record |= {name: result[name] for name in SHOWN if name in result}
        if "wandb" in result and not self.warned:
            self.warned = True
            self.on_change(f"trial {record['name']}, maybe others too: {result['wandb']}")
        now = time.time()
        record["seconds"] = record.get("seconds", 0.0) + now - self.began.get(record["name"], now)
        self.began[record["name"]] = now
        record["status"], record["reason"] = result.get("status", "running"), result.get("reason", "")
        if result.get("run", record["run"]) != record["run"]:
            before = record["settings"]
            record["lineage"] = [
                *record.get("lineage", []),
                {"run": result["run"], "from": result["parent"], "settings": result["settings"], "before": before},
            ]
            record |= {"run": result["run"], "settings": result["settings"]}
        point = [result["images_seen"], result.get("kid"), result.get("kid_now"), result.get("coverage")]
        if "kid" in result and (not record["history"] or record["history"][-1][0] < point[0]):
            record["history"].append(point)
        self._keep(record)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        record = self._of(trial)
        if record["status"] == "running":  # the scheduler stopped it; one at its end says so itself
            at_end = record.get("images_seen", 0) >= record["total_images"]
            record["status"] = "done" if at_end else "stopped"
            record["reason"] = "" if at_end else "others were better at this many images"
        self._keep(record)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        record = self._of(trial)
        error = trial.get_pickled_error()
        text = " ".join(f"{type(error).__name__} {error}".split())
        record |= {"status": "failed", "reason": reason_of(text)}
        self._keep(record)

    def settle(self) -> None:
        """After the trials' ends: one that is stopped trains on to its next report, which Tune no longer hears."""
        for record in self.records.values():
            run = self.folder.run(record)
            if run.exists("metrics.jsonl") and not record.get("lineage"):
                seen = [row["images_seen"] for row in rows_of(run)]
                if max(seen, default=0) > record["images_seen"]:
                    record["images_seen"] = max(seen)
                    self.folder.write_trial(record)

    # -- questions -----------------------------------------------------------------------------------------------------

    def of_kind(self, kind: str) -> list[Record]:
        return [record for record in self.records.values() if record["kind"] == kind]

    def ranking(self, kind: str = "trial") -> list[Record]:
        """Trials with a KID, best first; of those that trained to their end before those that did not."""
        return ranking(self.of_kind(kind))


def ranking(records: Sequence[Record]) -> list[Record]:
    known = [record for record in records if record.get("kid") is not None and record["status"] != "failed"]
    return sorted(known, key=lambda record: (record["status"] in ("stopped",), record["kid"]))


def new_record(name: str, kind: str, settings: Mapping[str, Any], total_images: int, **more: Any) -> Record:
    return {
        **{"name": name, "kind": kind, "run": name, "settings": dict(settings), "total_images": total_images},
        **{"status": "waiting", "reason": "", "images_seen": 0, "history": [], **more},
    }


# -- trials ------------------------------------------------------------------------------------------------------------


class Source(Searcher):
    """Ray Tune's view of what is to run: trials to go on with first, then new ones up to the number asked for."""

    def __init__(self, request: Request, ledger: Ledger, draws: Draws, stopping: Callable[[], bool]) -> None:
        super().__init__(metric="kid", mode="min")
        self.request, self.ledger, self.draws, self.stopping = request, ledger, draws, stopping
        known = ledger.of_kind("trial")
        self.unfinished = [record for record in known if record["status"] in UNFINISHED]
        self.names: dict[str, str] = {}
        self.next = len(known)
        draws.restore(known)

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        if self.stopping():
            return Searcher.FINISHED
        if self.unfinished:
            record = self.unfinished.pop(0)
        elif self.next < self.request.trials:
            settings, drawn = self.draws.draw(self.next)
            record = new_record(trial_name(self.next), "trial", settings, self.request.total_images, draws=drawn)
            self.next += 1
            self.ledger.add(record)
        else:
            return Searcher.FINISHED
        self.names[trial_id] = record["name"]
        return {"job": {"name": record["name"], "settings": record["settings"]}}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        record = dict(self.ledger.records[self.names[trial_id]])
        if error:
            record["status"] = "failed"
        elif record["status"] == "running":
            record["status"] = "stopped"
        self.draws.tell(record)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the folder has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class Ending(tune.Stopper):
    """Ends the experiment once a stop was asked for and no trial runs any more; trials end by themselves."""

    def __init__(self, ledger: Ledger, stopping: Callable[[], bool]) -> None:
        self.ledger, self.stopping = ledger, stopping

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        running = any(record["status"] == "running" for record in self.ledger.records.values())
        return self.stopping() and not running


class Search:
    """One search on the connected cluster. slots, unit: see `slots`. `tell` gets a line or a record that changed."""

    def __init__(
        self,
        request: Request,
        space: Space,
        manifest: Manifest,
        sha256: str,
        slots: int,
        unit: str,
        tell: Callable[[Any], None],
    ):
        self.request, self.space, self.manifest, self.tell = request, space, manifest, tell
        self.folder = SearchFolder(request.out)
        self.ledger = Ledger(self.folder, tell)
        self.slots = slots
        pbt = request.algorithm == "pbt"
        self.segment = int(float(request.fixed["evaluate.interval_kimg"]) * 1000) if pbt else 0
        gpu = unit == "GPU"
        self.plan = Plan(request.data, request.out, manifest.to_json(), sha256, request.workers, gpu, self.segment)
        self.flag: Any = None
        self.interrupt = Interrupt()

    def run(self) -> None:
        """All of it; ends early where it is interrupted. `interrupt.asked` says so afterwards."""
        request = self.request
        config = configs.load(overrides={k: v for k, v in request.fixed.items() if k.startswith("evaluate.")})
        self.tell("reading the data and measuring the real images, once on every host ...")
        prepare_nodes(request.data, config.evaluate.n, config.evaluate.extractor, self.plan.gpu)
        # On this host, as `fit` has its queues: whatever host dies, the trials that are left can still ask.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.flag = Flag.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        with self.interrupt:
            self._phase(self._population if request.algorithm == "pbt" else self._trials)
            if not self.interrupt.asked and request.finalists and request.algorithm != "pbt":
                self._phase(self._finals)
        self._notes_away()
        self.ledger.settle()
        write_results(self.folder, list(self.ledger.records.values()), self.space)

    # -- phases --------------------------------------------------------------------------------------------------------

    def _phase(self, phase: Callable[[], None]) -> None:
        """Run a phase in a thread, so that Ctrl-C stays ours: in the main thread Tune takes it."""
        failed: list[BaseException] = []

        def run() -> None:
            try:
                phase()
            except BaseException as error:
                failed.append(error)

        thread, told = threading.Thread(target=run, daemon=True), False
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
            if self.interrupt.asked and not told:
                told = True
                self.tell("trials save a checkpoint at their next report; Ctrl-C again stops at once")
                ray.get(self.flag.raise_.remote())
        if failed:
            raise failed[0]

    def _trials(self) -> None:
        request = self.request
        draws = Draws(
            self.space,
            request.algorithm,
            request.objectives,
            request.seed,
            startup=max(4, min(10, request.trials // 4)),
        )
        source = Source(request, self.ledger, draws, lambda: self.interrupt.asked)
        if request.scheduler == "asha":
            scheduler: Any = schedulers.asha(request.total_images, self.ledger.of_kind("trial"))
        else:
            scheduler = schedulers.everything()
        if source.unfinished or source.next < request.trials:
            self._tune({}, scheduler, search_alg=source, num_samples=-1)

    def _population(self) -> None:
        """Population based training: all trials exist from the start and take turns where they are more than slots."""
        request = self.request
        draws = Draws(self.space, "random", ("kid",), request.seed)
        for number in range(len(self.ledger.of_kind("trial")), request.trials):
            settings, drawn = draws.draw(number)
            self.ledger.add(new_record(trial_name(number), "trial", settings, request.total_images, draws=drawn))
        population = schedulers.Population(self.space.ranges(), self.segment, request.seed)
        self._given([r for r in self.ledger.of_kind("trial") if r["status"] in UNFINISHED], population)

    def _finals(self) -> None:
        """The best trials again, by fresh seeds: the seed that a trial was chosen with flatters it."""
        request = self.request
        for trial in self.ledger.ranking()[: request.finalists]:
            for index in range(1, request.seeds + 1):
                name = f"{trial['name']}-seed{index}"
                if name not in self.ledger.records:
                    settings = {**trial["settings"], "seed": int(request.fixed.get("seed", 0)) + index}
                    self.ledger.add(new_record(name, "finalist", settings, request.total_images, of=trial["name"]))
        waiting = [record for record in self.ledger.of_kind("finalist") if record["status"] in UNFINISHED]
        self._given(waiting, schedulers.everything())

    def _given(self, records: Sequence[Record], scheduler: Any) -> None:
        if records:
            jobs = [{"name": record["name"], "settings": record["settings"]} for record in records]
            self._tune({"job": tune.grid_search(jobs)}, scheduler)

    def _tune(self, space: dict[str, Any], scheduler: Any, **more: Any) -> None:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what a trial came to is in its record
        trainable = tune.with_resources(
            tune.with_parameters(Trial, plan=self.plan, flag=self.flag), bundle(self.plan.gpu, self.plan.workers)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tune.Tuner(
                trainable,
                param_space=space,
                tune_config=tune.TuneConfig(
                    scheduler=scheduler, max_concurrent_trials=self.slots, reuse_actors=False, **more
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=self._notes,
                    verbose=0,
                    callbacks=[self.ledger],
                    stop=Ending(self.ledger, lambda: self.interrupt.asked),
                    failure_config=tune.FailureConfig(max_failures=1),
                ),
            ).fit()

    @property
    def _notes(self) -> str:
        """Ray keeps notes of its own about a search; all that matters is in the records, so they are thrown away."""
        return f"{self.request.out}/.ray"

    def _notes_away(self) -> None:
        fs, path = filesystem(self._notes)
        if fs.get_file_info(path).type.name == "Directory":
            fs.delete_dir(path)


# -- results -----------------------------------------------------------------------------------------------------------


def finalists(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Each finalist over its fresh seeds, best mean first: {"name", "kids", "runs", "mean", "low", "high"}.

    The interval holds the mean with 95 % (Student's t over seeds); it is missing where there are fewer than two.
    """
    found: dict[str, list[Record]] = {}
    for record in records:
        if record["kind"] == "finalist" and record["status"] == "done":
            found.setdefault(record["of"], []).append(record)
    made = []
    for name, runs in found.items():
        kids = [record["kid"] for record in runs]
        row: dict[str, Any] = {"name": name, "kids": kids, "runs": [record["run"] for record in runs]}
        row |= {"mean": statistics.mean(kids), "low": None, "high": None}
        if len(kids) > 1:
            half = float(stats.t.ppf(0.975, len(kids) - 1)) * statistics.stdev(kids) / len(kids) ** 0.5
            row |= {"low": row["mean"] - half, "high": row["mean"] + half}
        made.append(row)
    return sorted(made, key=lambda row: row["mean"])


def winner(records: Sequence[Record]) -> tuple[Record, str] | None:
    """The record whose config wins, and why: by the mean over fresh seeds, or, without finalists, by its own KID."""
    best = finalists(records)
    if best:
        runs = [r for r in records if r["kind"] == "finalist" and r["of"] == best[0]["name"] and r["status"] == "done"]
        run = min(runs, key=lambda record: record["kid"])
        mean, low, high = (best[0][key] for key in ("mean", "low", "high"))
        interval = "" if low is None else f", 95 % interval {low:.4g} to {high:.4g}"
        why = f"mean KID {mean:.4g} over {len(best[0]['kids'])} fresh seeds{interval}"
        if len(best) > 1 and low is not None and best[1]["low"] is not None and best[1]["low"] < high:
            why += f"; its interval overlaps that of trial {best[1]['name']}, so that either may be better"
        return run, why
    ranked = ranking([record for record in records if record["kind"] == "trial"])
    if not ranked:
        return None
    return ranked[0], f"KID {ranked[0]['kid']:.4g} of one seed, the smallest of {len(ranked)} trials: it flatters"


def write_results(folder: SearchFolder, records: Sequence[Record], space: Space) -> None:
    """best.yaml, summary.json, results.parquet and report.html, from what is known."""
    best = winner(records)
    summary: dict[str, Any] = {"finalists": finalists(records), "importance": importance(records, space)}
    if best is not None:
        record, why = best
        run = folder.run(record)
        tree = configs.parse_yaml(run.read("config.yaml"), f"{run.location}/config.yaml")
        config = configs.validate({**tree, "total_images": record["total_images"]})
        folder.write("best.yaml", f"# {why}\n# trained in trials/{record['run']}\n{configs.to_yaml(config)}")
        told = {"name": record.get("of", record["name"]), "run": record["run"], "why": why}
        summary["winner"] = {**told, "model": config.model.name, "loss": config.loss.name, "kid": record["kid"]}
    folder.write("summary.json", json.dumps(summary, indent=1) + "\n")
    if records:
        folder.write("results.parquet", results_table(folder, records))
        folder.write("report.html", search_page(folder))


def importance(records: Sequence[Record], space: Space) -> dict[str, float]:
    """How much each choice that every trial has mattered for reaching the best quarter of KIDs (PED-ANOVA,
    arXiv:2304.10255); they sum to 1. What only some trials have is not judged: too few tell. Empty below 8 trials."""
    known = [record for record in records if record["kind"] == "trial" and record.get("kid") is not None]
    known = [record for record in known if record["status"] in ("done", "stopped") and not record.get("lineage")]
    if len(known) < 8:
        return {}
    rows = [record["settings"] | configs.cell_of(space.config(record["settings"])) for record in known]
    domains: dict[str, Domain] = {knob.key: knob.domain for knob in space.knobs}
    domains |= {axis: Choice(tuple(sorted({row[axis] for row in rows}))) for axis in configs.AXES}
    drawn = {k: d for k, d in domains.items() if all(k in row and d.admits(row[k]) for row in rows)}
    judged = {key: domain for key, domain in drawn.items() if len({row[key] for row in rows}) > 1}
    study = optuna.create_study()
    for record, row in zip(known, rows, strict=True):
        params, known_as = {key: row[key] for key in judged}, {key: distribution(d) for key, d in judged.items()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=known_as, value=record["kid"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is new, and that few trials tell little
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(value) for key, value in found.items() if math.isfinite(value)}


def results_table(folder: SearchFolder, records: Sequence[Record]) -> bytes:
    """A row per trial: what it came to, and its whole config, a column per dotted key."""
    rows = []
    for record in records:
        row = {key: record.get(key) for key in ("name", "kind", "of", "run", "status", "reason", *SHOWN, "seconds")}
        run: RunFolder = folder.run(record)
        config = run.config() if run.exists("config.yaml") else None
        settings = configs.flatten(config.dump()) if config else record["settings"]
        row |= {
            key: value if not isinstance(value, list) else ",".join(map(str, value)) for key, value in settings.items()
        }
        rows.append(row)
    keys = {key: None for row in rows for key in row}
    buffer = io.BytesIO()
    pq.write_table(pa.table({key: _column([row.get(key) for row in rows]) for key in keys}), buffer)
    return buffer.getvalue()


def _column(values: list[Any]) -> pa.Array:
    """Numbers or words; where there are both, such as a weight or `auto`, all of them as words."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values])


def quiet() -> None:
    """Ray Tune's own reports and loggers off; before ray.tune is used."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
