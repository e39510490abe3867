"""Does it leak? What the samples of a generator tell of the films and patients that it was trained on.

Nearness is measured in three ways, in each of which larger is nearer: `pixels`, less the distance of 32x32 thumbnails;
`features`, less the distance of EfficientNet-Lite0's; `aligned`, the correlation of fine structure once one film is
laid over the other (see data/copies.py), which small shifts, crops and brightness do not hide. Held-out films of other
patients say what is near by chance.

The attacker of membership inference has the samples alone, as who is given a release does; the discriminator is never
given away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from scipy.stats import fisher_exact

from medgan.cells import Cell, Result
from medgan.data import copies, shards
from medgan.data.loader import open_split
from medgan.loop import Diverged
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
DEALS = 2000
ALARMS = 0.01
"""How often each question of an audit may cry wolf over a harmless generator."""
CHUNK = 4096
"""Rows of a release that one cell compares with the films of training."""
FEW_PATIENTS = 30
"""With fewer on a side, intervals over patients are too narrow: with ten, 6 of 100 harmless generators leaked."""
LEAST_SHADOWS = 6
"""With fewer, films would be known from one shadow on each side, and no deviation from any."""
SHADOW_FILMS = 600
"""Films that shadow generators share among them: half of them trained on by the audited one, half not."""


def plan(
    question: Question,
    shadows: int = 0,
    recipe: dict[str, Any] | None = None,
    images: int = 0,
    changed: Sequence[str] = (),
) -> dict[str, Cell]:
    """Cells of the audit. With shadows: that many short trainings of the recipe on `images` images each.

    changed: `key=value` of what the recipe is not as it was, to be told.
    """
    parts, data = tuple(question.samples()), {"data": question.data}
    films: dict[str, Any] = {**data, "most": MOST}
    near = tuple(Cell(f"nearness in {space}", f"{HERE}:nearness", {**films, "space": space}, parts) for space in SPACES)
    if "synthetic" in question.subject:  # all of it, for all of it is handed over
        release = question.subject["synthetic"]
        rows = shards.read_manifest(release)[0].rows("train")
        whole: dict[str, Any] = {**data, "release": release, "sha256": question.subject["sha256"]}
        compared = [
            Cell(f"near-copies from {first:,}", f"{HERE}:alike", {**whole, "first": first, "last": first + CHUNK})
            for first in range(0, rows, CHUNK)
        ]
    else:
        compared = [Cell(f"near-copies among {part.name}", f"{HERE}:alike", data, (part,)) for part in parts]
    copied = Cell("near-copies", f"{HERE}:copied", data, (*compared,))
    cells = {"privacy": Cell("audit", f"{HERE}:audit", {"seed": question.seed}, (copied, *near))}
    if shadows:
        drawn = min(MOST // 2, question.n)
        common = {**data, "config": recipe, "images": images, "seed": question.seed, "drawn": drawn}
        trained = [
            Cell(f"shadow generator {index}", f"{HERE}:shadow", {**common, "index": index}) for index in range(shadows)
        ]
        released = Cell("films among the samples", f"{HERE}:released", {**data, "drawn": drawn}, parts)
        told = {"images": images, "changed": list(changed)}
        weighed = {"seed": question.seed, "least": LEAST_SHADOWS, "told": told}
        cells["shadows"] = Cell("likelihood ratio", f"{HERE}:likelihood_ratio", weighed, (released, *trained))
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
    """(films that were trained on, films that were not), each {pixels uint8 (N, C, R, R), labels uint8 (N, K),
    patients int64 (N,)}.

    Those that were not are val and test together. most: at most about so many of each, of whole patients, always the
    same ones: who has more films has them on either side.
    """
    sides = []
    for names in (("train",), ("val", "test")):
        there = [name for name in names if shards.read_manifest(data["location"])[0].splits.get(name)]
        splits = [open_split(data["location"], name) for name in there]
        pixels, labels = (np.concatenate([getattr(one, key) for one in splits]) for key in ("pixels", "labels"))
        ids = [patient for name in there for patient in shards.column(data["location"], name, "patient")]
        patients = np.unique(ids, return_inverse=True)[1]
        order = np.random.default_rng(0).permutation(patients.max() + 1)
        reach = np.cumsum(np.bincount(patients)[order])
        kept = order[: 1 + np.searchsorted(reach, len(pixels) if most is None else most)]
        rows = np.flatnonzero(np.isin(patients, kept))
        sides.append({"pixels": pixels[rows], "labels": labels[rows], "patients": patients[rows]})
    return sides[0], sides[1]


Near = Callable[[Any, Any], tuple[np.ndarray, np.ndarray]]


def describer(space: str) -> tuple[Callable[[np.ndarray], Any], Near]:
    """(pixels -> what is compared, two of those -> for each of the first how near the nearest of the second is, and
    which that is)."""
    if space == "aligned":
        return look, nearest_by_likeness
    if space == "pixels":
        return (lambda pixels: torch.from_numpy(look(pixels).thumbnails).flatten(1).float() / 255), nearest_by_distance
    extract = EXTRACTORS["efficientnet-lite0"](device())
    return (lambda pixels: extract(torch.from_numpy(pixels))), nearest_by_distance


def look(pixels: np.ndarray) -> copies.Images:
    return copies.Images.of(pixels, [""] * len(pixels))


def most_alike(ours: copies.Images, theirs: copies.Images) -> tuple[np.ndarray, np.ndarray]:
    return copies.nearest(ours, theirs, PROPOSALS)


def nearest_by_likeness(ours: copies.Images, theirs: copies.Images) -> tuple[np.ndarray, np.ndarray]:
    likeness, rows = most_alike(ours, theirs)
    best = likeness.argmax(1)[:, None]
    return np.take_along_axis(likeness, best, 1)[:, 0], np.take_along_axis(rows, best, 1)[:, 0]


def nearest_by_distance(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    found = [torch.cdist(some, theirs).min(1) for some in ours.split(512)]
    return -torch.cat([one.values for one in found]).numpy(), torch.cat([one.indices for one in found]).numpy()


def nearness(*parts: Result, data: dict[str, str], space: str, most: int | None = None) -> Result:
    """How near the nearest is: float (N,) of each sample among films that were and films that were not trained on
    (sample_member, sample_held), and of each film among the samples (member, held), with its patient.

    sample_patient: whose film is the nearest of all: a patient of member_patients, or -1 less one of held_patients.
    """
    member, held = real_films(data, MOST if most is None else most)
    describe, near = describer(space)
    drawn, ours, theirs = (
        describe(pixels) for pixels in (np.concatenate([p["pixels"] for p in parts]), member["pixels"], held["pixels"])
    )
    (of_member, member_rows), (of_held, held_rows) = near(drawn, ours), near(drawn, theirs)
    whose = member["patients"][member_rows], -1 - held["patients"][held_rows]
    return {
        "sample_member": of_member,
        "sample_held": of_held,
        "sample_patient": np.where(of_member > of_held, *whose),
        "member": near(ours, drawn)[0],
        "held": near(theirs, drawn)[0],
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


def alike(
    *parts: Result, data: dict[str, str], release: str = "", first: int = 0, last: int = 0, sha256: str = ""
) -> Result:
    """How alike samples, or rows [first, last) of a release, are to films of training: {likeness float (N, K) of the
    most alike, patients (N, K) whose films those are}.
    """
    drawn = open_split(release, "train").pixels[first:last] if release else np.concatenate([p["pixels"] for p in parts])
    member, _ = real_films(data)
    likeness, rows = most_alike(look(drawn), look(member["pixels"]))
    return {"likeness": likeness, "patients": member["patients"][rows]}


def copied(*compared: Result, data: dict[str, str]) -> Result:
    """Samples nearer to a film of training than films of different patients are to each other. compared: see `alike`.

    {value, held_out: how many are, of n and of n_held_out; beyond: how many are more alike than any held-out film,
    and as good as identical where held-out films are near-copies too; threshold; patients whose films were copied}
    """
    member, held = real_films(data)
    strangers, limit = by_chance(held["pixels"], look(member["pixels"]))
    likeness, patients = (np.concatenate([one[key] for one in compared]) for key in ("likeness", "patients"))
    of_patients = patients[likeness > limit]
    surely = limit if strangers.max() <= limit else max(float(strangers.max()), copies.SURE)
    return {
        "value": int((likeness.max(1) > limit).sum()),
        "beyond": int((likeness.max(1) > surely).sum()),
        "n": len(likeness),
        "held_out": int((strangers > limit).sum()),
        "n_held_out": len(strangers),
        "nearest": float(likeness.max()),
        "nearest_held_out": float(strangers.max()),
        "threshold": limit,
        "patients": len(np.unique(of_patients)),
        "most_of_one_patient": int(np.bincount(of_patients).max()) if len(of_patients) else 0,
    }


# -- the audit ---------------------------------------------------------------------------------------------------


def audit(copied: Result, *near: Result, seed: int) -> Result:
    """The section `privacy` of an evaluation, without what shadow models say, and without the claim."""
    random = np.random.default_rng(stream_seed(seed, "audit", 0))
    spaces = {space["space"]: membership(space, random) for space in near}
    strongest = max(spaces, key=lambda name: spaces[name]["auc"])
    closer = {space["space"]: closeness(space, random) for space in near}
    aligned = next(space for space in near if space["space"] == "aligned")
    return {
        "membership": {**spaces[strongest], "space": strongest, "spaces": spaces},
        "closeness": closer,
        "copies": copied,
        "patients": exposure(aligned, random),
    }


Side = tuple[np.ndarray, np.ndarray]


def membership(near: Result, random: np.random.Generator) -> dict[str, Any]:
    """How well nearness to the samples tells films that were trained on from others, see `told_apart`.

    Intervals hold 99.7 % each, so that of a hundred audits of harmless generators one cries wolf in any of the three
    spaces.
    """
    sides = [(near[side], near[f"{side}_patients"]) for side in ("member", "held")]
    return told_apart(sides[0], sides[1], random, 1 - ALARMS / len(SPACES))


def told_apart(members: Side, others: Side, random: np.random.Generator, level: float) -> dict[str, Any]:
    """AUC with which scores tell members from others, and the share of members found where one in a hundred others is
    accused, with intervals over patients.

    The control asks the same of one half of the members' patients against the other, where there is nothing to find.
    """
    scores, owners = members
    half = np.isin(owners, random.permutation(np.unique(owners))[::2])
    found = interval(auc, members, others, random, level)
    hits = interval(hit_rate, members, others, random, level)
    control = interval(auc, (scores[half], owners[half]), (scores[~half], owners[~half]), random, level)
    return {
        **{"auc": found[0], "low": found[1], "high": found[2], "n": len(scores), "n_held_out": len(others[0])},
        **{"patients": len(np.unique(owners)), "patients_held_out": len(np.unique(others[1]))},
        **{"control": control[0], "control_low": control[1], "control_high": control[2]},
        **{"tpr": hits[0], "tpr_low": hits[1], "tpr_high": hits[2], "false_positive_rate": FALSE_RATE},
        "tpr_expected": by_luck(len(others[0])),
    }


def hit_rate(members: np.ndarray, others: np.ndarray) -> float:
    return rate_at(members, others, FALSE_RATE)


def by_luck(others: int) -> float:
    """What share is above all but FALSE_RATE of so many others where there is nothing to find."""
    return (int(FALSE_RATE * others) + 1) / (others + 1)


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


def closeness(near: Result, random: np.random.Generator) -> dict[str, float]:
    """Share of samples whose nearest film was trained on; expected is the share of such films among all, which is what
    comes out where nothing was learnt by heart. The interval is of samples (Wilson 1927), not of films.

    p: how often as large a share comes out when it is dealt at random which patients were trained on.
    """
    nearer = near["sample_member"] > near["sample_held"]
    tied = near["sample_member"] == near["sample_held"]
    members, held = len(near["member"]), len(near["held"])
    expected = members / (members + held)
    low, high = wilson(float(nearer.sum() + tied.sum() * expected), len(nearer))
    share = {"value": float((nearer + tied * expected).mean()), "low": low, "high": high, "expected": expected}
    middles = {f"median_{key}": float(np.median(near[f"sample_{key}"])) for key in ("member", "held")}
    patients = np.unique(np.concatenate([near["member_patients"], -1 - near["held_patients"]]))
    samples = np.bincount(np.searchsorted(patients, near["sample_patient"][~tied]), minlength=len(patients))
    trained = patients >= 0
    dealt = [samples @ random.permutation(trained) for _ in range(DEALS)]
    p = (1 + sum(other >= samples @ trained for other in dealt)) / (1 + DEALS)
    return {**share, "p": float(p), "n": len(nearer), **middles}


def exposure(near: Result, random: np.random.Generator) -> dict[str, Any]:
    """Share of patients of training who are nearer to the samples, by the nearest of their films, than all but one in
    a hundred of the held-out patients.

    p: how often as large a share comes out when it is dealt at random who was trained on. Patients, not films, are
    dealt, and as many films are looked at of those of one side as of the other's.
    """
    sides = []
    for side in ("member", "held"):
        groups = np.unique(near[f"{side}_patients"], return_inverse=True)[1]
        sides.append([near[side][groups == one] for one in range(groups.max() + 1)])
    members, held = (
        np.array([random.permutation(films)[:count].max() for films, count in zip(ours, counts, strict=True)])
        for ours, counts in zip(sides, equal_counts(*([len(films) for films in side] for side in sides)), strict=True)
    )
    allowed = int(FALSE_RATE * len(held))

    def share(both: np.ndarray) -> float:
        limit = np.sort(both[len(members) :])[::-1][allowed]
        return float((both[: len(members)] > limit).mean())

    both = np.concatenate([members, held])
    value = share(both)
    dealt = [share(random.permutation(both)) for _ in range(RESAMPLES)]
    p = (1 + sum(other >= value for other in dealt)) / (1 + RESAMPLES)
    expected = by_luck(len(held))
    return {"value": value, "expected": expected, "p": p, "n": len(members), "n_held_out": len(held)}


def equal_counts(ours: Sequence[int], theirs: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """How many films to look at of each patient of two sides, so that who has the most, and who has fewer, has as many
    as whoever stands at the same place of the other side; int64, at most as many as there are."""
    sides = []
    for mine, others in ((ours, theirs), (theirs, ours)):
        place = (np.argsort(np.argsort(mine, kind="stable"), kind="stable") + 0.5) / len(mine)
        sides.append(np.minimum(mine, np.sort(others)[(place * len(others)).astype(int)]))
    return sides[0], sides[1]


def wilson(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share."""
    share = successes / n
    middle, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return float((middle - half) / (1 + z**2 / n)), float((middle + half) / (1 + z**2 / n))


def claim(found: dict[str, Any]) -> dict[str, str]:
    """A verdict (leaks, no leak found, cannot tell) and one sentence for it, of all that a section `privacy` holds.

    No evidence for a leak may stand above "no leak found": what is not enough for the one is too much for the other.
    """
    copy, exposed, shadows = found["copies"], found["patients"], found.get("shadows")
    attacks = {f"by {space}": one for space, one in found["membership"]["spaces"].items()}
    strongest = max(attacks, key=lambda name: attacks[name]["auc"])
    numbers = _attack(strongest, attacks[strongest])
    if shadows:
        lost = f" ({shadows['failed']} more are left out, one of each pair diverged)" if shadows.get("failed") else ""
        theirs = " with " + ", ".join(shadows["changed"]) if shadows.get("changed") else ""
        those = f"{shadows['shadows']} shadow generators of its recipe{theirs}{lost}"
        if shadows["auc"] is None:
            numbers += f"; {those} are too few to tell"
        else:
            attacks["by shadow generators"] = own = shadows["released"]
            numbers += f"; {_attack(f'by {those}', own)}, {_attack('of themselves', shadows)}"
    counts = [[copy["value"], copy["n"] - copy["value"]], [copy["held_out"], copy["n_held_out"] - copy["held_out"]]]
    if copy["beyond"] or fisher_exact(counts, "greater").pvalue < ALARMS:
        what = (
            f"{copy['value']} of {copy['n']:,} samples are near-copies of films of {copy['patients']} training patients"
        )
        return {"verdict": "leaks", "sentence": f"It leaks: {what}; {numbers}."}
    few = f"{copy['value']} near-copies, no more than held-out films are," if copy["value"] else "no near-copies"
    patients = min(one[side] for one in attacks.values() for side in ("patients", "patients_held_out"))
    for name, one in attacks.items() if patients >= FEW_PATIENTS else ():
        if one["low"] > 0.5 and one["auc"] > one["control_high"]:
            return {"verdict": "leaks", "sentence": f"It leaks who was trained on: {_attack(name, one)}; {few}."}
        if one["tpr_low"] > max(FALSE_RATE, one["tpr_expected"]):
            hits = f"{one['tpr']:.1%} of training films are found {name} where {FALSE_RATE:.0%} of others are accused"
            return {"verdict": "leaks", "sentence": f"It leaks who was trained on: {hits}; {numbers}."}
    if exposed["value"] > exposed["expected"] and exposed["p"] < ALARMS:
        share = f"{exposed['value']:.1%} of training patients are nearer to samples than 99 % of others"
        return {"verdict": "leaks", "sentence": f"It leaks on some patients: {share}; {numbers}."}
    for one in found["closeness"].values():
        if one["p"] < ALARMS / len(found["closeness"]):
            share = f"{one['value']:.1%} of samples are nearest to a training film, {one['expected']:.1%} by chance"
            return {"verdict": "leaks", "sentence": f"It leaks: {share}; {numbers}."}
    if patients < FEW_PATIENTS:
        why = f"{patients} patients on a side are too few, {FEW_PATIENTS} are needed"
        return {"verdict": "cannot tell", "sentence": f"It cannot be told whether it leaks: {why}; {few}; {numbers}."}
    for name, one in attacks.items():
        why = ""
        if one["low"] > 0.5:
            why = "films of training are told from others, but training films differ as much among each other"
        elif one["high"] < 0.5:
            why = "held-out films are nearer than those of training, so the two differ by more than that"
        if why:
            sentence = f"It cannot be told whether it leaks: {why}: {_attack(name, one)}."
            return {"verdict": "cannot tell", "sentence": sentence}
    if shadows and shadows["auc"] is not None and (shadows["low"] > 0.5 or shadows["tpr_low"] > FALSE_RATE):
        why = "its own samples show no leak, but those of its recipe in shadow trainings do"
        return {"verdict": "cannot tell", "sentence": f"It cannot be told whether it leaks: {why}: {numbers}."}
    if any(attacks[name]["high"] > 0.6 for name in attacks.keys() & {strongest, "by shadow generators"}):
        return {"verdict": "cannot tell", "sentence": f"Too few films to tell whether it leaks: {numbers}."}
    return {
        "verdict": "no leak found",
        "sentence": f"No leak found: {few} among {copy['n']:,} samples; {numbers}.",
    }


def _attack(name: str, found: dict[str, Any]) -> str:
    between = f"[{found['low']:.2f}, {found['high']:.2f}]"
    return f"membership AUC {found['auc']:.2f} {between} {name}, control {found['control']:.2f}"


# -- shadow models -------------------------------------------------------------------------------------------------


def contested(data: dict[str, str]) -> dict[str, np.ndarray]:
    """The films whose membership is asked for: as many that the audited generator was trained on as that it was not.

    As `real_films` has them, with patients of both sides numbered together, and trained bool (N,).
    """
    sides = real_films(data, SHADOW_FILMS // 2)
    films = {key: np.concatenate([side[key] for side in sides]) for key in sides[0]}
    films["trained"] = np.repeat([True, False], [len(side["pixels"]) for side in sides])
    films["patients"][~films["trained"]] += 1 + sides[0]["patients"].max()
    return films


def shadow(*, data: dict[str, str], config: dict[str, Any], images: int, seed: int, drawn: int, index: int) -> Result:
    """A generator trained on those of half of the patients of `contested`, and how near its samples are to all films.

    Shadows come in pairs that share the patients between them. {nearness float (N,), member bool (N,), patients (N,);
    failed: why there is none}
    """
    films = contested(data)
    split = replace(open_split(data["location"], "train"), pixels=films["pixels"], labels=films["labels"])
    patients = np.unique(films["patients"])
    halves = np.random.default_rng(stream_seed(seed, "shadow/half", index // 2)).permutation(patients)
    member = np.isin(films["patients"], halves[index % 2 :: 2])
    settled = retrain.recipe(config, stream_seed(seed, "shadow", index), images)
    try:
        generator = retrain.fit(settled, split, np.flatnonzero(member), device())[0].ema
    except Diverged as error:
        return {"failed": str(error)}
    labels = np.random.default_rng(index).choice(films["labels"][member], drawn)
    near = near_to(retrain.draw(generator, settled, labels, "shadow"), films["pixels"])
    return {"nearness": near, "member": member, "patients": films["patients"]}


def released(*parts: Result, data: dict[str, str], drawn: int) -> Result:
    """The audited generator as `shadow` has its own: as many of its samples, and who was trained on as member."""
    films, samples = contested(data), np.concatenate([part["pixels"] for part in parts])[:drawn]
    return {
        "nearness": near_to(samples, films["pixels"]),
        "member": films["trained"],
        "patients": films["patients"],
    }


def near_to(drawn: np.ndarray, films: np.ndarray) -> np.ndarray:
    """How near the samples come to each film, float (N,), by features."""
    describe, near = describer("features")
    return near(describe(films), describe(drawn))[0]


def likelihood_ratio(
    released: Result, *shadows: Result, seed: int, least: int = LEAST_SHADOWS, told: dict[str, Any] | None = None
) -> Result:
    """The audited generator, and each shadow in its place, attacked with what the (other) shadows show of how near
    films are when trained on and when not.

    Of each film the nearness in the shadows is taken as normal, with a mean inside and outside and one deviation for
    both; its score is the log ratio of the two at the attacked generator's (Carlini et al. 2022, arXiv:2112.03570, at
    small scale). How near a generator's samples are to all films is taken off first. The control of the audited one
    tells its members from members; that of the shadows takes for the truth who was in a shadow of another pair. A pair
    of which one diverged is left out and counted; auc is None where too few are left.

    {auc, ...: of the shadows, which is of the recipe on few films; released: {auc, ...} of the audited generator; told:
    what else is to be said of the shadows}
    """
    failed = {index // 2 for index, one in enumerate(shadows) if "failed" in one}
    shadows = tuple(one for index, one in enumerate(shadows) if index // 2 not in failed)
    count, patients = len(shadows), released["patients"]
    result: dict[str, Any] = {"shadows": count, "failed": 2 * len(failed), **(told or {})}
    if count < least:
        return {**result, "auc": None}
    nearness, member = (np.stack([one[key] for one in (*shadows, released)]) for key in ("nearness", "member"))
    near = np.log(np.maximum(-nearness, 1e-6))  # distances, as logarithms: nearer to normal
    near -= np.median(near, 1, keepdims=True)

    def ratio(target: int, known: np.ndarray) -> np.ndarray:
        inside, outside = (_mean(near[known], which[known]) for which in (member, ~member))
        left = np.where(member[known], near[known] - inside, near[known] - outside)
        deviation = max(float(np.nanstd(left)), 1e-6)
        return ((near[target] - outside) ** 2 - (near[target] - inside) ** 2) / (2 * deviation**2)

    everyone = np.arange(count)
    # Neither a shadow nor its pair tells of itself: each film is in half of those that are left.
    scores = np.concatenate([ratio(one, everyone[everyone // 2 != one // 2]) for one in range(count)])
    random = np.random.default_rng(stream_seed(seed, "likelihood ratio", 0))
    owners, inside = np.tile(patients, count), member[:count]
    own, trained = ratio(count, everyone), released["member"]

    def apart(statistic: Callable[[np.ndarray, np.ndarray], float], truth: np.ndarray) -> tuple[float, float, float]:
        sides = [(scores[which], owners[which]) for which in (truth.ravel(), ~truth.ravel())]
        return interval(statistic, sides[0], sides[1], random, 0.95)

    found, hits, control = apart(auc, inside), apart(hit_rate, inside), apart(auc, np.roll(inside, 2, 0))
    sides = [(own[which], patients[which]) for which in (trained, ~trained)]
    return {
        **result,
        "films": len(patients),
        **{"auc": found[0], "low": found[1], "high": found[2], "false_positive_rate": FALSE_RATE},
        **{"tpr": hits[0], "tpr_low": hits[1], "tpr_high": hits[2]},
        **{"control": control[0], "control_low": control[1], "control_high": control[2]},
        "released": told_apart(sides[0], sides[1], random, 1 - ALARMS),
    }


def _mean(values: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Mean over the shadows (S, N) for which it holds, of each film; over all where there are none."""
    count = which.sum(0)
    return np.where(count, (values * which).sum(0) / np.maximum(count, 1), values.mean(0))
