"""Figures against another library, in parts, beside their floors, and moved by what they are there to see."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from medgan.data.loader import open_split
from medgan.metrics import fidelity
from medgan.metrics.features import EfficientNetLite0

from .test_metrics import gaussian


@pytest.mark.parametrize(("n", "m", "dims"), [(300, 300, 20), (30, 30, 200), (300, 16, 100), (21, 400, 20)])
def test_fid_is_torch_fidelitys_with_fewer_and_with_more_images_than_features(n, m, dims):
    a, b = gaussian(n, 0.0, 1.0, dims=dims), gaussian(m, 0.3, 1.2, dims=dims, seed=1)
    statistics = [fid_features_to_statistics(features.double()) for features in (a, b)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert fidelity.fid(a, b) == pytest.approx(theirs, rel=1e-5)  # theirs takes roots of rounded zeros
    assert fidelity.fid(a, a) == pytest.approx(0, abs=1e-9 * dims)


def test_precision_and_recall_are_torch_fidelitys():
    a, b = gaussian(300, 0.0, 1.0, dims=20), gaussian(300, 0.3, 1.2, dims=20, seed=1)
    both = prc_features_to_metric(b, a, prc_neighborhood=3, verbose=False)
    ours = fidelity.neighbourhoods(a, b)
    assert (ours["precision"], ours["recall"]) == pytest.approx((both["precision"], both["recall"]), abs=1e-6)


def test_every_figure_stands_beside_the_floor_of_equal_n_overall_and_by_class():
    labels = torch.eye(3)[[0] * 100 + [1] * 100 + [2] * 10]
    real, control = gaussian(210, 0.0, 1.0), gaussian(210, 0.0, 1.0, seed=1)
    fake = gaussian(210, 0.0, 1.0, seed=2) + 2 * labels[:, 1:2]  # the second class is moved
    found = fidelity.beside_floor(real, fake, control, [labels] * 3, ("a", "b", "c"))
    names = {"kid", "fid", "precision", "recall", "density", "coverage", "diversity"}
    assert found.keys() == names | {"classes"}
    assert found["classes"].keys() == {"a", "b"}  # of c there are too few
    assert all(figure["n"] == 100 for figure in found["classes"]["b"].values())
    assert found["kid"]["low"] < found["kid"]["value"] < found["kid"]["high"]
    assert found["fid"]["floor"] == pytest.approx(fidelity.fid(real, control))
    moved, kept = found["classes"]["b"], found["classes"]["a"]
    assert moved["fid"]["value"] > 10 * moved["fid"]["floor"]
    assert kept["fid"]["value"] < 2 * kept["fid"]["floor"]
    assert moved["precision"]["value"] < 0.5 < kept["precision"]["value"]


def test_features_with_units_of_their_own_are_scaled_by_the_real_ones():
    real = gaussian(200, 3.0, 1.0, dims=3) * torch.tensor([1.0, 1000.0, 0.0])
    ours, theirs = fidelity.scaled(real, real * 2)
    assert ours.shape == (200, 2)  # what never differs says nothing
    assert torch.allclose(ours.std(0), torch.ones(2))
    assert torch.allclose(theirs.std(0), 2 * torch.ones(2))


@pytest.fixture(scope="module")
def films(phantoms):
    """(pixels, labels) of the train films, and an extractor."""
    split = open_split(phantoms, "train")
    return torch.from_numpy(np.array(split.pixels)), torch.from_numpy(np.array(split.labels)), EfficientNetLite0()


@pytest.mark.heavy
def test_noise_blur_a_dropped_class_and_a_repeated_image_each_move_the_right_figure(films):
    pixels, labels, extract = films
    half = len(pixels) // 2
    real, others = extract(pixels[:half]), pixels[half : 2 * half]
    good = fidelity.fidelity(real, extract(others))
    assert min(good["precision"], good["recall"], good["coverage"]) > 0.6

    noise = 30 * torch.randn(others.shape, generator=torch.Generator().manual_seed(0))
    noisy = fidelity.fidelity(real, extract((others + noise).clamp(0, 255).byte()))
    blurred = fidelity.fidelity(real, extract(F.avg_pool2d(others.float(), 5, 1, 2).byte()))
    for spoilt in (noisy, blurred):
        assert spoilt["kid"] > good["kid"] + 0.2
        assert spoilt["fid"] > 1.5 * good["fid"]
        assert spoilt["precision"] < good["precision"] - 0.3

    once = others[:1].expand(half, -1, -1, -1)
    repeated = fidelity.fidelity(extract(others), extract(once))  # one of the real images, again and again
    assert repeated["precision"] > 0.95
    assert repeated["recall"] < 0.05
    assert repeated["coverage"] < 0.1

    normal = others[labels[half : 2 * half, 0] > 0]
    of_one_class = normal[torch.arange(half) % len(normal)]
    dropped = fidelity.fidelity(real, extract(of_one_class))
    assert dropped["kid"] > good["kid"] + 0.02
    assert dropped["precision"] > good["precision"] - 0.2
    assert dropped["coverage"] < good["coverage"] - 0.2
