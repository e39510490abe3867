"""Does it help? Classifiers trained with and without synthetic images, tested on real patients held out.

An arm is what a classifier learns from. All arms have one budget of steps. Every draw of patients has a generator of
its own (strict: trained on those patients alone), and arms are compared within a draw, so that intervals cover the
draw of patients and the seeds of generator and classifier, and the test patients besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from medgan.cells import Cell, Result
from medgan.data import shards
from medgan.data.loader import open_split, row_weights
from medgan.metrics import classifiers, retrain
from medgan.metrics.classifiers import SCORES, Images
from medgan.metrics.evidence import Question
from medgan.metrics.retrain import device
from medgan.sample import Sampler
from medgan.streams import stream_seed

HERE = "medgan.metrics.utility"
POOL = 2.0
"""Synthetic images that are drawn for each real one; arms take some of them."""
MATTERS = 0.02
"""A smaller gain than this is none."""
RESAMPLES = 200


@dataclass(frozen=True)
class Arm:
    """What a classifier learns from."""

    real: bool = True
    classical: bool = False
    """Rotated, scaled, shifted, of other contrast."""
    oversampled: bool = False
    """All classes equally often."""
    synthetic: float = 0.0
    """Generated images for each real one, all classes equally often."""
    confident: bool = False
    """Only the half of the generated ones whose class a classifier of the same real images is surest of."""
    pretrained: bool = False
    """Half of the budget on generated images, the other half on real ones."""


ARMS = {
    "real": Arm(),
    "real+classical": Arm(classical=True),
    "real+oversampled": Arm(oversampled=True),
    "synthetic": Arm(real=False, synthetic=2.0),
    "real+synthetic 0.5x": Arm(synthetic=0.5),
    "real+synthetic 1x": Arm(synthetic=1.0),
    "real+synthetic 2x": Arm(synthetic=2.0),
    "real+classical+synthetic": Arm(classical=True, synthetic=1.0),
    "real+classical+confident": Arm(classical=True, synthetic=1.0, confident=True),
    "pretrained+classical": Arm(classical=True, synthetic=2.0, pretrained=True),
}
BASELINE, CANDIDATE = "real+classical", "real+classical+synthetic"
CLAIM = "macro_f1"


@dataclass(frozen=True)
class Grid:
    """Which cells there are: every arm, in every scenario, with every network, for every draw and seed."""

    arms: tuple[str, ...] = (BASELINE, CANDIDATE)
    scenarios: tuple[str, ...] = ("5%",)
    """A share of the train patients, such as 5%; or `rare 5%`: of those of the rarest class, and all others."""
    networks: tuple[str, ...] = ("small-cnn",)
    draws: int = 5
    seeds: int = 2
    """Classifiers of each arm and draw."""
    strict: bool = True
    """The generator is trained on the draw's patients alone; otherwise the given one, which has seen them all."""
    images: int = 60_000
    """Real images shown to D in each strict training."""
    unlabelled: int = 0
    """Strict trainings begin with one on so many of all train images, without their labels: for where images are many
    and labels few. Classifiers of real images cannot use them."""
    steps: int = classifiers.STEPS


FULL = Grid(
    arms=tuple(ARMS),
    scenarios=("1%", "5%", "10%", "100%", "rare 5%"),
    networks=("small-cnn", "resnet18"),
)


def parse_scenario(text: str) -> tuple[float, bool]:
    """'5%' -> (0.05, False), 'rare 5%' -> (0.05, True). Raises ValueError."""
    share = text.removeprefix("rare ").removesuffix("%")
    value = float(share) / 100 if text.endswith("%") else -1.0
    if not 0 < value <= 1:
        raise ValueError(f"{text}: give a share of the train patients such as 5%, or of the rarest class's: 'rare 5%'")
    return value, text.startswith("rare ")


def plan(question: Question, grid: Grid, recipe: dict[str, Any]) -> dict[str, Cell]:
    """One cell, `utility`, that needs all the others. recipe: config of the strict trainings, as plain types."""
    trained = []
    before: tuple[Cell, ...] = ()
    if grid.strict and grid.unlabelled:
        wanted = {"data": question.data, "config": recipe, "images": grid.unlabelled, "seed": question.seed}
        before = (Cell("generator without labels", "medgan.metrics.retrain:unlabelled", wanted),)
    for scenario in grid.scenarios:
        for draw in range(grid.draws):
            which = {"data": question.data, "scenario": scenario, "draw": draw, "seed": question.seed}
            if grid.strict:
                made = {**which, "config": recipe, "images": grid.images}
                pool = Cell(f"generator of {scenario}, draw {draw}", f"{HERE}:strict_pool", made, before)
            else:
                pool = Cell(
                    f"pool of {scenario}, draw {draw}", f"{HERE}:given_pool", {**which, "subject": question.subject}
                )
            for network in grid.networks:
                for arm in grid.arms:
                    for seed in range(grid.seeds):
                        trained.append(
                            Cell(
                                f"{arm}, {network}, {scenario}, draw {draw}.{seed}",
                                f"{HERE}:classify",
                                {**which, "arm": arm, "network": network, "classifier": seed, "steps": grid.steps},
                                (pool,) if ARMS[arm].synthetic else (),
                            )
                        )
    settings: dict[str, Any] = {"strict": grid.strict, "steps": grid.steps}
    if grid.strict:
        settings |= {"images": grid.images, "unlabelled": grid.unlabelled}
    arguments = {"data": question.data, "settings": settings, "seed": question.seed}
    return {"utility": Cell("differences", f"{HERE}:compare", arguments, tuple(trained))}


# -- cells ---------------------------------------------------------------------------------------------------------


def drawn_rows(labels: np.ndarray, patients: np.ndarray, scenario: str, draw: int, seed: int) -> np.ndarray:
    """Rows of train whose patients a draw keeps: the same share of each class's, at least two; int64, ascending.

    labels: uint8 (N, K); patients: int64 (N,). A patient counts for the rarest class that one of their images has.
    """
    share, rare_only = parse_scenario(scenario)
    by_rarity = np.argsort(labels.sum(0), kind="stable")
    count = patients.max() + 1
    group = np.full(count, -1)
    for index in by_rarity[::-1]:  # the rarest has the last word
        group[np.unique(patients[labels[:, index] > 0])] = index
    random = np.random.default_rng(stream_seed(seed, f"utility/{scenario}", draw))
    kept: list[np.ndarray] = []
    for index in np.unique(group):
        members = random.permutation(np.flatnonzero(group == index))
        part = 1.0 if rare_only and index != by_rarity[0] else share
        kept.append(members[: max(2, round(part * len(members)))])
    return np.flatnonzero(np.isin(patients, np.concatenate(kept)))


def _train_rows(data: dict[str, str], scenario: str, draw: int, seed: int) -> tuple[Any, np.ndarray]:
    train = open_split(data["location"], "train")
    patients = np.unique(shards.column(data["location"], "train", "patient"), return_inverse=True)[1]
    return train, drawn_rows(train.labels, patients, scenario, draw, seed)


def pool_labels(labels: np.ndarray, draw: int, seed: int) -> np.ndarray:
    """Labels of POOL synthetic images for each of these, all classes equally often: uint8 (M, K)."""
    weights = row_weights(labels, 1.0)
    random = np.random.default_rng(stream_seed(seed, "utility/pool", draw))
    return labels[random.choice(len(labels), int(POOL * len(labels)), p=weights / weights.sum())]


def strict_pool(
    *before: Result, data: dict[str, str], scenario: str, draw: int, seed: int, config: dict[str, Any], images: int
) -> Result:
    """Synthetic images of a generator that has seen the draw's patients and no others, and before, where there is a
    training without labels, all images without their labels.
    """
    train, rows = _train_rows(data, scenario, draw, seed)
    settled = retrain.recipe(config, stream_seed(seed, f"utility/{scenario}/generator", draw), images)
    begin = before[0]["checkpoint"].tobytes() if before else None
    state, spent = retrain.fit(settled, train, rows, device(), begin)
    labels = pool_labels(train.labels[rows], draw, seed)
    return {"pixels": retrain.draw(state.ema, settled, labels, "utility"), "labels": labels, **spent}


def given_pool(*, data: dict[str, str], scenario: str, draw: int, seed: int, subject: dict[str, str]) -> Result:
    """Synthetic images of the generator, or of the release, that is evaluated."""
    train, rows = _train_rows(data, scenario, draw, seed)
    labels = pool_labels(train.labels[rows], draw, seed)
    if "synthetic" in subject:
        release = open_split(subject["synthetic"], "train")
        weights = row_weights(release.labels, 1.0)
        random = np.random.default_rng(stream_seed(seed, "utility/release", draw))
        count = min(len(labels), len(release))
        chosen = random.choice(len(release), count, replace=False, p=weights / weights.sum())
        return {"pixels": release.pixels[chosen], "labels": release.labels[chosen]}
    sampler = Sampler.open(subject["run"], device())
    return {"pixels": sampler.draw(labels, stream_seed(seed, "utility/given", draw))[0], "labels": labels}


def classify(
    *pool: Result,
    data: dict[str, str],
    scenario: str,
    draw: int,
    seed: int,
    arm: str,
    network: str,
    classifier: int,
    steps: int,
) -> Result:
    """One classifier: its answers on the real test images (N, K), and SCORES of them."""
    what = ARMS[arm]
    train, rows = _train_rows(data, scenario, draw, seed)
    test = open_split(data["location"], "test")
    real = Images(train.pixels[rows], train.labels[rows])
    single = classifiers.exclusive(train.labels)
    own = stream_seed(seed, f"utility/{scenario}/{draw}/classifier", classifier)
    common: dict[str, Any] = {"single": single, "augment": what.classical, "device": device()}
    made = real.some(np.arange(0))
    if what.synthetic:
        made = Images(pool[0]["pixels"], pool[0]["labels"])
        wanted = min(len(made), round(what.synthetic * len(real)))
        if what.confident:
            reader = classifiers.train(real, network, own, steps=steps, **{**common, "augment": True})
            made = surest(made, classifiers.predict(reader, made.pixels, single=single))
        made = made.some(np.arange(len(made))[:wanted])
    if what.pretrained:
        first = classifiers.train(made, network, own, steps=steps // 2, **common)
        model = classifiers.train(real, network, own, steps=steps - steps // 2, begin=first, **common)
    else:
        learnt = Images.together([real] * what.real + [made] * (len(made) > 0))
        weights = row_weights(learnt.labels, 1.0) if what.oversampled else None
        model = classifiers.train(learnt, network, own, steps=steps, weights=weights, **common)
    answers = classifiers.predict(model, test.pixels, single=single)
    rare = int(train.labels.sum(0).argmin())
    scores = classifiers.scores(answers, test.labels, rare, single=single)
    which = {"arm": arm, "scenario": scenario, "network": network, "draw": draw, "seed": classifier}
    return {"answers": answers, "row": {**which, "real": len(real), "synthetic": len(made), **scores}}


def surest(images: Images, answers: np.ndarray) -> Images:
    """The half of each class's images to which the answers (N, K) give their labels with the highest probability."""
    sure = np.where(images.labels > 0, answers, 1 - answers).prod(1)
    kept = np.zeros(len(images), bool)
    for one in np.unique(images.labels, axis=0):
        rows = np.flatnonzero((images.labels == one).all(1))
        kept[rows[np.argsort(-sure[rows], kind="stable")[: (len(rows) + 1) // 2]]] = True
    return images.some(np.flatnonzero(kept))


# -- what follows from them -----------------------------------------------------------------------------------------


def compare(*trained: Result, data: dict[str, str], settings: dict[str, Any], seed: int) -> Result:
    """The section `utility` of an evaluation: every cell, differences to BASELINE, and the claim."""
    test = open_split(data["location"], "test")
    patients = np.unique(shards.column(data["location"], "test", "patient"), return_inverse=True)[1]
    labels = open_split(data["location"], "train").labels
    single, rare = classifiers.exclusive(labels), int(labels.sum(0).argmin())
    rows = [one["row"] for one in trained]
    found: dict[tuple[str, str], dict[str, dict[int, list[np.ndarray]]]] = {}
    for one in trained:
        row = one["row"]
        of_arm = found.setdefault((row["scenario"], row["network"]), {}).setdefault(row["arm"], {})
        of_arm.setdefault(row["draw"], []).append(one["answers"])
    differences = []
    for (scenario, network), arms in found.items():
        for arm in arms:
            if arm != BASELINE and BASELINE in arms:
                random = np.random.default_rng(stream_seed(seed, "utility/test", 0))
                gained = difference(arms[arm], arms[BASELINE], test.labels, patients, rare, random, single=single)
                which = {"arm": arm, "against": BASELINE, "scenario": scenario, "network": network}
                differences += [{**which, "score": score, **values} for score, values in gained.items()]
    result = {"settings": settings, "cells": rows, "differences": differences}
    classes = shards.read_manifest(data["location"])[0].classes
    return {**result, "rare": classes[rare], "claim": claim(differences, settings)}


def difference(
    ours: dict[int, list[np.ndarray]],
    theirs: dict[int, list[np.ndarray]],
    labels: np.ndarray,
    patients: np.ndarray,
    rare: int,
    random: np.random.Generator,
    *,
    single: bool,
) -> dict[str, dict[str, Any]]:
    """For each of SCORES: value (ours less theirs), low, high, draws.

    ours, theirs: answers (N, K) of every seed, by draw. The variance of the mean over draws is that between draws,
    which holds patients, generator and classifier, plus that of resampling the test patients, which all draws share.
    The interval is Student's with draws - 1 degrees of freedom, 95 %; with one draw there is none.
    """
    draws = sorted(ours.keys() & theirs.keys())

    def gains(rows: np.ndarray) -> np.ndarray:
        """(draws, scores)"""
        return np.array(
            [
                np.mean([list(_scores(one[rows], labels[rows], rare, single)) for one in ours[draw]], 0)
                - np.mean([list(_scores(one[rows], labels[rows], rare, single)) for one in theirs[draw]], 0)
                for draw in draws
            ]
        )

    seen = gains(np.arange(len(labels)))
    groups = [np.flatnonzero(patients == one) for one in np.unique(patients)]
    resampled = [
        gains(np.concatenate([groups[i] for i in random.integers(0, len(groups), len(groups))])).mean(0)
        for _ in range(RESAMPLES)
    ]
    of_test = np.nanvar(resampled, 0, ddof=1)
    found = {}
    for index, score in enumerate(SCORES):
        value, low, high = float(seen[:, index].mean()), None, None
        if len(draws) > 1:
            error = float(np.sqrt(seen[:, index].var(ddof=1) / len(draws) + of_test[index]))
            half = float(student.ppf(0.975, len(draws) - 1)) * error
            low, high = value - half, value + half
        found[score] = {"value": value, "low": low, "high": high, "draws": len(draws)}
    return found


def _scores(answers: np.ndarray, labels: np.ndarray, rare: int, single: bool) -> Sequence[float]:
    return [classifiers.scores(answers, labels, rare, single=single)[name] for name in SCORES]


def verdict(low: float | None, high: float | None) -> str:
    """helps, harms, does not help (no gain that matters), or cannot tell, of a score of which more is better."""
    if low is None or high is None:
        return "cannot tell"
    if low > 0 or high < 0:
        return "helps" if low > 0 else "harms"
    return "does not help" if high < MATTERS else "cannot tell"


def claim(differences: Sequence[dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    """What it comes to in the first scenario: the difference in CLAIM between CANDIDATE and BASELINE, as a sentence."""
    found = next((d for d in differences if d["arm"] == CANDIDATE and d["score"] == CLAIM), None)
    if found is None:
        return {"verdict": "cannot tell", "sentence": f"Not asked: the grid lacks {CANDIDATE} or {BASELINE}."}
    what = verdict(found["low"], found["high"])
    between = "" if found["low"] is None else f" [{found['low']:+.3f}, {found['high']:+.3f}]"
    who = "trained on those patients alone" if settings["strict"] else "which had seen all training patients"
    if settings.get("unlabelled"):
        who = "trained on those patients after all images without labels"
    share = found["scenario"].replace("%", " %")
    said = {
        "helps": "synthetic images help",
        "harms": "synthetic images harm",
        "does not help": "synthetic images do not help",
        "cannot tell": "it cannot be told whether synthetic images help",
    }[what]
    sentence = (
        f"With {share} of the training patients {said} beyond classical augmentation: {SCORES[CLAIM][0]} "
        f"{found['value']:+.3f}{between} over {found['draws']} draws of patients, generator {who}."
    )
    return {**found, "verdict": what, "sentence": sentence}
