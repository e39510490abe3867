"""Which trial trains on: all, those that ASHA promotes, or a population whose worst take over from its best.

Time is images_seen everywhere, so that trials of unlike speed and batch size are compared at equal training.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler

from tune.spaces import Range

REDUCTION = 4
"""ASHA trains a quarter of what reached a rung on to the next, which lies four times as far."""
FIRST = 12
"""Its first rung lies at this part of total_images, so that the rungs are 1/12 and 1/3."""


class Halving(ASHAScheduler):
    """ASHA that knows a trial by its own name, which stays where a search goes on; Ray gives it another id then."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, _named(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return str(super().on_trial_result(tune_controller, _named(trial), result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, _named(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_remove(tune_controller, _named(trial))


def _named(trial: Any) -> Any:
    """As much of a trial as ASHA looks at."""
    return SimpleNamespace(trial_id=trial.config["job"]["name"])


def asha(total_images: int, past: Iterable[Mapping[str, Any]] = ()) -> ASHAScheduler:
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934) on the best KID so far.

    past: records of trials that have begun, the unfinished too: they take their places on the rungs again, each with
    the KID that it had there, so that a search that goes on decides as one that was never stopped.
    """
    scheduler = Halving(
        time_attr="images_seen",
        metric="kid",
        mode="min",
        max_t=total_images,
        grace_period=max(1, total_images // FIRST),
        reduction_factor=REDUCTION,
    )
    for record in past:
        trial = SimpleNamespace(config={"job": {"name": record["name"]}})
        scheduler.on_trial_add(None, trial)
        for images_seen, kid, *_ in record["history"]:
            scheduler.on_trial_result(None, trial, {"images_seen": images_seen, "kid": kid})
        scheduler.on_trial_remove(None, trial)
    return scheduler


def everything() -> TrialScheduler:
    """Every trial trains to its end."""
    return FIFOScheduler()


class Population(PopulationBasedTraining):
    """Population based training (Jaderberg et al. 2017, arXiv:1711.09846): at every interval a trial of the worst
    quarter takes over weights and settings of one of the best, and changes what evolves."""

    def __init__(self, ranges: Mapping[str, Range], interval: int, seed: int) -> None:
        def explore(config: dict[str, Any]) -> dict[str, Any]:
            settings = config["job"]["settings"]
            for key, domain in ranges.items():
                settings[key] = domain.clip(settings[key])
            return config

        chance = np.random.default_rng(seed)
        random.seed(seed)  # Ray draws from it whom to take over
        super().__init__(
            time_attr="images_seen",
            metric="kid",
            mode="min",
            perturbation_interval=interval,
            hyperparam_mutations={
                "job": {"settings": {key: lambda domain=domain: domain.draw(chance) for key, domain in ranges.items()}}
            },
            custom_explore_fn=explore,
            log_config=False,
        )

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> Any:
        """The donor's, changed; the trial keeps its own name."""
        config, operations = super()._get_new_config(trial, trial_to_clone)
        return {**config, "job": {**config["job"], "name": trial.config["job"]["name"]}}, operations

    def _checkpoint_or_exploit(self, trial: Any, tune_controller: Any, *quantiles: Any) -> None:
        """Ray keeps weights only of a member that is among the best when it reports, so that from one that became the
        best since, as others fell behind or ended, nobody could take over: keep everyone's, they are pointers."""
        super()._checkpoint_or_exploit(trial, tune_controller, *quantiles)
        state = self._trial_state[trial]
        if state.last_checkpoint is None and trial.status != Trial.PAUSED:  # a paused one has just taken over another's
            state.last_checkpoint = tune_controller._schedule_trial_save(trial, result=state.last_result)
