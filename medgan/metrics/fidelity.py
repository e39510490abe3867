"""KID and FID of features, with torch-fidelity's arithmetic, and the real-against-real floor beside each."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

SUBSETS = 100
MAX_SUBSET = 1000


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


def fidelity(real: Tensor, fake: Tensor) -> dict[str, float]:
    """metric/* of features of equal n."""
    if len(real) != len(fake):
        raise ValueError(f"{len(real)} real against {len(fake)} generated images: figures need equal numbers")
    return {"kid": kid(real, fake)["value"], "fid": fid(real, fake)}
