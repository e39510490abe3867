"""Does it help? Classifiers trained with and without synthetic images, tested on real patients held out.

An arm is what a classifier learns from. All arms have one budget of steps. Every draw of patients has a generator of
its own (strict: trained on those patients alone), and arms are compared within a draw, so that intervals cover the
draw of patients and the seeds of generator and classifier, and the test patients besides. Synthetic images come with
the classes as frequent as in the draw, or they fill up its rarer classes and are held against oversampling: what even
classes alone gain is not theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from medgan.cells import Cell, Result
from medgan.config import Refused
from medgan.data import shards
from medgan.data.loader import open_split, row_weights
from medgan.loop import Diverged
from medgan.metrics import classifiers, retrain
from medgan.metrics.classifiers import SCORES, Images
from medgan.metrics.evidence import Question, read_by, reader_of, recognised
from medgan.metrics.retrain import device
from medgan.sample import Sampler
from medgan.streams import stream_seed

HERE = "medgan.metrics.utility"
POOL = 2
"""Synthetic images that are drawn for each real one; arms take some of them. At most as many fill up rarer classes."""
FEWEST = 2_000
"""However few the real ones are, so many are drawn at least."""
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
    """Generated images for each real one, classes as frequent as among those; inf: all that were drawn."""
    halved: bool = False
    """Half of what a classifier is shown is real and half generated, however many there are of each; with oversampled,
    of each class too, so that who looks generated does not tell the class."""
    balanced: bool = False
    """Generated images fill up the rarer classes."""
    confident: bool = False
    """Only the half of the generated ones whose class a classifier of the same real images is surest of."""
    pretrained: bool = False
    """Half of the budget on generated images, the other half on real ones."""

    @property
    def generated(self) -> bool:
        return self.synthetic > 0 or self.balanced


ARMS = {
    "real": Arm(),
    "real+classical": Arm(classical=True),
    "real+oversampled": Arm(oversampled=True),
    "real+classical+oversampled": Arm(classical=True, oversampled=True),
    "synthetic": Arm(real=False, synthetic=2.0),
    "real+synthetic 0.5x": Arm(synthetic=0.5),
    "real+synthetic 1x": Arm(synthetic=1.0),
    "real+synthetic 2x": Arm(synthetic=2.0),
    "real+classical+synthetic": Arm(classical=True, synthetic=1.0),
    "real+classical+many": Arm(classical=True, synthetic=math.inf, halved=True),
    "real+classical+confident": Arm(classical=True, synthetic=math.inf, halved=True, confident=True),
    "real+classical+balanced": Arm(classical=True, oversampled=True, balanced=True),
    "real+classical+evened": Arm(classical=True, oversampled=True, synthetic=math.inf, halved=True, balanced=True),
    "pretrained+classical": Arm(classical=True, synthetic=math.inf, pretrained=True),
}
BASELINE, CANDIDATE = "real+classical", "real+classical+synthetic"
RIVALS = dict.fromkeys(("real+classical+balanced", "real+classical+evened"), ("real+classical+oversampled", BASELINE))
"""What an arm is held against where that is not BASELINE alone."""
CLAIM, BESIDE = "macro_f1", "auc"
"""The score of the claim, and the one that is told beside it: no threshold and no class's frequency moves it."""
SCENARIO, NETWORK = "5%", "small-cnn"
"""Of which the claim is; the first ones asked for where these were not."""


@dataclass(frozen=True)
class Grid:
    """Which cells there are: every arm, in every scenario, with every network, for every draw and seed."""

    arms: tuple[str, ...] = (BASELINE, CANDIDATE)
    scenarios: tuple[str, ...] = (SCENARIO,)
    """A share of the train patients, such as 5%; or `rare 5%`: of those of the rarest class, and all others."""
    networks: tuple[str, ...] = (NETWORK,)
    draws: int = 5
    seeds: int = 2
    """Classifiers of each arm and draw."""
    strict: bool = True
    """The generator is trained on the draw's patients alone; otherwise the given one, which has seen them all."""
    images: int = 20_000
    """Real images shown to D in each strict training: some 90 times all of a twentieth of Kermany's films."""
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


def plan(question: Question, grid: Grid, recipe: dict[str, Any], changed: Sequence[str] = ()) -> dict[str, Cell]:
    """One cell, `utility`, that needs all the others. recipe: config of the strict trainings, as plain types; changed:
    `key=value` of what it is not as the run's was, to be told.
    """
    trained, read = [], []
    reader = reader_of(question.data, stream_seed(question.seed, "judge", 0))
    before: tuple[Cell, ...] = ()
    if grid.strict and grid.unlabelled:
        wanted = {"data": question.data, "config": recipe, "images": grid.unlabelled, "seed": question.seed}
        before = (Cell("generator without labels", "medgan.metrics.retrain:unlabelled", wanted),)
    for scenario in grid.scenarios:
        for draw in range(grid.draws):
            which = {"data": question.data, "scenario": scenario, "draw": draw, "seed": question.seed}
            drawn = {**which, "amount": POOL, "least": FEWEST}
            if grid.strict:
                made = {**drawn, "config": recipe, "images": grid.images}
                pool = Cell(f"generator of {scenario}, draw {draw}", f"{HERE}:strict_pool", made, before)
            else:
                pool = Cell(
                    f"pool of {scenario}, draw {draw}", f"{HERE}:given_pool", {**drawn, "subject": question.subject}
                )
            if any(ARMS[arm].generated for arm in grid.arms):
                named = {"data": question.data, "scenario": scenario, "draw": draw}
                read.append(Cell(f"classes read, {scenario}, draw {draw}", f"{HERE}:read", named, (reader, pool)))
            for network in grid.networks:
                for arm in grid.arms:
                    for seed in range(grid.seeds):
                        trained.append(
                            Cell(
                                f"{arm}, {network}, {scenario}, draw {draw}.{seed}",
                                f"{HERE}:classify",
                                {**which, "arm": arm, "network": network, "classifier": seed, "steps": grid.steps},
                                (pool,) if ARMS[arm].generated else (),
                            )
                        )
    settings: dict[str, Any] = {"strict": grid.strict, "steps": grid.steps}
    if grid.strict:
        settings |= {"images": grid.images, "unlabelled": grid.unlabelled, "changed": list(changed)}
    arguments = {"data": question.data, "settings": settings, "seed": question.seed}
    return {"utility": Cell("differences", f"{HERE}:compare", arguments, (*trained, *read))}


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


def pool_labels(labels: np.ndarray, amount: int, least: int, draw: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of synthetic images for uint8 (N, K): (`amount` times these, shuffled, and more until they are `least`;
    what the rarer classes lack of the most frequent, at most `amount` times as many as these). Where an image may have
    several classes, what fills up is as real rows are.
    """
    random = np.random.default_rng(stream_seed(seed, "utility/pool", draw))
    times = max(amount, math.ceil(least / len(labels)))
    alike = np.concatenate([labels[random.permutation(len(labels))] for _ in range(times)])
    hot = kinds(labels)
    lacking = np.where(hot.any(0), hot.sum(0).max() - hot.sum(0), 0)
    share = min(1.0, amount * len(labels) / max(1, lacking.sum()))
    rows = [
        random.choice(np.flatnonzero(hot[:, k]), int(share * lacking[k])) for k in range(hot.shape[1]) if lacking[k]
    ]
    return alike, labels[random.permutation(np.concatenate([np.zeros(0, np.int64), *rows]))]


def kinds(labels: np.ndarray) -> np.ndarray:
    """Which classes, and having none, each image is of: bool (N, K + 1) of uint8 (N, K)."""
    return np.concatenate([labels > 0, ~labels.any(1, keepdims=True)], 1)


def release_rows(there: np.ndarray, wanted: np.ndarray, random: np.random.Generator, *, alike: bool) -> np.ndarray:
    """Rows of a release, none twice, with the labels that are wanted, as far as it has them: int64 (M,).

    there, wanted: uint8 (N, K). alike: where a class is short the others come as much rarer.
    """
    had, asked = (kinds(labels).sum(0) for labels in (there, wanted))
    share = min(1.0, *(had[asked > 0] / asked[asked > 0])) if alike else 1.0
    rows = [np.zeros(0, np.int64)]
    for one, count in zip(*np.unique(wanted, axis=0, return_counts=True), strict=True):
        rows.append(random.permutation(np.flatnonzero((there == one).all(1)))[: round(share * count)])
    return random.permutation(np.concatenate(rows))


def strict_pool(
    *before: Result,
    data: dict[str, str],
    scenario: str,
    draw: int,
    seed: int,
    amount: int,
    least: int,
    config: dict[str, Any],
    images: int,
) -> Result:
    """Synthetic images of a generator that has seen the draw's patients and no others, and before, where there is a
    training without labels, all images without their labels. alike: the first so many have the draw's classes, the
    others fill up the rarer ones. failed: why there are none.
    """
    train, rows = _train_rows(data, scenario, draw, seed)
    settled = retrain.recipe(config, stream_seed(seed, f"utility/{scenario}/generator", draw), images)
    if before and "failed" in before[0]:
        return {"failed": before[0]["failed"]}
    begin = before[0]["checkpoint"].tobytes() if before else None
    try:
        state, spent = retrain.fit(settled, train, rows, device(), begin)
    except Diverged as error:
        return {"failed": str(error)}
    alike, filling = pool_labels(train.labels[rows], amount, least, draw, seed)
    labels = np.concatenate([alike, filling])
    pixels = retrain.draw(state.ema, settled, labels, "utility")
    return {"pixels": pixels, "labels": labels, "alike": len(alike), **spent}


def given_pool(
    *, data: dict[str, str], scenario: str, draw: int, seed: int, amount: int, least: int, subject: dict[str, str]
) -> Result:
    """As `strict_pool`, of the generator, or of the release, that is evaluated."""
    train, rows = _train_rows(data, scenario, draw, seed)
    alike, filling = pool_labels(train.labels[rows], amount, least, draw, seed)
    if "synthetic" in subject:
        release = open_split(subject["synthetic"], "train")
        random = np.random.default_rng(stream_seed(seed, "utility/release", draw))
        first = release_rows(release.labels, alike, random, alike=True)
        chosen = np.concatenate([first, release_rows(release.labels, filling, random, alike=False)])
        return {"pixels": release.pixels[chosen], "labels": release.labels[chosen], "alike": len(first)}
    sampler, labels = Sampler.open(subject["run"], device(), subject["sha256"]), np.concatenate([alike, filling])
    pixels = sampler.draw(labels, stream_seed(seed, "utility/given", draw))[0]
    return {"pixels": pixels, "labels": labels, "alike": len(alike)}


def read(reader: Result, pool: Result, *, data: dict[str, str], scenario: str, draw: int) -> Result:
    """Whether a draw's synthetic images show what was asked for, to a classifier of all real train images.

    {read: {scenario, draw, classes: {class: {value, n, floor: of real test images}}, see evidence.recognised}}. That
    classifier has seen more patients than the draw: it explains what arms gain, and no arm learns of it.
    """
    row: dict[str, Any] = {"scenario": scenario, "draw": draw, "classes": {}}
    if "failed" not in pool and len(pool["pixels"]):
        test, classes = open_split(data["location"], "test"), shards.read_manifest(data["location"])[0].classes
        made, real = (
            recognised(read_by(reader, pixels), labels, classes, single=reader["single"])
            for pixels, labels in ((pool["pixels"], pool["labels"]), (test.pixels, test.labels))
        )
        row["classes"] = {name: {**made[name], "floor": real[name]["value"]} for name in made if name in real}
    return {"read": row}


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
    """One classifier: its answers on the real test images (N, K), and SCORES of them; failed: why there is none."""
    what = ARMS[arm]
    which = {"arm": arm, "scenario": scenario, "network": network, "draw": draw, "seed": classifier}
    if pool and "failed" in pool[0]:
        return {"row": which, "failed": pool[0]["failed"]}
    train, rows = _train_rows(data, scenario, draw, seed)
    test = open_split(data["location"], "test")
    real = Images(train.pixels[rows], train.labels[rows])
    single = classifiers.exclusive(train.labels)
    own = stream_seed(seed, f"utility/{scenario}/{draw}/classifier", classifier)
    mirror = shards.read_manifest(data["location"])[0].mirror
    common: dict[str, Any] = {"single": single, "augment": what.classical, "mirror": mirror, "device": device()}
    made = real.some(np.arange(0))
    if what.generated:
        alike = pool[0]["alike"]
        part = slice(0 if what.synthetic else alike, None if what.balanced else alike)
        made = Images(pool[0]["pixels"][part], pool[0]["labels"][part])
    if what.synthetic:
        if not len(made):
            raise Refused(
                f"--arms {arm}: the release lacks a class of --data; one that fills up rarer classes is judged by "
                "--arms real+classical+oversampled,real+classical+balanced"
            )
        wanted = round(min(len(made), what.synthetic * len(real)))
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
        if what.halved:
            sides = [row_weights(one.labels, 1.0) if what.oversampled else np.ones(len(one)) for one in (real, made)]
            weights = np.concatenate([side / side.sum() for side in sides])
        model = classifiers.train(learnt, network, own, steps=steps, weights=weights, **common)
    answers = classifiers.predict(model, test.pixels, single=single)
    rare = int(train.labels.sum(0).argmin())
    scores = classifiers.scores(answers, test.labels, rare, single=single)
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


def compare(*found: Result, data: dict[str, str], settings: dict[str, Any], seed: int) -> Result:
    """The section `utility` of an evaluation: every cell, differences to BASELINE and RIVALS, and the claim, and how
    the synthetic images' classes are read. found: of `classify` and of `read`.
    """
    test = open_split(data["location"], "test")
    patients = np.unique(shards.column(data["location"], "test", "patient"), return_inverse=True)[1]
    labels = open_split(data["location"], "train").labels
    single, rare = classifiers.exclusive(labels), int(labels.sum(0).argmin())
    failed = {(one["row"]["scenario"], one["row"]["draw"]): one["failed"] for one in found if "failed" in one}
    trained = [one for one in found if "row" in one and "failed" not in one]
    rows, read_as = [one["row"] for one in trained], [one["read"] for one in found if "read" in one]
    answered: dict[tuple[str, str], dict[str, dict[int, list[np.ndarray]]]] = {}
    for one in trained:
        row = one["row"]
        of_arm = answered.setdefault((row["scenario"], row["network"]), {}).setdefault(row["arm"], {})
        of_arm.setdefault(row["draw"], []).append(one["answers"])
    differences = []
    for (scenario, network), arms in answered.items():
        for arm in arms:
            for against in RIVALS.get(arm, (BASELINE,)):
                if arm == against or not arms[arm].keys() & arms.get(against, {}).keys():
                    continue
                random = np.random.default_rng(stream_seed(seed, "utility/test", 0))
                gained = difference(arms[arm], arms[against], test.labels, patients, rare, random, single=single)
                which = {"arm": arm, "against": against, "scenario": scenario, "network": network}
                lost = sum(name == scenario for name, _ in failed) if ARMS[arm].generated else 0
                differences += [{**which, "failed": lost, "score": score, **values} for score, values in gained.items()]
    without = [{"scenario": scenario, "draw": draw, "why": why} for (scenario, draw), why in failed.items()]
    result = {"settings": settings, "cells": rows, "differences": differences, "failed": without, "read": read_as}
    classes = shards.read_manifest(data["location"])[0].classes
    return {**result, "rare": classes[rare], "claim": claim(differences, settings, len(without))}


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


def claim(differences: Sequence[dict[str, Any]], settings: dict[str, Any], failed: int = 0) -> dict[str, Any]:
    """What it comes to in SCENARIO with NETWORK: the difference in CLAIM between CANDIDATE and BASELINE, as a
    sentence, with that in BESIDE. failed: how many draws in all had no generator.
    """
    asked = [d for d in differences if d["arm"] == CANDIDATE and d["against"] == BASELINE and d["score"] == CLAIM]
    if not asked and failed:
        why = f"the trainings of {failed} generators diverged"
        return {"verdict": "cannot tell", "sentence": f"It cannot be told whether synthetic images help: {why}."}
    if not asked:
        return {"verdict": "cannot tell", "sentence": f"Not asked: the grid lacks {CANDIDATE} or {BASELINE}."}
    found = min(asked, key=lambda d: (d["scenario"] != SCENARIO, d["network"] != NETWORK))  # the first of equal ones
    if not math.isfinite(found["value"]):
        why = "the test images are of one class only"
        return {"verdict": "cannot tell", "sentence": f"It cannot be told whether synthetic images help: {why}."}
    same = {key: found[key] for key in ("arm", "against", "scenario", "network")}
    beside = next(d for d in differences if d["score"] == BESIDE and same.items() <= d.items())
    what = verdict(found["low"], found["high"])
    share, rare_only = parse_scenario(found["scenario"])
    whose = "rarest class's training patients" if rare_only else "training patients"
    over = "draws of patients" if share < 1 else "repeats with the same patients"
    if share < 1 and rare_only:
        over = "draws of those patients beside the same others"
    lost = f" ({found['failed']} more are left out, their generators diverged)" if found.get("failed") else ""
    said = {
        "helps": "synthetic images help",
        "harms": "synthetic images harm",
        "does not help": "synthetic images do not help",
        "cannot tell": "it cannot be told whether synthetic images help",
    }[what]
    sentence = (
        f"With {100 * share:g} % of the {whose} {said} beyond classical augmentation: {_told(found)}, {_told(beside)}, "
        f"over {found['draws']} {over}{lost}, {_made_by(settings)}."
    )
    return {**found, BESIDE: {key: beside[key] for key in ("value", "low", "high")}, "verdict": what} | {
        "sentence": sentence
    }


def _told(found: dict[str, Any]) -> str:
    between = "" if found["low"] is None else f" [{found['low']:+.3f}, {found['high']:+.3f}]"
    return f"{SCORES[found['score']][0]} {found['value']:+.3f}{between}"


def _made_by(settings: dict[str, Any]) -> str:
    """Which generator, and what of its seed the interval does not cover."""
    if not settings["strict"]:
        return "one generator for all, which had seen all training patients: the interval does not cover its seed"
    changed = ", with " + ", ".join(settings["changed"]) if settings.get("changed") else ""
    if settings.get("unlabelled"):
        return (
            f"generator trained on those patients after one training for all on all images without labels{changed}: "
            "the interval does not cover the seed of that one"
        )
    return f"generator trained on those patients alone{changed}"
