"""Chest films of children: what each preset reaches in 20 and in 60 minutes on this machine, beside a tutorial's DCGAN.

    MEDGAN_REAL_DATA=... python -m tests.prove.films                      # everything, into results/films.json
    MEDGAN_REAL_DATA=... python -m tests.prove.films --only 64:cgan:20    # one row
    python -m tests.prove.films --table                                   # results/films.json as Markdown

First the speed of every model is measured, in turns on the otherwise idle machine, on two workers; so many minutes
then stand for so many images, evaluations included. That makes a row the same whatever else the machine does while it
trains, and any row can be stopped and gone on with. Since the result does not depend on the number of workers, rows
may also be trained beside each other with --workers 1; their command says so. The longer training of a model
continues its shorter one. Checkpoints are chosen on val, figures are of the test split; nothing was tuned on it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

from medgan.tracking import read_rows
from tests import classifier
from tests.prove import ROOT, arguments, call, commit, hardware, keep, known, opened, raw, told

RESULTS = ROOT / "results/films.json"
YARDSTICK = "tutorial-dcgan"
MODELS = (YARDSTICK, "dcgan", "cgan", "stylegan2-lite")
CELLS = [(64, model, minutes) for model in MODELS for minutes in (20, 60)] + [(32, model, 20) for model in MODELS]
"""In the order in which they run: a model's longer training after its shorter one."""
SEED = 0
INTERVAL_KIMG = 20


def training(model: str, data: Path, out: Path, images: int, workers: int = 2) -> list[str]:
    """The command that trains a model to so many images."""
    if model == YARDSTICK:
        return ["-m", "tests.prove.tutorial", "--data", str(data), "--out", str(out), "--images", str(images)]
    settings = [f"total_images={images}", f"seed={SEED}", f"evaluate.interval_kimg={INTERVAL_KIMG}"]
    return [
        *("jobs/train.py", "--preset", model, "--data", str(data), "--out", str(out), "--workers", str(workers)),
        *(word for setting in settings for word in ("--set", setting)),
    ]


def speed(model: str, data: Path, scratch: Path, images: int) -> float:
    """Images per second of a short training, its evaluations at their interval included."""
    shutil.rmtree(scratch, ignore_errors=True)
    printed = call(*training(model, data, scratch, images))
    if model == YARDSTICK:
        return float(json.loads(printed)["images_per_s"])
    rows = read_rows(scratch / "metrics.jsonl")
    step = statistics.median([row["time/images_per_s"] for row in rows if "time/images_per_s" in row][1:])
    evaluation = statistics.median([row["time/evaluate_s"] for row in rows if "time/evaluate_s" in row])
    return 1 / (1 / step + evaluation / (INTERVAL_KIMG * 1000))


def speeds(resolution: int, data: Path, work: Path, rounds: int = 2) -> dict[str, float]:
    """Images per second of every model, measured in turns; kept, so that a row stays the same."""
    file = work / f"speeds-{resolution}.json"
    if not file.exists():
        found: dict[str, list[float]] = {model: [] for model in MODELS}
        for number in range(rounds):
            for model in MODELS:
                found[model].append(speed(model, data, work / "speed", 5000 * 64 // resolution))
                print(f"{resolution} {model}: {found[model][-1]:.0f} img/s (round {number + 1} of {rounds})")
        shutil.rmtree(work / "speed")
        file.write_text(json.dumps({model: statistics.mean(values) for model, values in found.items()}))
    return dict(json.loads(file.read_text()))


def read_by_classifier(data: Path, release: Path, work: Path) -> tuple[float, float]:
    """Balanced accuracy of a classifier of real train images on real test images, and on a labelled release."""
    model = classifier.fit(str(data))
    return classifier.accuracy(model, str(data), "test"), classifier.accuracy(model, str(release), "train")


def measured(resolution: int, model: str, minutes: int, films: Path, work: Path, workers: int) -> dict[str, Any]:
    """Train one cell, or go on with it, and measure it."""
    data, out = work / f"data-{resolution}", work / f"{resolution}-{model}"
    call("jobs/prepare.py", "--source", "kermany_cxr", "--raw", films, "--out", data, "--resolution", resolution)
    pace = speeds(resolution, data, work)[model]
    images = round(pace * minutes * 60)
    command = training(model, data, out, images, workers)
    print(f"{resolution} {model}: {images:,} images, {minutes} minutes at {pace:.0f} img/s", flush=True)
    call(*command)
    subject = ["--synthetic", out / "release"] if model == YARDSTICK else ["--run", out]
    figures_file = work / f"{resolution}-{model}-{minutes}.json"
    call("jobs/evaluate.py", *subject, "--data", data, "--out", figures_file)
    figures = json.loads(figures_file.read_text())["fidelity"]
    result = {
        **{"data": "kermany_cxr", "resolution": resolution, "model": model, "minutes": minutes},
        **{"kid": figures["kid"]["value"], "n": figures["kid"]["n"], "floor": figures["kid"]["floor"]},
        **{"fid": figures["fid"]["value"], "fid_floor": figures["fid"]["floor"]},
        **{name: figures[name]["value"] for name in ("precision", "recall", "coverage")},
        **{"coverage_floor": figures["coverage"]["floor"]},
        **{"images_seen": images, "images_per_s": round(pace, 1), "seed": SEED},
        "manifest_sha256": hashlib.sha256((data / "manifest.json").read_bytes()).hexdigest(),
        **{"commit": commit(), "command": f"python {told(command, data, out)}", "hardware": hardware()},
    }
    grid = out / ("samples.png" if model == YARDSTICK else "generator/samples.png")
    RESULTS.with_suffix("").mkdir(parents=True, exist_ok=True)
    shutil.copy(grid, RESULTS.with_suffix("") / f"{resolution}-{model}-{minutes}.png")
    if model != YARDSTICK and "classes" in figures:
        result["kid_by_class"] = {name: value["kid"]["value"] for name, value in figures["classes"].items()}
        release = work / f"{resolution}-{model}-release"
        shutil.rmtree(release, ignore_errors=True)
        call("jobs/generate.py", "--run", out, "--out", release, "--per-class", 200)
        result["real_class_accuracy"], result["class_accuracy"] = read_by_classifier(data, release, work)
    return result


def table() -> str:
    """The results as a Markdown table; for each resolution also what real images score against real ones."""
    lines = [
        "| pixels | model, samples | minutes | KID | of the tutorial's | FID | coverage | class read right | "
        "images seen | images/s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows = known(RESULTS)
    yardstick = {(r["resolution"], r["minutes"]): r["kid"] for r in rows if r["model"] == YARDSTICK}
    for r in rows:
        name = f"{r['resolution']}-{r['model']}-{r['minutes']}"
        beside = yardstick.get((r["resolution"], r["minutes"]))
        share = f"{r['kid'] / beside:.2f}" if beside else ""
        accuracy = f"{r['class_accuracy']:.0%}" if "class_accuracy" in r else ""
        lines.append(
            f"| {r['resolution']} | [`{r['model']}`](results/films/{name}.png) | {r['minutes']} | {r['kid']:.3f} | "
            f"{share} | {r['fid']:.0f} | {r['coverage']:.2f} | {accuracy} | {r['images_seen']:,} | "
            f"{r['images_per_s']:.0f} |"
        )
    for resolution in sorted({r["resolution"] for r in rows}, reverse=True):
        same = [r for r in rows if r["resolution"] == resolution]
        read = [r["real_class_accuracy"] for r in same if "real_class_accuracy" in r]
        accuracy = f"{statistics.mean(read):.0%}" if read else ""
        lines.append(
            f"| {resolution} | real films | | {same[0]['floor']:.3f} | | {same[0]['fid_floor']:.0f} | "
            f"{same[0]['coverage_floor']:.2f} | {accuracy} | | |"
        )
    return "\n".join(lines)


def cell_of(row: dict[str, Any]) -> tuple[int, str, int]:
    return row["resolution"], row["model"], row["minutes"]


def main() -> None:
    names = [f"{resolution}:{model}:{minutes}" for resolution, model, minutes in CELLS]
    parser = arguments(__doc__, "films", names)
    parser.add_argument("--workers", type=int, default=2, help="workers of the trainings (default 2)")
    parser.add_argument("--again", action="store_true", help="measure rows that results/films.json has, too")
    args = parser.parse_args()
    if args.table:
        print(table())
        return
    films, work = raw("kermany_cxr"), opened(args.work)
    done = set(map(cell_of, known(RESULTS)))
    for cell, name in zip(CELLS, names, strict=True):
        if name in (args.only or names) and (args.again or cell not in done):
            keep(RESULTS, [measured(*cell, films, work, args.workers)], cell_of, CELLS)
            print(table(), flush=True)


if __name__ == "__main__":
    main()
