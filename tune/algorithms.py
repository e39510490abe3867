"""Which settings the next trial gets: at random, or by Optuna's tree-structured Parzen estimator.

What is drawn for trial N depends on the search's seed, N and the results so far alone: a search that was stopped and
goes on draws nothing twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from medgan.config import Refused
from medgan.names import one_line
from medgan.streams import stream_seed
from tune.spaces import Choice, Domain, Settings, Space

OBJECTIVES = {
    "kid": StudyDirection.MINIMIZE,
    "images_per_s": StudyDirection.MAXIMIZE,
    "coverage": StudyDirection.MAXIMIZE,
}
"""What may be searched for: columns of a trial's row, and which way is better."""

FAILED = {"kid": 10.0, "images_per_s": 0.0, "coverage": 0.0}
"""What a trial that failed counts as; an untrained generator's KID is 3 to 5."""

Record = dict[str, Any]
UNFINISHED = ("waiting", "running", "interrupted")
"""A trial's status while it is to go on; then it is done, stopped (by the scheduler) or failed."""


def trial_name(number: int) -> str:
    return f"{number:03d}"


def distribution(domain: Domain) -> BaseDistribution:
    """A domain as Optuna writes it."""
    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.values)
    if domain.whole:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.scale == "log")
    return FloatDistribution(domain.low, domain.high, log=domain.scale == "log")


class Draws:
    """A study over a space: trials are drawn, told, and taken over from an earlier search."""

    def __init__(self, space: Space, algorithm: str, objectives: Sequence[str], seed: int, startup: int = 8) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.algorithm, self.seed, self.startup = space, algorithm, seed, startup
        self.objectives = tuple(objectives)
        self.study = optuna.create_study(directions=[OBJECTIVES[name] for name in objectives])
        self.asked: dict[str, int] = {}
        """Optuna's numbers of the trials that run."""

    def _sampler(self, number: int) -> BaseSampler:
        seed = stream_seed(self.seed, self.algorithm, number) % 2**32
        if self.algorithm == "random":
            return RandomSampler(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # group: settings that exist only in some trials are learnt from those; constant_liar: trials that are
            # still running count as bad ones, so that two that start together are not the same.
            return TPESampler(
                n_startup_trials=self.startup, multivariate=True, group=True, constant_liar=True, seed=seed
            )

    def draw(self, number: int) -> tuple[Settings, dict[str, Any]]:
        """Trial `number`'s settings, and what was drawn by name (from which `restore` knows them again)."""
        self.study.sampler = self._sampler(number)
        trial = self.study.ask()
        self.asked[trial_name(number)] = trial.number
        settings = self.space.settings(lambda name, domain: _suggest(trial, name, domain))
        return settings, trial.params

    def tell(self, record: Record) -> None:
        """What a trial that was drawn here, or that goes on from an earlier search, came to."""
        number, values = self.asked.pop(record["name"]), self._values(record)
        if values is None:
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, values)

    def restore(self, records: Sequence[Record]) -> None:
        """Take over what an earlier search came to; trials that are to go on count as running."""
        for record in records:
            self._add(record, self._values(record))

    def _values(self, record: Record) -> list[float] | None:
        """Objectives of a trial; those of one that was stopped early are what it had by then, and one that failed is
        as bad as can be, so that its like is not drawn again. None: there are none yet."""
        if record["status"] in UNFINISHED:
            return None
        failed = record["status"] == "failed"
        found = [FAILED[name] if failed else record.get(name) for name in self.objectives]
        return None if any(value is None for value in found) else [float(value) for value in found if value is not None]

    def _add(self, record: Record, values: list[float] | None) -> None:
        known: dict[str, BaseDistribution] = {}

        def replay(name: str, domain: Domain) -> Any:
            known[name] = distribution(domain)
            if name not in record.get("draws", {}):
                raise Refused(f"trial {record['name']}: its record has no draw of {name}, which its space asks for")
            return record["draws"][name]

        self.space.settings(replay)
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        if record["status"] in UNFINISHED:
            state = TrialState.RUNNING
            self.asked[record["name"]] = len(self.study.trials)
        try:
            trial = create_trial(state=state, params=record["draws"], distributions=known, values=values)
        except ValueError as error:
            raise Refused(
                one_line(f"trial {record['name']}: its record has draws of another space ({error})")
            ) from None
        self.study.add_trial(trial)


def _suggest(trial: optuna.Trial, name: str, domain: Domain) -> Any:
    if isinstance(domain, Choice):
        return trial.suggest_categorical(name, domain.values)
    if domain.whole:
        return trial.suggest_int(name, int(domain.low), int(domain.high), log=domain.scale == "log")
    return trial.suggest_float(name, domain.low, domain.high, log=domain.scale == "log")
