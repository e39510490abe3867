"""Does it leak? What the samples of a generator tell of the films and patients that it was trained on.

Nearness is measured in three ways, in each of which larger is nearer: `pixels`, less the distance of 32x32 thumbnails;
`features`, less the distance of EfficientNet-Lite0's; `aligned`, the correlation of fine structure once one film is
laid over the other (see data/copies.py), which small shifts, crops and brightness do not hide. Held-out films of other
patients say what is near by chance.

The attacker of membership inference has the samples alone, as who is given a release does; the discriminator is never
given away.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from medgan.cells import Cell, Result
from medgan.data import copies, shards
from medgan.data.loader import open_split
from medgan.metrics import retrain
from medgan.metrics.classifiers import auc, rate_at
from medgan.metrics.evidence import Question
from medgan.metrics.features import EXTRACTORS
from medgan.metrics.retrain import device
from medgan.pixels import encode_png, grid
from medgan.streams import stream_seed

HERE = "medgan.metrics.privacy"
SPACES = {
    "pixels": "distance of thumbnails",
    "features": "distance of EfficientNet-Lite0 features",
    "aligned": "correlation once laid over each other",
}
MOST = 2000
"""Films of a side whose membership is asked for."""
PROPOSALS = 32
"""Films that are laid over each sample: with 32, 97 of 100 drawn films shifted by half a pixel are found again, with
the 4 that preparing takes 80."""
FALSE_RATE = 0.01
RESAMPLES = 500
SHADOW_FILMS = 600
"""Films that shadow generators share among them."""


def plan(
    question: Question, shadows: int = 0, recipe: dict[str, Any] | None = None, images: int = 0
) -> dict[str, Cell]:
    """Cells of the audit. With shadows: that many short trainings of the recipe on `images` images each."""
    parts, data = tuple(question.samples()), {"data": question.data}
    near = tuple(Cell(f"nearness in {space}", f"{HERE}:nearness", {**data, "space": space}, parts) for space in SPACES)
    copied = Cell("near-copies", f"{HERE}:copied", data, parts)
    cells = {"privacy": Cell("audit", f"{HERE}:audit", {"seed": question.seed}, (copied, *near))}
    if shadows:
        common = {**data, "config": recipe, "images": images, "seed": question.seed}
        trained = [
            Cell(f"shadow generator {index}", f"{HERE}:shadow", {**common, "index": index}) for index in range(shadows)
        ]
        cells["shadows"] = Cell("likelihood ratio", f"{HERE}:likelihood_ratio", {"seed": question.seed}, (*trained,))
    return cells


def picture_of(question: Question) -> Cell:
    """A picture that shows real images: samples beside the films of training that are nearest to them."""
    return Cell("neighbours", f"{HERE}:neighbours", {"data": question.data}, tuple(question.samples()))


def neighbours(*parts: Result, data: dict[str, str]) -> Result:
    """{png: uint8, the bytes of a file}: a sample and the two films nearest to it, twice in a row; first the eight
    samples that are nearest to a film, then eight others.
    """
    train, drawn = open_split(data["location"], "train").pixels, np.concatenate([part["pixels"] for part in parts])
    likeness, rows = most_alike(look(drawn), look(train))
    order = np.argsort(-likeness.max(1), kind="stable")
    others = np.random.default_rng(0).permutation(order[8:])[:8]
    tiles = []
    for one in [*order[:8], *others]:
        films = train[rows[one][np.argsort(-likeness[one])]]
        tiles += [drawn[one], *films, *[np.zeros_like(drawn[one])] * (2 - len(films))]
    tiles = tiles[: len(tiles) // 6 * 6]
    return {"png": np.frombuffer(encode_png(grid(np.stack(tiles), 6)), np.uint8)}


# -- nearness ----------------------------------------------------------------------------------------------------


def real_films(data: dict[str, str], most: int | None = None) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(films that were trained on, films that were not), each {pixels uint8 (N, C, R, R), patients int64 (N,)}.

    Those that were not are val and test together. most: at most so many of each, always the same ones.
    """
    sides = []
    for names in (("train",), ("val", "test")):
        there = [name for name in names if shards.read_manifest(data["location"])[0].splits.get(name)]
        pixels = np.concatenate([open_split(data["location"], name).pixels for name in there])
        ids = [patient for name in there for patient in shards.column(data["location"], name, "patient")]
        patients = np.unique(ids, return_inverse=True)[1]
        rows = np.sort(np.random.default_rng(0).permutation(len(pixels))[:most])
        sides.append({"pixels": pixels[rows], "patients": patients[rows]})
    return sides[0], sides[1]


def describer(space: str) -> tuple[Callable[[np.ndarray], Any], Callable[[Any, Any], np.ndarray]]:
    """(pixels -> what is compared, two of those -> for each of the first how near the nearest of the second is)."""
    if space == "aligned":
        return look, lambda ours, theirs: most_alike(ours, theirs)[0].max(1)
    if space == "pixels":
        return (lambda pixels: torch.from_numpy(look(pixels).thumbnails).flatten(1).float() / 255), nearest_by_distance
    extract = EXTRACTORS["efficientnet-lite0"](device())
    return (lambda pixels: extract(torch.from_numpy(pixels))), nearest_by_distance


def look(pixels: np.ndarray) -> copies.Images:
    return copies.Images.of(pixels, [""] * len(pixels))


def most_alike(ours: copies.Images, theirs: copies.Images) -> tuple[np.ndarray, np.ndarray]:
    return copies.nearest(ours, theirs, PROPOSALS)


def nearest_by_distance(ours: torch.Tensor, theirs: torch.Tensor) -> np.ndarray:
    return np.concatenate([-torch.cdist(some, theirs).min(1).values.numpy() for some in ours.split(512)])


def nearness(*parts: Result, data: dict[str, str], space: str) -> Result:
    """How near the nearest is: float (N,) of each sample among films that were and films that were not trained on
    (sample_member, sample_held), and of each film among the samples (member, held), with its patient.
    """
    member, held = real_films(data, MOST)
    describe, near = describer(space)
    drawn, ours, theirs = (
        describe(pixels) for pixels in (np.concatenate([p["pixels"] for p in parts]), member["pixels"], held["pixels"])
    )
    return {
        "sample_member": near(drawn, ours),
        "sample_held": near(drawn, theirs),
        "member": near(ours, drawn),
        "held": near(theirs, drawn),
        "member_patients": member["patients"],
        "held_patients": held["patients"],
        "space": space,
    }


def copy_threshold(data: dict[str, str]) -> float:
    """The correlation above which two films are one, from how alike films of different patients are in DATA."""
    member, held = real_films(data)
    return by_chance(held["pixels"], look(member["pixels"]))[1]


def by_chance(held: np.ndarray, theirs: copies.Images) -> tuple[np.ndarray, float]:
    """How alike held-out films, uint8 (N, C, R, R), are to films of other patients: of each the most alike (N,), and
    the correlation above which two are one."""
    likeness = most_alike(look(held), theirs)[0].max(1)
    return likeness, copies.threshold(likeness)


def copied(*parts: Result, data: dict[str, str]) -> Result:
    """Samples nearer to a film of training than films of different patients are to each other.

    {samples, held_out: how many are, of n and of n_held_out; threshold; patients whose films were copied}
    """
    member, held = real_films(data)
    theirs = look(member["pixels"])
    strangers, limit = by_chance(held["pixels"], theirs)
    likeness, rows = most_alike(look(np.concatenate([part["pixels"] for part in parts])), theirs)
    of_patients = member["patients"][rows[likeness > limit]]
    return {
        "value": int((likeness.max(1) > limit).sum()),
        "n": len(likeness),
        "held_out": int((strangers > limit).sum()),
        "n_held_out": len(strangers),
        "nearest": float(likeness.max()),
        "threshold": limit,
        "patients": len(np.unique(of_patients)),
        "most_of_one_patient": int(np.bincount(of_patients).max()) if len(of_patients) else 0,
    }


# -- the audit ---------------------------------------------------------------------------------------------------


def audit(copied: Result, *near: Result, seed: int) -> Result:
    """The section `privacy` of an evaluation, without what shadow models say."""
    random = np.random.default_rng(stream_seed(seed, "audit", 0))
    spaces = {space["space"]: membership(space, random) for space in near}
    strongest = max(spaces, key=lambda name: spaces[name]["auc"])
    closer = {space["space"]: closeness(space) for space in near}
    aligned = next(space for space in near if space["space"] == "aligned")
    found = {
        "membership": {**spaces[strongest], "space": strongest, "spaces": spaces},
        "closeness": closer,
        "copies": copied,
        "patients": exposure(aligned, random),
    }
    return {**found, "claim": claim(found)}


def membership(near: Result, random: np.random.Generator) -> dict[str, Any]:
    """How well nearness to the samples tells films that were trained on from others: AUC, and the share of members
    found where one in a hundred others is accused.

    Intervals are over patients, 99.7 % each, so that of a hundred audits of harmless generators one cries wolf in any
    of the three spaces. The control asks the same of one half of the members' patients against the other, where there
    is nothing to find.
    """
    sides = [(near["member"], near["member_patients"]), (near["held"], near["held_patients"])]
    patients = random.permutation(np.unique(near["member_patients"]))
    half = np.isin(near["member_patients"], patients[::2])
    halves = [(near["member"][which], near["member_patients"][which]) for which in (half, ~half)]
    level = 1 - 0.01 / len(SPACES)
    found = interval(auc, sides[0], sides[1], random, level)
    hits = interval(lambda member, held: rate_at(member, held, FALSE_RATE), sides[0], sides[1], random, level)
    control = interval(auc, halves[0], halves[1], random, level)
    return {
        **{
            "auc": found[0],
            "low": found[1],
            "high": found[2],
            "n": len(near["member"]),
            "n_held_out": len(near["held"]),
        },
        **{"control": control[0], "control_low": control[1], "control_high": control[2]},
        **{"tpr": hits[0], "tpr_low": hits[1], "tpr_high": hits[2], "false_positive_rate": FALSE_RATE},
    }


Side = tuple[np.ndarray, np.ndarray]


def interval(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    ours: Side,
    theirs: Side,
    random: np.random.Generator,
    level: float,
) -> tuple[float, float, float]:
    """(value, low, high) of a statistic within [0, 1]: normal, with the deviation of a bootstrap over patients.

    A side is (values (N,), their patients (N,)).
    """
    groups = [[values[patients == one] for one in np.unique(patients)] for values, patients in (ours, theirs)]
    drawn = []
    for _ in range(RESAMPLES):
        again = [np.concatenate([side[i] for i in random.integers(0, len(side), len(side))]) for side in groups]
        drawn.append(statistic(again[0], again[1]))
    value, half = statistic(ours[0], theirs[0]), NormalDist().inv_cdf((1 + level) / 2) * float(np.std(drawn, ddof=1))
    return value, max(0.0, value - half), min(1.0, value + half)


def closeness(near: Result) -> dict[str, float]:
    """Share of samples whose nearest film was trained on; expected is the share of such films among all, which is what
    comes out where nothing was learnt by heart. The interval is of samples (Wilson 1927), not of films.
    """
    nearer = near["sample_member"] > near["sample_held"]
    tied = near["sample_member"] == near["sample_held"]
    members, held = len(near["member"]), len(near["held"])
    expected = members / (members + held)
    low, high = wilson(float(nearer.sum() + tied.sum() * expected), len(nearer))
    share = {"value": float((nearer + tied * expected).mean()), "low": low, "high": high, "expected": expected}
    middles = {f"median_{key}": float(np.median(near[f"sample_{key}"])) for key in ("member", "held")}
    return {**share, "n": len(nearer), **middles}


def exposure(near: Result, random: np.random.Generator) -> dict[str, Any]:
    """Share of patients of training who are nearer to the samples, by the nearest of their films, than all but one in
    a hundred of the held-out patients.

    p: how often as large a share comes out when it is dealt at random who was trained on. Patients, not films, are
    dealt, and all have the same number of films on both sides but for chance.
    """

    def of_patients(side: str) -> np.ndarray:
        patients = near[f"{side}_patients"]
        return np.array([near[side][patients == one].max() for one in np.unique(patients)])

    members, held = of_patients("member"), of_patients("held")
    allowed = int(FALSE_RATE * len(held))

    def share(both: np.ndarray) -> float:
        limit = np.sort(both[len(members) :])[::-1][allowed]
        return float((both[: len(members)] > limit).mean())

    both = np.concatenate([members, held])
    value = share(both)
    dealt = [share(random.permutation(both)) for _ in range(RESAMPLES)]
    p = (1 + sum(other >= value for other in dealt)) / (1 + RESAMPLES)
    expected = (allowed + 1) / (len(held) + 1)
    return {"value": value, "expected": expected, "p": p, "n": len(members), "n_held_out": len(held)}


def wilson(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share."""
    share = successes / n
    middle, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return float((middle - half) / (1 + z**2 / n)), float((middle + half) / (1 + z**2 / n))


def claim(found: dict[str, Any]) -> dict[str, str]:
    """A verdict (leaks, no leak found, cannot tell) and one sentence for it."""
    inside, copy, exposed = found["membership"], found["copies"], found["patients"]
    between = f"[{inside['low']:.2f}, {inside['high']:.2f}]"
    numbers = f"membership AUC {inside['auc']:.2f} {between}, control {inside['control']:.2f}"
    by_chance = copy["held_out"] / copy["n_held_out"]  # copies that preparing did not find
    if wilson(copy["value"], copy["n"])[0] > by_chance and copy["value"]:
        what = (
            f"{copy['value']} of {copy['n']:,} samples are near-copies of films of {copy['patients']} training patients"
        )
        return {"verdict": "leaks", "sentence": f"It leaks: {what}; {numbers}."}
    if inside["low"] > 0.5 and inside["auc"] > inside["control_high"]:
        return {"verdict": "leaks", "sentence": f"It leaks who was trained on: {numbers}; no near-copies."}
    if exposed["value"] > exposed["expected"] and exposed["p"] < 0.01:
        share = f"{exposed['value']:.1%} of training patients are nearer to samples than 99 % of others"
        return {"verdict": "leaks", "sentence": f"It leaks on some patients: {share}; {numbers}."}
    if inside["high"] > 0.6:
        return {"verdict": "cannot tell", "sentence": f"Too few films to tell whether it leaks: {numbers}."}
    near = "no near-copies" if not copy["value"] else f"{copy['value']} near-copies, no more than held-out films are,"
    return {
        "verdict": "no leak found",
        "sentence": f"No leak found: {near} among {copy['n']:,} samples; {numbers}.",
    }


# -- shadow models -------------------------------------------------------------------------------------------------


def shadow(*, data: dict[str, str], config: dict[str, Any], images: int, seed: int, index: int) -> Result:
    """A generator trained on a half of some train patients, and how near its samples are to all of their films.

    Shadows come in pairs that share the patients between them. {nearness float (N,), member bool (N,), patients (N,)}
    """
    train = open_split(data["location"], "train")
    ids = np.unique(shards.column(data["location"], "train", "patient"), return_inverse=True)[1]
    order = np.random.default_rng(stream_seed(seed, "shadow/patients", 0)).permutation(ids.max() + 1)
    reach = np.cumsum(np.bincount(ids)[order])
    pool = order[: np.searchsorted(reach, min(SHADOW_FILMS, len(ids))) + 1]
    rows = np.flatnonzero(np.isin(ids, pool))
    halves = np.random.default_rng(stream_seed(seed, "shadow/half", index // 2)).permutation(pool)
    member = np.isin(ids[rows], halves[index % 2 :: 2])
    settled = retrain.recipe(config, stream_seed(seed, "shadow", index), images)
    generator = retrain.fit(settled, train, rows[member], device())[0].ema
    labels = np.random.default_rng(index).choice(train.labels[rows[member]], MOST // 2)
    describe, near = describer("features")
    drawn = describe(retrain.draw(generator, settled, labels, "shadow"))
    return {"nearness": near(describe(train.pixels[rows]), drawn), "member": member, "patients": ids[rows]}


def likelihood_ratio(*shadows: Result, seed: int) -> Result:
    """Each shadow attacked with what the others show of how near films are when trained on and when not.

    Of each film the nearness in the other shadows is taken as normal, with a mean inside and outside and one deviation
    for both; its score is the log ratio of the two at the attacked shadow's (Carlini et al. 2022, arXiv:2112.03570,
    at small scale). The control takes for the truth who was in a shadow of another pair.
    """
    nearness, member = (np.stack([one[key] for one in shadows]) for key in ("nearness", "member"))
    near = np.log(np.maximum(-nearness, 1e-6))  # distances, as logarithms: nearer to normal
    count = len(shadows)
    found: list[np.ndarray] = []
    for target in range(count):
        others = np.arange(count) // 2 != target // 2  # nor its pair: each film is in half of those that are left
        inside, outside = (_mean(near[others], which[others]) for which in (member, ~member))
        left = np.where(member[others], near[others] - inside, near[others] - outside)
        deviation = max(float(np.nanstd(left)), 1e-6)
        ratio = ((near[target] - outside) ** 2 - (near[target] - inside) ** 2) / (2 * deviation**2)
        found.append(ratio)
    scores, patients = np.concatenate(found), np.tile(shadows[0]["patients"], count)
    random = np.random.default_rng(stream_seed(seed, "likelihood ratio", 0))
    result: dict[str, Any] = {"shadows": count, "films": member.shape[1]}
    for name, truth in (("", member), ("control", np.roll(member, 2, 0))):
        inside = truth.ravel()
        sides = [(scores[which], patients[which]) for which in (inside, ~inside)]
        value, low, high = interval(auc, sides[0], sides[1], random, 0.95)
        hits = rate_at(sides[0][0], sides[1][0], FALSE_RATE)
        if name:
            result |= {"control": value, "control_low": low, "control_high": high}
        else:
            result |= {"auc": value, "low": low, "high": high, "tpr": hits, "false_positive_rate": FALSE_RATE}
    return result


def _mean(values: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Mean over the shadows (S, N) for which it holds, of each film; over all where there are none."""
    count = which.sum(0)
    return np.where(count, (values * which).sum(0) / np.maximum(count, 1), values.mean(0))
