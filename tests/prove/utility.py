"""Do synthetic images help a classifier of real patients? What was tried on real films, and what came out.

    MEDGAN_REAL_DATA=... python -m tests.prove.utility                     # everything, into results/utility.json
    MEDGAN_REAL_DATA=... python -m tests.prove.utility --only claim        # one attempt
    MEDGAN_REAL_DATA=... python -m tests.prove.utility --draws 2 --gan-images 5000 --only claim --results FILE
    python -m tests.prove.utility --table                                  # results/utility.json as Markdown

Each attempt is one call of jobs/evaluate.py --utility, strict: a generator for each draw of patients. Nothing is
chosen on the test split but what is reported here, attempt by attempt, good or bad. Cells are kept: any attempt can
be stopped and gone on with.
"""

from __future__ import annotations

import json
import math
import shlex
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from medgan.data.shards import read_manifest
from medgan.metrics.classifiers import SCORES
from tests.prove import ROOT, arguments, call, commit, hardware, known, opened, prepare, prove, raw

RESULTS = ROOT / "results/utility.json"
SEED = 0
SHOWN = ("macro_f1", "auc", "rare_sensitivity")
CLAIMED = ("macro_f1", "rare_sensitivity")


@dataclass(frozen=True)
class Attempt:
    """data: a key of SOURCES; asked: options of jobs/evaluate.py; splits: seeds of the split of patients."""

    data: str
    asked: tuple[str, ...]
    what: str
    splits: tuple[int, ...] = (SEED,)


SOURCES = {
    "kermany": ("kermany_cxr", "kermany_cxr", "--resolution", "64"),
    "kermany32": ("kermany_cxr", "kermany_cxr", "--resolution", "32"),
    "nih32": ("nih_cxr14", "nih", "--resolution", "32", "--classes", "Effusion,No Finding"),
}
"""Source, folder and options of jobs/prepare.py.

At 32x32 a classifier of all films reads as many right as at 64x64 (see films.json), and a generator sees four times
the images in a minute: what it adds is judged rather than that it has only begun."""


def grid(arms: str, *options: str) -> tuple[str, ...]:
    """Options of an attempt whose D sees augmented images: few are not learnt by heart."""
    return (*options, "--gan-set", "augment.name=diffaugment", "--arms", arms)


TWO = "real+classical,real+classical+synthetic"
LEARNT = f"{TWO},real+classical+many,pretrained+classical"
FILLED = f"{TWO},real+classical+oversampled,real+classical+balanced"
RARE = ("--scenarios", "rare 5%", "--gan-images", "40000")
EVENLY = (*RARE, "--gan-set", "data.balance=1")
ATTEMPTS = {
    "claim": Attempt("kermany", (), "the default grid"),
    "rare": Attempt(
        "kermany32",
        grid(FILLED, *RARE),
        "all films but 5 % of the patients of the rarer class; also filled up by synthetic ones, against oversampling",
    ),
    "evened": Attempt(
        "kermany32",
        grid(FILLED, *EVENLY),
        "as `rare`, with generators that are shown both classes equally often: without, they hardly learn the rare one",
    ),
    "paired": Attempt(
        "kermany32",
        grid("real+classical+oversampled,real+classical+evened", *EVENLY),
        "as `evened`, and half of either class generated: where it is nearly all of one, that is what is learnt",
    ),
    "repeated": Attempt(
        "kermany32",
        grid("real+classical,real+classical+oversampled,real+classical+evened", *EVENLY, "--draws", "10"),
        "as `paired`, decided on before it was run: another split of the patients, ten draws, and also against no "
        "oversampling",
        splits=(1,),
    ),
    "unlabelled": Attempt(
        "kermany32",
        grid(LEARNT, "--scenarios", "1%", "--gan-unlabelled", "200000", "--gan-images", "10000"),
        "few labels, many films: generators begin with all of them, without labels; also 2,000 synthetic ones, as half "
        "of what is shown or before the real ones",
    ),
    "surer": Attempt(
        "kermany32",
        grid(
            f"{TWO},real+classical+many,real+classical+confident",
            *("--scenarios", "1%", "--gan-unlabelled", "200000", "--gan-images", "40000"),
        ),
        "as `unlabelled`, with four times as long to learn the labels, and only the samples whose class is sure",
    ),
    "few": Attempt(
        "kermany32",
        grid(LEARNT, "--scenarios", "1%", "--gan-images", "20000"),
        "few films: as `unlabelled`, without the films that have no label",
    ),
    "mixed": Attempt(
        "kermany32",
        grid(
            f"{TWO},real+synthetic 0.5x,real+synthetic 1x,real+synthetic 2x,real+classical+confident,"
            "pretrained+classical",
            *("--gan-images", "40000"),
        ),
        "mixing ratios; the surest half of the samples; synthetic first, real after",
    ),
    "finding": Attempt(
        "nih32",
        grid(f"{TWO},real+classical+many", "--scenarios", "100%", "--draws", "1"),
        "effusion or no finding in ChestX-ray14, all there is of 132 patients; with some 30 films to test on one split "
        "tells little, so eight of them",
        splits=tuple(range(1, 9)),
    ),
}


def answered(tried: Attempt, split: int, work: Path, more: list[str]) -> dict[str, Any]:
    """The section `utility` of an evaluation with one split of the patients.

    Prepares the films, and makes a short run whose config is the recipe: its own generator is not asked.
    """
    name = tried.data if split == SEED else f"{tried.data}-{split}"
    data, run = work / f"data-{name}", work / f"recipe-{name}"
    out = work / f"{name}.json"  # beside it cells, which attempts with the same generators share
    source, films, *options = SOURCES[tried.data]
    prepare(source, data, "--raw", raw(films), *options, "--seed", split)
    settings = (f"total_images={20_000 if split == SEED else 2_000}", f"seed={SEED}", "tracking.wandb=disabled")
    sets = [word for setting in settings for word in ("--set", setting)]
    call("jobs/train.py", "--preset", "cgan", "--data", data, "--out", run, *sets)
    asked = ("--utility", *tried.asked, *more, "--seed", split)
    call("jobs/evaluate.py", "--run", run, "--data", data, *asked, "--out", out)
    return dict(json.loads(out.read_text())["utility"])


def attempt(name: str, work: Path, more: list[str]) -> list[dict[str, Any]]:
    """One row for each arm and score."""
    tried = ATTEMPTS[name]
    began = time.monotonic()
    found = [answered(tried, split, work, more) for split in tried.splits]
    minutes = (time.monotonic() - began) / 60
    each = [
        {**difference, "baseline": baseline(one, difference)}
        for one in found
        for difference in one["differences"]
        if difference["score"] in SHOWN
    ]
    read = {
        name: [
            round(one["classes"][name]["value"], 4) for part in found for one in part["read"] if name in one["classes"]
        ]
        for name in found[0]["read"][0]["classes"]
    }
    seed = str(tried.splits[0]) if len(tried.splits) == 1 else "SPLIT"
    words = ["jobs/evaluate.py", "--run", "RUN", "--data", "DATA", "--utility", *tried.asked, *more, "--seed", seed]
    common = {"attempt": name, "data": tried.data, "what": tried.what, "rare": found[0]["rare"], **found[0]["settings"]}
    common["read_as_asked"] = read
    made = {
        **{"seed": SEED, "splits": list(tried.splits), "wall_minutes": round(minutes, 1), "commit": commit()},
        "hardware": hardware(),
        "command": f"python {shlex.join(words)}",
    }
    rows = each if len(tried.splits) == 1 else over_splits(each, work, tried)
    return [{**common, **row, **made} for row in rows]


def over_splits(each: list[dict[str, Any]], work: Path, tried: Attempt) -> list[dict[str, Any]]:
    """Means of what every split gained, with intervals of 95 %.

    Splits share patients, so that what they gained is not independent: to the 1/n of a mean's variance comes the ratio
    of test to train patients (Nadeau and Bengio 2003, Machine Learning 52).
    """
    patients = read_manifest(str(work / f"data-{tried.data}-{tried.splits[0]}"))[0].patients
    n, shared = len(tried.splits), patients["test"] / patients["train"]
    rows = []
    for first in each[: len(each) // n]:
        same = [row for row in each if all(row[key] == first[key] for key in ("arm", "against", "score"))]
        gained = [row["value"] for row in same]
        half = float(student.ppf(0.975, n - 1)) * math.sqrt(statistics.variance(gained) * (1 / n + shared))
        value = statistics.mean(gained)
        without = statistics.mean(row["baseline"] for row in same)
        interval = {"value": value, "low": value - half, "high": value + half, "by_split": gained}
        rows.append({**first, **interval, "baseline": without})
    return rows


def baseline(found: dict[str, Any], difference: dict[str, Any]) -> float:
    """The mean score of what the difference is against."""
    same = ("scenario", "network")
    cells = [
        cell[difference["score"]]
        for cell in found["cells"]
        if cell["arm"] == difference["against"] and all(cell[key] == difference[key] for key in same)
    ]
    return float(sum(cells) / len(cells))


def table(results: Path = RESULTS) -> str:
    """The results as a Markdown table: a row for each arm, with what the CLAIMED scores gained."""
    rows = known(results)
    heads = [f"{SCORES[score][0]} without | gained, 95 %" for score in CLAIMED]
    lines = [
        "| data | attempt | patients | arm | against | " + " | ".join(heads) + " |",
        "|---|---|---|---|---|" + "---|---|" * len(CLAIMED),
    ]
    for r in rows:
        if r["score"] != CLAIMED[0]:
            continue
        cells = [r[key] for key in ("data", "attempt", "scenario", "arm", "against")]
        for score in CLAIMED:
            same = {key: r[key] for key in ("attempt", "arm", "against", "network", "scenario")} | {"score": score}
            found = next(other for other in rows if same.items() <= other.items())
            between = "" if found["low"] is None else f" ({found['low']:+.3f} to {found['high']:+.3f})"
            cells += [f"{found['baseline']:.3f}", f"{found['value']:+.3f}{between}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__, "utility", ATTEMPTS)
    parser.add_argument("--results", type=Path, default=RESULTS, help="file to write")
    args, more = parser.parse_known_args()

    def made(name: str) -> list[dict[str, Any]]:
        return attempt(name, opened(args.work), more)

    prove(args, args.results, ATTEMPTS, made, lambda row: str(row["attempt"]), lambda: table(args.results))


if __name__ == "__main__":
    main()
