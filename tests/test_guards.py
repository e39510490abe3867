"""Alarms: raised once by what is alarming, and not by what is not."""

import numpy as np
import torch

from medgan.distributed import World
from medgan.guards import Guard, overfit
from medgan.metrics.fidelity import diversity
from medgan.state import TrainState

from .conftest import close


def test_a_collapse_is_said_once_and_again_after_it_was_over():
    guard = Guard()
    said = [set(guard.look({"metric/diversity": value})) for value in (0.02, 0.1, 0.8, 0.5, 0.3, 0.2, 0.7, 0.1)]
    assert said == [set(), set(), set(), set(), {"collapse"}, set(), set(), {"collapse"}]


def test_samples_that_never_were_unlike_are_alarming_once_the_generator_had_time_to_learn():
    guard = Guard()
    said = [set(guard.look({"metric/diversity": 0.15})) for _ in range(5)]
    assert said == [set(), set(), set(), {"collapse"}, set()]


def test_a_discriminator_that_knows_its_images_by_heart_is_said():
    guard = Guard()
    assert guard.look({"metric/overfit": 0.7}) == {}
    assert "augment.name=diffaugment" in guard.look({"metric/overfit": 0.8})["overfit"]
    assert guard.look({}) == {}


def test_diversity_is_of_variances():
    real = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    assert abs(diversity(real, real * 0.5 + 3) - 0.25) < 1e-6
    assert diversity(real, real[:1].expand(4000, -1)) == 0


def side(grey, count=10):  # 10 are two whole groups of four, and two that are left out
    return torch.full((count, 1, 32, 32), grey, dtype=torch.uint8), torch.zeros(count, 2)


def test_overfit_is_how_often_d_prefers_a_training_image(tiny, monkeypatch):
    """A D that answers with an image's mean, so that every judgement is known."""
    state, rows = TrainState.create(tiny(), World()), np.arange(10)
    monkeypatch.setattr(state.discriminator.module, "forward", lambda images, labels: images.mean((1, 2, 3)))
    for held_out, wanted in ((100, 1.0), (200, 0.5), (250, 0.0)):
        assert overfit(state, {"train": side(200), "val": side(held_out)}, rows, 10) == wanted
    train, val = side(200), side(199)
    val[0][0] = 255  # one of the 8 in whole groups, far above all: a mean would say that D prefers held-out ones
    assert overfit(state, {"train": train, "val": val}, rows, 10) == 7 / 8
    assert overfit(state, {"train": side(200, 3), "val": side(100, 3)}, rows[:3], 3) is None
    batch_norm = TrainState.create(tiny("dcgan", model__norm_d="batch", loss__r1_gamma=0.0), World())
    assert overfit(batch_norm, {}, rows, 10) is None


def test_what_is_judged_by_heart_is_augmented_as_in_training_on_any_number_of_ranks(tiny, monkeypatch):
    state, seen = TrainState.create(tiny(augment__name="ada", augment__p=0.7), World()), []

    def judge(images, labels):
        seen.append(images)
        return images.mean((1, 2, 3))

    monkeypatch.setattr(state.discriminator.module, "forward", judge)
    for rows in (np.arange(8), np.arange(4, 8)):
        overfit(state, {name: side(200, len(rows)) for name in ("train", "val")}, rows, 8)
    whole, part = seen[:2], seen[2:]
    assert all(close(one[4:], other, terms=64) for one, other in zip(whole, part, strict=True))
    assert len({image.mean().item() for images in whole for image in images}) > 10
