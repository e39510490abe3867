"""Figures of generated against real features: KID, FID, precision and recall with torch-fidelity's arithmetic.

Density and coverage are our own. Real against other real images of equal number is the floor of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

SUBSETS = 100
MAX_SUBSET = 1000
FIGURES = {
    "kid": ("KID", "kernel distance: smaller is better"),
    "fid": ("FID", "Frechet distance, biased upwards in small n: smaller is better"),
    "precision": ("precision", "share of samples that look real"),
    "recall": ("recall", "share of real images that the samples could be"),
    "density": ("density", "how deep samples lie among real images: about 1 is good"),
    "coverage": ("coverage", "share of real images that have a sample nearby"),
}
"""Every figure of `fidelity`: its name for people, and what it means."""
LEAST = 16
"""Images of a class, on each side, below which it gets no figure of its own."""


def kid(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Kernel distance (Binkowski et al. 2018, arXiv:1801.01401): unbiased, so it may be a little below 0.

    real, fake: float32 (n, F). Mean over 100 random subsets of half the smaller side, at most 1,000 images.
    Returns value, and low and high: the mean over subsets, and the interval that holds 95 % of them.
    """
    size = min(MAX_SUBSET, min(len(real), len(fake)) // 2)
    figures = kid_features_to_metric(
        real, fake, kid_subsets=SUBSETS, kid_subset_size=size, verbose=False, rng_seed=2020
    )
    value, spread = (figures[f"kernel_inception_distance_{name}"] for name in ("mean", "std"))
    return {"value": value, "low": value - 1.96 * spread, "high": value + 1.96 * spread}


def fid(real: Tensor, fake: Tensor) -> float:
    """Frechet distance between Gaussians fitted to features, float32 (n, F) (Heusel et al. 2017, arXiv:1706.08500).

    Biased upwards in small n: compare only figures of equal n, and with the floor.
    """
    statistics = [fid_features_to_statistics(features.double()) for features in (real, fake)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"])


def identity(extractor: dict[str, Any], n: int, split: str) -> dict[str, Any]:
    """What must agree before two figures may be compared."""
    return {**extractor, "n": n, "split": split, "kid_subsets": SUBSETS, "kid_subset_size": min(MAX_SUBSET, n // 2)}


def neighbourhoods(real: Tensor, fake: Tensor, k: int = 3, k_density: int = 5) -> dict[str, float]:
    """Precision and recall (arXiv:1904.06991, k = 3), density and coverage (arXiv:2002.09797, k = 5).

    real, fake: float32 (n, F). A ball around a sample reaches to its k-th nearest neighbour of the same side.
    Precision: the share of fakes in a ball of a real; recall: the share of reals in a ball of a fake; density: how
    many balls of reals a fake lies in, over k; coverage: the share of reals whose ball holds a fake. Larger is better.
    """
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
    return {"kid": kid(real, fake)["value"], "fid": fid(real, fake), **neighbourhoods(real, fake)}


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
