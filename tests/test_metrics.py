import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from medgan.data.loader import open_split
from medgan.distributed import World
from medgan.metrics import features, fidelity


def gaussian(n, mean, deviation, dims=8, seed=0):
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(seed)) * deviation + mean


def test_fid_of_gaussians_is_the_closed_form():
    a, b = gaussian(2000, 0.0, 1.0), gaussian(2000, 0.5, 2.0, seed=1)
    mean = [x.double().mean(0).numpy() for x in (a, b)]
    cov = [np.cov(x.double().numpy(), rowvar=False) for x in (a, b)]
    values, vectors = np.linalg.eigh(cov[0])
    half = vectors * np.sqrt(values) @ vectors.T
    root = np.sqrt(np.linalg.eigvalsh(half @ cov[1] @ half)).sum()  # trace of the root of cov[0] cov[1]
    expected = np.sum((mean[0] - mean[1]) ** 2) + np.trace(cov[0] + cov[1]) - 2 * root
    assert fidelity.fid(a, b) == pytest.approx(expected, rel=1e-6)
    assert fidelity.fid(a, b) == pytest.approx(8 * (0.25 + 1), rel=0.05)


def test_kid_is_torch_fidelitys_and_agrees_with_the_definition():
    a, b = gaussian(400, 0.0, 1.0), gaussian(400, 0.5, 1.0, seed=1)
    ours = fidelity.kid(a, b)
    theirs = kid_features_to_metric(a, b, kid_subsets=100, kid_subset_size=200, verbose=False, rng_seed=2020)
    assert ours["value"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)

    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    x, y = a.double(), b.double()
    off = 1 - torch.eye(400)
    unbiased = ((kernel(x, x) * off).sum() + (kernel(y, y) * off).sum()) / (400 * 399) - 2 * kernel(x, y).mean()
    assert ours["value"] == pytest.approx(float(unbiased), rel=0.1)
    assert ours["low"] < ours["value"] < ours["high"]


def test_equal_distributions_score_near_nothing_and_unequal_numbers_are_refused():
    a, b = gaussian(1000, 0.0, 1.0), gaussian(1000, 0.0, 1.0, seed=1)
    assert abs(fidelity.kid(a, b)["value"]) < 0.02
    assert fidelity.kid(a, gaussian(1000, 1.0, 1.0, seed=2))["value"] > 0.5
    with pytest.raises(ValueError, match="equal numbers"):
        fidelity.fidelity(a, b[:10])


def test_features_depend_on_their_own_image_alone_and_grey_equals_three_equal_channels():
    extractor = features.EfficientNetLite0()
    pixels = torch.randint(0, 256, (70, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = extractor(pixels)
    assert found.shape == (70, 1280)
    assert found.dtype == torch.float32
    assert torch.allclose(extractor(pixels[65:66]), found[65:66], atol=1e-4)
    assert torch.allclose(extractor(pixels[:2].expand(-1, 3, -1, -1)), found[:2], atol=1e-5)


def test_the_extractor_has_its_pretrained_weights():
    # Features of random weights hardly move with the image; pretrained ones tell a flat from a textured one.
    extractor = features.EfficientNetLite0()
    flat = torch.full((1, 1, 32, 32), 128, dtype=torch.uint8)
    noise = torch.randint(0, 256, (1, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert (extractor(flat) - extractor(noise)).norm() > 5


def test_noise_and_a_dropped_class_move_kid_away_from_the_floor(phantoms):
    extractor = features.EfficientNetLite0()
    split = open_split(phantoms, "train")
    pixels = torch.from_numpy(np.array(split.pixels))
    half = len(pixels) // 2
    a, b = pixels[:half], pixels[half : 2 * half]
    real = extractor(a)
    floor = fidelity.kid(real, extractor(b))["value"]
    noisy = (b.float() + 40 * torch.randn(b.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255).byte()
    assert fidelity.kid(real, extractor(noisy))["value"] > floor + 0.3
    normal = pixels[torch.from_numpy(split.labels[:, 0] == 1)]
    assert fidelity.kid(real[: len(normal)], extractor(normal)[: len(real)])["value"] > floor


def test_real_features_are_cached_by_data_split_and_number(phantoms):
    class Counting:
        identity = {"extractor": "counting"}  # noqa: RUF012
        calls = 0

        def __call__(self, pixels):
            self.calls += 1
            return pixels.flatten(1).float()

    extractor, split = Counting(), open_split(phantoms, "val")
    first = features.real_features(split, 10, extractor, World())
    again = features.real_features(split, 10, extractor, World())
    assert extractor.calls == 1
    assert torch.equal(first, again)
    assert features.real_features(split, 12, extractor, World()).shape[0] == 12
    assert extractor.calls == 2


def test_a_collapsed_generator_has_precision_without_recall_and_covers_nothing():
    real = gaussian(400, 0.0, 1.0)
    collapsed = gaussian(400, 0.0, 0.02, seed=1)
    figures = fidelity.neighbourhoods(real, collapsed)
    assert figures["precision"] > 0.95
    assert figures["recall"] < 0.05
    assert figures["coverage"] < 0.2
    good = fidelity.neighbourhoods(real, gaussian(400, 0.0, 1.0, seed=2))
    assert min(good["precision"], good["recall"], good["coverage"]) > 0.8
    assert good["density"] == pytest.approx(1, abs=0.15)
    far = fidelity.neighbourhoods(real, gaussian(400, 20.0, 1.0, seed=3))
    assert set(far.values()) == {0.0}


def test_density_and_coverage_by_their_definition():
    real, fake = gaussian(30, 0.0, 1.0), gaussian(20, 0.3, 1.0, seed=1)
    inside = np.zeros((30, 20), bool)
    for i in range(30):
        distances = sorted(float((real[i] - real[j]).norm()) for j in range(30) if j != i)
        inside[i] = [float((real[i] - other).norm()) < distances[4] for other in fake]  # the fifth nearest
    figures = fidelity.neighbourhoods(real, fake)
    assert figures["density"] == pytest.approx(inside.sum() / (5 * 20))
    assert figures["coverage"] == pytest.approx(inside.any(1).mean())


def test_kid_by_class_sees_a_class_that_is_wrong_and_leaves_out_one_that_is_too_rare():
    labels = torch.eye(3)[[0] * 100 + [1] * 100 + [2] * 10]
    real = gaussian(210, 0.0, 1.0)
    fake = gaussian(210, 0.0, 1.0, seed=1) + labels[:, 1:2]  # the second class is moved
    figures = fidelity.class_kid(real, labels, fake, labels, ("a", "b", "c"))
    assert set(figures) == {"a", "b"}
    assert abs(figures["a"]["value"]) < 0.1
    assert figures["b"]["value"] > 0.5
    assert figures["a"]["n"] == 100
