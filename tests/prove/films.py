"""Chest films of children: what each preset reaches in 20 and in 60 minutes on this machine, beside a tutorial's DCGAN.

    MEDGAN_REAL_DATA=... python -m tests.prove.films                      # everything, into results/films.json
    MEDGAN_REAL_DATA=... python -m tests.prove.films --only 64:cgan:20    # one row
    python -m tests.prove.films --table                                   # results/films.json as Markdown

First the speed of every model is measured, in turns on the otherwise idle machine, with two workers and with one of
two threads; so many minutes then stand for so many images of the faster, evaluations included. That makes a row the
same whatever else the machine does while it trains, and any row can be stopped and gone on with. Since the result does
not depend on the number of workers, rows may also be trained beside each other with --workers 1; their command says so.
The longer training of a model continues its shorter one, where both are of one commit. Checkpoints are chosen on val,
figures are of the test split; nothing was tuned on it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

from medgan import config as configs
from medgan.tracking import read_rows
from tests import classifier
from tests.prove import ROOT, Row, arguments, call, commit, hardware, known, opened, prepare, prove, raw, told

RESULTS = ROOT / "results/films.json"
YARDSTICK = "tutorial-dcgan"
MODELS = (YARDSTICK, "dcgan", "cgan", "stylegan2-lite")
CELLS = [(64, model, minutes) for model in MODELS for minutes in (20, 60)] + [(32, model, 20) for model in MODELS]
"""In the order in which they run: a model's longer training after its shorter one."""
SEED = 0
INTERVAL_KIMG = 20
PLACES = ((2, 1), (1, 2))
"""Workers, and CPUs of each: two cores either way."""

NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})


def training(
    model: str,
    data: Path,
    out: Path,
    images: int,
    workers: int = 2,
    settings: Mapping[str, Any] = NO_SETTINGS,
    cpus: int = 1,
) -> list[str]:
    """The command that trains a model to so many images, with settings beside its preset's. cpus: of a worker."""
    if model == YARDSTICK:
        return ["-m", "tests.prove.tutorial", "--data", str(data), "--out", str(out), "--images", str(images)]
    settings = {"total_images": images, "seed": SEED, "evaluate.interval_kimg": INTERVAL_KIMG, **settings}
    return [
        *("jobs/train.py", "--preset", model, "--data", str(data), "--out", str(out), "--workers", str(workers)),
        *(("--cpus-per-worker", str(cpus)) if cpus > 1 else ()),
        *(word for key, value in settings.items() for word in ("--set", f"{key}={value}")),
    ]


def speed(model: str, scratch: Path, command: list[str]) -> float:
    """Images per second of a short training of a model into scratch, its evaluations at their interval included."""
    shutil.rmtree(scratch, ignore_errors=True)
    printed = call(*command)
    if model == YARDSTICK:
        return float(json.loads(printed)["images_per_s"])
    rows = read_rows(scratch / "metrics.jsonl")
    step = statistics.median([row["time/images_per_s"] for row in rows if "time/images_per_s" in row][1:])
    evaluation = statistics.median([row["time/evaluate_s"] for row in rows if "time/evaluate_s" in row])
    return 1 / (1 / step + evaluation / (INTERVAL_KIMG * 1000))


def paced(
    models: Mapping[str, Mapping[str, Any]],
    data: Path,
    kept: Path,
    images: int,
    rounds: int = 2,
    places: Sequence[tuple[int, int]] = PLACES,
) -> dict[str, Row]:
    """For every model, with its settings, the place in which it sees most images per second, how many, and where.

    Measured in turns on trainings to so many images, and kept in a file, so that a row stays the same; what a stop left
    out is measured when it is called again.
    """
    start = {"commit": commit(), "hardware": hardware(), "speeds": {}}
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else start
    scratch = kept.with_suffix("")
    ways = [(model, place) for model, settings in models.items() for place in possible(model, settings, places)]
    for number, (model, (workers, cpus)) in product(range(rounds), ways):
        speeds = found["speeds"].setdefault(model, {}).setdefault(f"{workers}x{cpus}", [])
        if len(speeds) <= number:
            if found["hardware"] != start["hardware"]:
                raise SystemExit(f"{kept} has speeds of {found['hardware']}: delete it to measure this one's")
            command = training(model, data, scratch, images, workers, models[model], cpus)
            speeds.append(speed(model, scratch, command))
            kept.write_text(json.dumps(found))
            what = f"{model}, workers {workers}, CPUs of each {cpus}"
            print(f"{what}: {speeds[-1]:.0f} img/s (round {number + 1} of {rounds})", flush=True)
    shutil.rmtree(scratch, ignore_errors=True)

    def fastest(measured: Mapping[str, list[float]]) -> Row:
        place, speeds = max(measured.items(), key=lambda item: statistics.mean(item[1]))
        workers, cpus = map(int, place.split("x"))
        return {"images_per_s": statistics.mean(speeds), "workers": workers, "cpus": cpus, "speeds": measured}

    where = {key: found[key] for key in ("commit", "hardware")}
    return {model: fastest(measured) | where for model, measured in found["speeds"].items()}


def possible(model: str, settings: Mapping[str, Any], places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The places in which a model may train: the yardstick in its one process of two threads, others by their batch."""
    if model == YARDSTICK:
        yield 1, 2
    else:
        most = configs.load(model, overrides=dict(settings)).most_workers
        yield from ((workers, cpus) for workers, cpus in places if workers <= most)


def read_by_classifier(data: Path, release: Path, work: Path) -> tuple[float, float]:
    """Balanced accuracy of a classifier of real train images on real test images, and on a labelled release."""
    model = classifier.fit(str(data))
    return classifier.accuracy(model, str(data), "test"), classifier.accuracy(model, str(release), "train")


def measured(resolution: int, model: str, minutes: int, films: Path, work: Path, workers: int | None) -> Row:
    """Train one cell, or go on with it, and measure it. workers: None for those that its pace is of."""
    version = commit()
    data, out = work / f"data-{resolution}", work / f"{resolution}-{model}-{version}"
    prepare("kermany_cxr", data, "--raw", films, "--resolution", resolution)
    everything = dict.fromkeys(MODELS, NO_SETTINGS)
    place = paced(everything, data, work / f"pace-{resolution}.json", 5000 * 64 // resolution)[model]
    pace = place["images_per_s"]
    images = round(pace * minutes * 60)
    count, cpus = (place["workers"], place["cpus"]) if workers is None else (workers, 1)
    command = training(model, data, out, images, count, cpus=cpus)
    print(f"{resolution} {model}: {images:,} images, {minutes} minutes at {pace:.0f} img/s", flush=True)
    call(*command)
    subject = ["--synthetic", out / "release"] if model == YARDSTICK else ["--run", out]
    figures_file = work / f"{resolution}-{model}-{minutes}.json"
    call("jobs/evaluate.py", *subject, "--data", data, "--out", figures_file)
    figures = json.loads(figures_file.read_text())["fidelity"]
    result = {
        **{"data": "kermany_cxr", "resolution": resolution, "model": model, "minutes": minutes},
        **{"kid": figures["kid"]["value"], "kid_low": figures["kid"]["low"], "kid_high": figures["kid"]["high"]},
        **{"n": figures["kid"]["n"], "floor": figures["kid"]["floor"]},
        **{"fid": figures["fid"]["value"], "fid_floor": figures["fid"]["floor"]},
        **{name: figures[name]["value"] for name in ("precision", "recall", "coverage")},
        **{"coverage_floor": figures["coverage"]["floor"]},
        **{"images_seen": images, "images_per_s": round(pace, 1), "seed": SEED},
        "pace": {key: place[key] for key in ("workers", "cpus", "speeds", "commit", "hardware")},
        "manifest_sha256": hashlib.sha256((data / "manifest.json").read_bytes()).hexdigest(),
        **{"commit": version, "command": f"python {told(command, data, out)}", "hardware": hardware()},
    }
    grid = out / ("samples.png" if model == YARDSTICK else "generator/samples.png")
    RESULTS.with_suffix("").mkdir(parents=True, exist_ok=True)
    shutil.copy(grid, RESULTS.with_suffix("") / f"{resolution}-{model}-{minutes}.png")
    if model != YARDSTICK and figures["classes"]:  # none of an unconditional generator
        result["kid_by_class"] = {name: value["kid"]["value"] for name, value in figures["classes"].items()}
        release = work / f"{resolution}-{model}-release"
        shutil.rmtree(release, ignore_errors=True)
        call("jobs/generate.py", "--run", out, "--out", release, "--per-class", 200)
        result["real_class_accuracy"], result["class_accuracy"] = read_by_classifier(data, release, work)
    return result


def table() -> str:
    """The results as a Markdown table; for each resolution also what real images score against real ones."""
    lines = [
        "| pixels | model, samples | minutes | on | KID | of the tutorial's | FID | coverage | recall | "
        "class read right | images seen | images/s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows = known(RESULTS)
    yardstick = {(r["resolution"], r["minutes"]): r["kid"] for r in rows if r["model"] == YARDSTICK}
    for r in rows:
        name = f"{r['resolution']}-{r['model']}-{r['minutes']}"
        beside = yardstick.get((r["resolution"], r["minutes"]))
        share = f"{r['kid'] / beside:.2f}" if beside else ""
        accuracy = f"{r['class_accuracy']:.0%}" if "class_accuracy" in r else ""
        former = "".join(f", `{key}={value}`" for key, value in r.get("former", {}).items())  # its preset's, then
        interval = f" ({r['kid_low']:.3f} to {r['kid_high']:.3f})" if "kid_low" in r else ""
        lines.append(
            f"| {r['resolution']} | [`{r['model']}`](results/films/{name}.png){former} | {r['minutes']} | "
            f"{chip(r.get('pace', r)['hardware'])} | {r['kid']:.3f}{interval} | "
            f"{share} | {r['fid']:.0f} | {r['coverage']:.2f} | {r['recall']:.2f} | {accuracy} | {r['images_seen']:,} | "
            f"{r['images_per_s']:.0f} |"
        )
    for resolution in sorted({r["resolution"] for r in rows}, reverse=True):
        same = [r for r in rows if r["resolution"] == resolution]
        read = [r["real_class_accuracy"] for r in same if "real_class_accuracy" in r]
        accuracy = f"{statistics.mean(read):.0%}" if read else ""
        kid, fid, coverage = (spread([r[key] for r in same]) for key in ("floor", "fid_floor", "coverage_floor"))
        lines.append(f"| {resolution} | real films | | | {kid} | | {fid} | {coverage} | | {accuracy} | | |")
    return "\n".join(lines)


def chip(hardware: str) -> str:
    """The name of the CPU that minutes are of."""
    name = re.sub(r"\(R\)| Processor", "", hardware.split(" cores ")[1].split(" (")[0])
    return name + (" AMX" if "amx" in hardware else "")


def spread(values: list[float]) -> str:
    """Least and most: floors differ with the split of the real images, of which rows of different keys have others."""
    digits = 0 if min(values) > 10 else 3 if max(values) < 0.1 else 2
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def cell_of(row: dict[str, Any]) -> str:
    return f"{row['resolution']}:{row['model']}:{row['minutes']}"


def main() -> None:
    cells = {f"{resolution}:{model}:{minutes}": (resolution, model, minutes) for resolution, model, minutes in CELLS}
    parser = arguments(__doc__, "films", cells)
    parser.add_argument("--workers", type=int, help="workers of the trainings, of a core each (default: as was faster)")
    args = parser.parse_args()

    def made(name: str) -> list[dict[str, Any]]:
        return [measured(*cells[name], raw("kermany_cxr"), opened(args.work), args.workers)]

    prove(args, RESULTS, cells, made, cell_of, table)


if __name__ == "__main__":
    main()
