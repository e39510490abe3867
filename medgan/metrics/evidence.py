"""The three questions asked of a generator or a release, as cells: is it faithful, does it help, does it leak?

Here is what they share: the images under test, the real ones beside them, and the first question. The others have
modules of their own. Functions that take results and plain arguments and return results are called by cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from medgan.cells import Cell, Result
from medgan.data import shards
from medgan.data.loader import open_split, row_weights
from medgan.distributed import World
from medgan.metrics import classifiers, fidelity
from medgan.metrics.classifiers import Images
from medgan.metrics.features import EXTRACTORS, choose_rows, real_features
from medgan.metrics.retrain import device
from medgan.sample import Sampler
from medgan.streams import stream_seed

PART = 512
"""Samples that one cell draws and measures."""
READER_STEPS = 1200
"""Batches of 64 from which the classifier of real images learns that reads samples."""
HERE = "medgan.metrics.evidence"


@dataclass(frozen=True)
class Question:
    """What is evaluated against what. All of it plain types, for it is part of the cells' arguments."""

    subject: dict[str, str]
    """{"run" or "synthetic": location, "sha256": of the generator's weights or of the release's manifest}"""
    data: dict[str, str]
    """{"location": of DATA, "sha256": of its manifest}"""
    classes: tuple[str, ...]
    split: str
    other: str
    """Split of the real images that stand beside those of `split` as the floor."""
    n: int
    seed: int
    extractor: str = "efficientnet-lite0"
    weights: str | None = None

    def samples(self) -> list[Cell]:
        """The images under test, in parts."""
        common = {"subject": self.subject, "data": self.data, "split": self.split, "n": self.n, "seed": self.seed}
        return [
            Cell(f"samples {first:,}", f"{HERE}:samples", {**common, "first": first, "last": min(first + PART, self.n)})
            for first in range(0, self.n, PART)
        ]

    def fidelity(self) -> dict[str, Cell]:
        which = {"extractor": self.extractor, "weights": self.weights}
        real = [
            Cell(f"features of {split}", f"{HERE}:real", {"data": self.data, "split": split, "n": self.n, **which})
            for split in (self.split, self.other)
        ]
        fakes = [Cell(f"features of {part.name}", f"{HERE}:sample_features", which, (part,)) for part in self.samples()]
        figures = Cell("fidelity", f"{HERE}:figures", {"classes": list(self.classes)}, (*real, *fakes))
        if not self.classes:
            return {"fidelity": figures}
        faithful = {"data": self.data, "split": self.split}
        judge = stream_seed(self.seed, "judge", 0)  # another than the one that may have chosen a release's images
        needs = (reader_of(self.data, judge), *self.samples())
        return {"fidelity": figures, "faithful": Cell("classes read", f"{HERE}:faithful", faithful, needs)}


def reader_of(data: dict[str, str], seed: int) -> Cell:
    """The classifier of real train images, which reads what samples show."""
    return Cell("reader", f"{HERE}:reader", {"data": data, "seed": seed})


def samples(
    *, subject: dict[str, str], data: dict[str, str], split: str, n: int, seed: int, first: int, last: int
) -> Result:
    """Images [first, last) of n: a generator's, with the labels of the real images they are held against, or a
    release's. {pixels uint8 (N, C, R, R), labels uint8 (N, K)}, K = 0 where they are of no class of DATA.
    """
    if "synthetic" in subject:
        release = open_split(subject["synthetic"], "train")
        rows = choose_rows(len(release), n)[first:last]
        ours, theirs = (shards.read_manifest(one)[0].classes for one in (subject["synthetic"], data["location"]))
        labels = release.labels[rows]
        return {"pixels": release.pixels[rows], "labels": labels if ours == theirs else labels[:, :0]}
    sampler = Sampler.open(subject["run"], device(), subject["sha256"])
    real = open_split(data["location"], split)
    labels = real.labels[choose_rows(len(real), n)[first:last]]
    if not sampler.classes:
        labels = labels[:, :0]
    return {"pixels": sampler.draw(labels, seed, first)[0], "labels": labels}


def sample_features(part: Result, *, extractor: str, weights: str | None) -> Result:
    """{features float32 (N, F), labels, identity}"""
    extract = EXTRACTORS[extractor](device(), weights)
    features = extract(torch.from_numpy(part["pixels"]))
    return {"features": features.numpy(), "labels": part["labels"], "identity": extract.identity}


def real(*, data: dict[str, str], split: str, n: int, extractor: str, weights: str | None) -> Result:
    """As `sample_features`, of n real images of a split; from the node's cache where it has them."""
    extract, rows = EXTRACTORS[extractor](device(), weights), open_split(data["location"], split)
    features = real_features(rows, n, extract, World())
    assert features is not None
    labels = rows.labels[choose_rows(len(rows), n)]
    return {"features": features.numpy(), "labels": labels, "identity": extract.identity}


def figures(real: Result, control: Result, *fakes: Result, classes: list[str]) -> Result:
    """{figures: see fidelity.beside_floor, identity, shift: the share of samples that would have to be of another class
    for the real images' frequencies}. Does not depend on how the samples were parted."""
    sets = [real, control, {key: np.concatenate([fake[key] for fake in fakes]) for key in ("features", "labels")}]
    features = [torch.from_numpy(one["features"]) for one in sets]
    if real["identity"].get("scaled"):
        features = list(fidelity.scaled(*features))
    labels = [torch.from_numpy(one["labels"]) for one in sets]
    found = fidelity.beside_floor(features[0], features[2], features[1], [labels[0], labels[2], labels[1]], classes)
    shares = [one.float().mean(0) / one.float().mean(0).sum().clamp(min=1e-9) for one in labels]
    known = labels[0].shape == labels[2].shape and labels[0].shape[1] > 0
    shift = float((shares[0] - shares[2]).abs().sum() / 2) if known else 0.0
    return {"figures": found, "identity": real["identity"], "shift": shift}


def faithful(reader: Result, *parts: Result, data: dict[str, str], split: str) -> Result:
    """How well a classifier of real train images reads the samples' classes; the floor is how well it reads real ones
    of those classes.

    {value, floor: balanced accuracy; n; classes: {class: {value, floor}}: share of it that is recognised}
    """
    fake = Images.together([Images(part["pixels"], part["labels"]) for part in parts])
    if not fake.labels.shape[1]:
        return {}
    train, real = (open_split(data["location"], name) for name in ("train", split))
    single = reader["single"]
    asked = np.flatnonzero(real.labels[:, fake.labels.any(0)].any(1)) if single else np.arange(len(real))
    if not len(asked):
        return {}
    sides = [fake, Images(real.pixels, real.labels).some(asked)]
    answers = [read_by(reader, side.pixels) for side in sides]
    rare = int(train.labels.sum(0).argmin())
    overall = [
        classifiers.scores(said, side.labels, rare, single=single)["balanced_accuracy"]
        for said, side in zip(answers, sides, strict=True)
    ]
    classes = shards.read_manifest(data["location"])[0].classes
    ours, theirs = (
        recognised(said, side.labels, classes, single=single) for said, side in zip(answers, sides, strict=True)
    )
    of_classes = {
        name: {"value": ours[name]["value"], "floor": theirs[name]["value"], "n": ours[name]["n"]}
        for name in ours
        if name in theirs
    }
    return {"value": overall[0], "floor": overall[1], "n": len(fake), "classes": of_classes}


def recognised(
    answers: np.ndarray, labels: np.ndarray, classes: Sequence[str], *, single: bool
) -> dict[str, dict[str, float]]:
    """{class: {value: share of its images that are read as it, n}}, of probabilities (N, K) for labels (N, K)."""
    said = answers == answers.max(1, keepdims=True) if single else answers >= 0.5
    of = {name: labels[:, k] > 0 for k, name in enumerate(classes)}
    return {
        name: {"value": float(said[which, k].mean()), "n": int(which.sum())}
        for k, (name, which) in enumerate(of.items())
        if which.any()
    }


def reader(*, data: dict[str, str], seed: int) -> Result:
    """A small CNN trained on all of train, classes shown equally often: {single, its weights by name}."""
    train = open_split(data["location"], "train")
    images = Images(train.pixels, train.labels)
    single = classifiers.exclusive(images.labels)
    share = row_weights(images.labels, 1.0)
    how: dict[str, Any] = {
        "augment": True,
        "mirror": shards.read_manifest(data["location"])[0].mirror,
        "weights": share,
    }
    model = classifiers.train(images, "small-cnn", seed, single=single, steps=READER_STEPS, device=device(), **how)
    shape = [*train.pixels.shape[1:3], train.labels.shape[1]]
    return {"single": single, "shape": shape, **{key: value.cpu().numpy() for key, value in model.state_dict().items()}}


def read_by(reader: Result, pixels: np.ndarray) -> np.ndarray:
    """Probabilities, float32 (N, K), that a `reader` gives for uint8 (N, C, R, R)."""
    model = classifiers.small_cnn(*reader["shape"])
    model.load_state_dict({key: torch.from_numpy(reader[key]) for key in model.state_dict()})
    return classifiers.predict(model.to(device()).eval(), pixels, single=reader["single"])
