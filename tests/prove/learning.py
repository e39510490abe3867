"""Drawn films at 32x32: what every conditional architecture learns in ten minutes; augmentation where images are few.

    python -m tests.prove.learning                      # everything, into results/learning.json
    python -m tests.prove.learning --only cgan          # one row

Ten minutes stand for the images that one worker, two, or one of two threads, whichever is fastest, sees in them on the
otherwise idle machine, evaluations included; the training may then run beside other work, since its result does not
depend on it.
Figures are of the test split; checkpoints were chosen on val.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medgan.data.loader import open_split
from medgan.distributed import World
from medgan.folder import RunFolder
from medgan.guards import judged
from medgan.metrics.classifiers import auc
from medgan.state import TrainState
from medgan.tracking import read_rows
from tests.prove import ROOT, arguments, call, commit, hardware, known, opened, prepare, prove, told
from tests.prove.films import paced, read_by_classifier, training

RESULTS = ROOT / "results/learning.json"
FASTER = {
    "loss.name": "rpgan",
    "loss.r2_gamma": "auto",
    "loss.auto_gamma": 5e-5,
    "global_batch": 4,
    "model.width": 64,
    "optim.lr_g": 1e-2,
    "optim.lr_d": 1e-2,
    "optim.decay_kimg": 50,
}
WIDER = {"loss.auto_gamma": 1e-3, "model.width": 64}
# Settings that differ from a preset's were chosen on val.
MODELS: dict[str, dict[str, Any]] = {"cgan": {}, "stylegan2-lite": FASTER, "resgan": WIDER}
"""Preset and what is set beside it for so short a training."""
FEW: dict[str, dict[str, Any]] = {
    "few-none": {},
    "few-ada": {"augment.name": "ada"},
    "few-ada-0.1": {"augment.name": "ada", "augment.target": 0.1},
    "few-diffaugment": {"augment.name": "diffaugment"},
}
PLACES = ((1, 1), (2, 1), (1, 2))
"""Workers, and CPUs of each, that a pace is measured with."""
PACED = 4_000
"""In so many images."""
MINUTES = 10
WANTED = {"class_accuracy": 0.95, "coverage": 0.8}
FEW_IMAGES, FEW_TRAINED = 260, 60_000
"""Of so many drawn films about 200 are in train."""


def prepared(work: Path, limit: int = 6000) -> Path:
    data = work / f"data-{limit}"
    prepare("phantom_cxr", data, "--resolution", 32, "--limit", limit)
    return data


def learnt(model: str, work: Path) -> dict[str, Any]:
    """One architecture after ten minutes: figures, and how an independent classifier reads its samples."""
    data, out, release = prepared(work), work / model, work / f"{model}-release"
    pace = paced({model: MODELS[model]}, data, work / f"speeds-{model}.json", PACED, rounds=1, places=PLACES)[model]
    images = round(pace["images_per_s"] * MINUTES * 60)
    command = training(model, data, out, images, pace["workers"], MODELS[model], pace["cpus"])
    call(*command)
    figures_file = work / f"{model}.json"
    call("jobs/evaluate.py", "--run", out, "--data", data, "--out", figures_file)
    figures = json.loads(figures_file.read_text())["fidelity"]
    shutil.rmtree(release, ignore_errors=True)
    call("jobs/generate.py", "--run", out, "--out", release, "--per-class", 200)
    real, read = read_by_classifier(data, release, work)
    grid = RESULTS.with_suffix("") / f"{model}.png"
    grid.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(out / "generator/samples.png", grid)
    found = {"coverage": figures["coverage"]["value"], "class_accuracy": read}
    return {
        **{"name": model, "minutes": MINUTES, **found, "real_class_accuracy": real},
        "reached": {name: found[name] >= wanted for name, wanted in WANTED.items()},
        **{"kid": figures["kid"]["value"], "floor": figures["kid"]["floor"], "n": figures["kid"]["n"]},
        **{"images_seen": images, "images_per_s": round(pace["images_per_s"], 1)},
        **{"paced_workers": pace["workers"], "paced_cpus": pace["cpus"], "hardware": pace["hardware"]},
        **{"seed": 0, "commit": commit(), "trained_on": hardware()},
        "command": told(command, data, out),
    }


@torch.no_grad()
def known_by_heart(out: Path, data: Path, others: Path) -> dict[str, Any]:
    """How often the last D gives a film of train a larger logit than one that it never saw, both augmented as in
    training: 0.5 by chance, 1 where it knows train by heart.

    others: DATA of which val and test are the films that it never saw, but for those that are in train.
    """
    folder = RunFolder(str(out))
    config = folder.config()
    assert config is not None
    state = TrainState.create(config, World())
    state.load(folder.read_checkpoint(max(folder.checkpoints())))
    train = open_split(str(data), "train")
    seen = {film.tobytes() for film in train.pixels}
    unseen: list[tuple[np.ndarray, np.ndarray]] = []
    for split in (open_split(str(others), name) for name in ("val", "test")):
        rows = [row for row, film in enumerate(split.pixels) if film.tobytes() not in seen]
        unseen.append((split.pixels[rows], split.labels[rows]))
    sides = {
        "train": (train.pixels, train.labels),
        "unseen": tuple(np.concatenate(parts) for parts in zip(*unseen, strict=True)),
    }
    logits = []
    for side, (pixels, labels) in sides.items():
        count, tensors = len(pixels), (torch.from_numpy(some.copy()) for some in (pixels, labels))
        logits.append(judged(state, side, *tensors, np.arange(count), count).numpy())
    return {"by_heart": auc(*logits), "n": [len(values) for values in logits]}


def few(name: str, work: Path, workers: int) -> dict[str, Any]:
    """The cgan on about 200 films with or without augmentation: figures of val over time, and whether D knows them."""
    data, out = prepared(work, FEW_IMAGES), work / name
    command = training("cgan", data, out, FEW_TRAINED, workers, FEW[name])
    call(*command)
    rows = [row for row in read_rows(out / "metrics.jsonl") if "metric/kid" in row and row["images_seen"]]
    curve = [{key: row.get(f"metric/{key}") for key in ("overfit", "kid", "coverage")} for row in rows]
    return {
        **{"name": name, "train_images": json.loads((data / "manifest.json").read_text())["counts"]["train"]},
        **known_by_heart(out, data, prepared(work)),
        "curve": [{"images_seen": row["images_seen"], **at} for row, at in zip(rows, curve, strict=True)],
        **{"seed": 0, "commit": commit(), "hardware": hardware()},
        "command": told(command, data, out),
    }


def table() -> str:
    """The results as a Markdown table: few images by their last evaluation."""
    lines = ["| | images seen | KID | coverage | class read right | D by heart |", "|---|---|---|---|---|---|"]
    for row in known(RESULTS):
        last = row["curve"][-1] if "curve" in row else row
        read = f"{row['class_accuracy']:.0%}" if "class_accuracy" in row else ""
        heart = f"{row['by_heart']:.2f}" if "by_heart" in row else ""
        figures = f"{last['kid']:.3f} | {last['coverage']:.2f}"
        lines.append(f"| {row['name']} | {last['images_seen']:,} | {figures} | {read} | {heart} |")
    return "\n".join(lines)


def main() -> None:
    parts = (*MODELS, *FEW)
    parser = arguments(__doc__, "learning", parts)
    parser.add_argument("--workers", type=int, default=2, help="workers of the trainings of few films (default 2)")
    args = parser.parse_args()

    def made(name: str) -> list[dict[str, Any]]:
        work = opened(args.work)
        return [learnt(name, work) if name in MODELS else few(name, work, args.workers)]

    prove(args, RESULTS, parts, made, lambda row: str(row["name"]), table)


if __name__ == "__main__":
    main()
