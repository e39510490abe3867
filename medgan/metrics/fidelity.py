"""Figures of generated against real features: KID, FID, precision and recall with torch-fidelity's arithmetic.

Density and coverage are our own. Real against other real images of equal number is the floor of each. torch-fidelity
loads torchvision's networks, which takes two seconds: only where a figure is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

SUBSETS = 100
MAX_SUBSET = 1000
FIGURES = {
    "kid": ("KID", "kernel distance: smaller is better"),
    "fid": ("FID", "Frechet distance, biased upwards in small n: smaller is better"),
    "precision": ("precision", "share of samples that look real"),
    "recall": ("recall", "share of real images that the samples could be"),
    "density": ("density", "how deep samples lie among real images: about 1 is good"),
    "coverage": ("coverage", "share of real images that have a sample nearby"),
    "diversity": ("diversity", "spread of the samples over that of real images: 1 is as varied, 0 one image"),
    "class_accuracy": ("class read right", "balanced accuracy with which a classifier of real images reads samples"),
}
"""Every figure: its name for people, and what it means."""
SHIFT = 0.05
"""Share of images that would have to be of another class, from which on figures over all classes are of the mix too."""
LEAST = 16
"""Images of a class, on each side, below which it gets no figure of its own."""


def told_figure(values: dict[str, Any], name: str) -> bool:
    """Whether there is such a figure beside its floor; what could not be measured is None."""
    return name in values and values[name]["value"] is not None and values[name]["floor"] is not None


def told_interval(figure: dict[str, Any]) -> str:
    """The interval of a figure that has one, to stand after it."""
    low, high = figure.get("low"), figure.get("high")
    return "" if low is None or high is None else f" ({low:.4g} to {high:.4g})"


def shifted(section: dict[str, Any]) -> str:
    """A warning where the samples' classes are mixed otherwise than those of the real images; else empty."""
    share = section.get("class_shift") or 0.0
    if share < SHIFT:
        return ""
    return (
        f"Figures over all classes also measure the mix: {share:.0%} of these images would have to be of another class "
        "for the real images' frequencies. Go by the figures of each class."
    )


def kid(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Kernel distance (Binkowski et al. 2018, arXiv:1801.01401): unbiased, so it may be a little below 0.

    real, fake: float32 (n, F). Mean over 100 random subsets of half the smaller side, at most 1,000 images.
    Returns value, and low and high: the mean over subsets, and the interval that holds 95 % of them.
    """
    from torch_fidelity.metric_kid import kid_features_to_metric

    size = min(MAX_SUBSET, min(len(real), len(fake)) // 2)
    figures = kid_features_to_metric(
        real, fake, kid_subsets=SUBSETS, kid_subset_size=size, verbose=False, rng_seed=2020
    )
    value, spread = (figures[f"kernel_inception_distance_{name}"] for name in ("mean", "std"))
    return {"value": value, "low": value - 1.96 * spread, "high": value + 1.96 * spread}


def fid(real: Tensor, fake: Tensor) -> float:
    """Frechet distance between Gaussians fitted to features, float32 (n, F) (Heusel et al. 2017, arXiv:1706.08500).

    Biased upwards in small n: compare only figures of equal n, and with the floor.

    The trace of the root of both covariances' product is the sum of the singular values of the product of both
    samples, centred, which is a matrix of n or F rows, whichever is less: with 512 images of 1,280 features a tenth
    of the time that the eigenvalues of an F x F matrix take, and nothing complex on the way.
    """
    apart, total = [], 0.0
    for exact in (real.double(), fake.double()):
        centred = (exact - exact.mean(0)) / (len(exact) - 1) ** 0.5
        total += float(centred.square().sum())
        apart.append(torch.linalg.qr(centred, mode="r").R if len(centred) > centred.shape[1] else centred)
    gap = float((real.double().mean(0) - fake.double().mean(0)).square().sum())
    return gap + total - 2 * float(torch.linalg.svdvals(apart[0] @ apart[1].T).sum())


def identity(extractor: dict[str, Any], n: int, split: str) -> dict[str, Any]:
    """What must agree before two figures may be compared."""
    return {**extractor, "n": n, "split": split, "kid_subsets": SUBSETS, "kid_subset_size": min(MAX_SUBSET, n // 2)}


def neighbourhoods(real: Tensor, fake: Tensor, k: int = 3, k_density: int = 5) -> dict[str, float]:
    """Precision and recall (arXiv:1904.06991, k = 3), density and coverage (arXiv:2002.09797, k = 5).

    real, fake: float32 (n, F). A ball around a sample reaches to its k-th nearest neighbour of the same side.
    Precision: the share of fakes in a ball of a real; recall: the share of reals in a ball of a fake; density: how
    many balls of reals a fake lies in, over k; coverage: the share of reals whose ball holds a fake. Larger is better.
    """
    from torch_fidelity.metric_prc import prc_features_to_metric

    both = prc_features_to_metric(fake, real, prc_neighborhood=k, verbose=False)
    radii = torch.cdist(real, real).kthvalue(k_density + 1).values  # the nearest one is the sample itself
    apart = torch.cdist(real, fake)
    inside = apart < radii[:, None]
    return {
        "precision": float(both["precision"]),
        "recall": float(both["recall"]),
        "density": float(inside.sum() / (k_density * len(fake))),
        "coverage": float(inside.any(1).float().mean()),
    }


def fidelity(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Every figure of features of equal n."""
    if len(real) != len(fake):
        raise ValueError(f"{len(real)} real against {len(fake)} generated images: figures need equal numbers")
    spread = {"diversity": diversity(real, fake)}
    return {"kid": kid(real, fake)["value"], "fid": fid(real, fake), **neighbourhoods(real, fake), **spread}


def diversity(real: Tensor, fake: Tensor) -> float:
    """Total variance of the generated features over that of the real ones, float32 (n, F) each: 0 or more."""
    return float(fake.double().var(0).sum() / real.double().var(0).sum())


def beside_floor(
    real: Tensor, fake: Tensor, control: Tensor, labels: Sequence[Tensor], classes: Sequence[str]
) -> dict[str, Any]:
    """Every figure of generated against real images, beside what other real images (control) score.

    Features, float32 (n, F) each; labels: of real, fake and control, (n, K). Returns {figure: {value, n, floor}}, for
    KID also low and high, and `classes`: the same within each class that all three have LEAST images of.
    """
    figures = _beside_floor(real, fake, control)
    of_classes = {}
    for index, name in enumerate(classes if all(hot.shape[1] for hot in labels) else ()):
        within = [rows[hot[:, index] > 0] for rows, hot in zip((real, fake, control), labels, strict=True)]
        n = min(map(len, within))
        if n >= LEAST:
            of_classes[name] = _beside_floor(*(rows[:n] for rows in within))
    return {**figures, "classes": of_classes}


def _beside_floor(real: Tensor, fake: Tensor, control: Tensor) -> dict[str, Any]:
    values, floors, n = fidelity(real, fake), fidelity(real, control), len(real)
    figures: dict[str, Any] = {name: {"value": values[name], "n": n, "floor": floors[name]} for name in values}
    figures["kid"] |= kid(real, fake)
    return figures


def scaled(real: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Features (n, F), each divided by its deviation among the real ones: for those that have units of their own.

    What never differs among the real ones is left out.
    """
    deviation = real.std(0)
    moving = deviation > 1e-8 * real.abs().mean(0).clamp(min=1e-8)
    return tuple(((rows - real.mean(0)) / deviation)[:, moving] for rows in (real, *others))


def class_kid(
    real: Tensor, real_labels: Tensor, fake: Tensor, fake_labels: Tensor, classes: Sequence[str]
) -> dict[str, dict[str, float]]:
    """KID within each class that has LEAST images on both sides: {class: {value, low, high, n}}.

    Features float32 (n, F) with their labels (n, K); n is the smaller side's, and as many of the larger are taken.
    """
    figures = {}
    for index, name in enumerate(classes):
        ours, theirs = real[real_labels[:, index] > 0], fake[fake_labels[:, index] > 0]
        n = min(len(ours), len(theirs))
        if n >= LEAST:
            figures[name] = {**kid(ours[:n], theirs[:n]), "n": n}
    return figures
