"""Augmentation against what it should do to one image, and ADA's controller against a simulated D."""

import math

import pytest
import torch

from medgan.augment import DRAWS, Strength, augment
from medgan.config import KINDS, Augment, ConfigError, load
from medgan.data.loader import Batch
from medgan.distributed import World
from medgan.state import TrainState
from medgan.step import SCALARS, train_step

MIDDLE = 0.5
"""A draw of which the normal number is 0."""


def draws(count=1, **of):
    """Draws that change nothing where they act, but those named: kind=(draw, ...)."""
    found = torch.full((count, len(KINDS), DRAWS), MIDDLE)
    found[:, :, 0] = 0.0
    for kind, values in of.items():
        found[:, KINDS.index(kind), 1 : 1 + len(values)] = torch.tensor(values)
    return found


def images(count=1, channels=1, side=16):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9


def test_without_strength_or_with_draws_above_it_nothing_changes():
    film, random = images(8), torch.rand(8, len(KINDS), DRAWS, generator=torch.Generator().manual_seed(1))
    assert augment(film, random, 0.0, KINDS) is film
    assert augment(film, random, 1.0, ()) is film
    random[:, :, 0] = 0.6
    grey = [kind for kind in KINDS if kind not in ("saturation", "hue")]
    assert torch.allclose(augment(film, random, 0.6, grey), film, atol=1e-5)
    assert not torch.allclose(augment(film, random, 0.7, grey), film, atol=0.1)


def test_each_transformation_does_what_it_says():
    film = images(channels=3)
    assert torch.allclose(augment(film, draws(flip=(0.4,)), 1.0, ["flip"]), film.flip(3), atol=1e-5)
    assert torch.allclose(augment(film, draws(flip=(0.6,)), 1.0, ["flip"]), film, atol=1e-5)
    right = augment(film, draws(shift=(0.99, 0.5)), 1.0, ["shift"], "zeros")
    assert torch.allclose(right[..., 2:], film[..., :-2], atol=1e-5)
    assert right[..., :2].abs().max() < 1e-5
    assert torch.allclose(augment(film, draws(brightness=(0.8413447,)), 1.0, ["brightness"]), film + 0.2, atol=1e-4)
    doubled = augment(film, draws(contrast=(0.97724986,)), 1.0, ["contrast"])
    assert torch.allclose(doubled, film * 2, atol=1e-3)
    turned = augment(film, draws(hue=(5 / 6,)), 1.0, ["hue"])  # by 120 degrees: the channels change places
    assert min((turned - film.roll(step, 1)).abs().max() for step in (1, 2)) < 1e-4
    grey = (film * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    vivid = augment(film, draws(saturation=(0.8413447,)), 1.0, ["saturation"])
    assert torch.allclose(vivid, grey + (film - grey) * 2, atol=1e-3)
    hole = augment(torch.ones(1, 1, 16, 16), draws(cutout=(0.5, 0.5)), 1.0, ["cutout"])
    assert hole.eq(0).sum() == 64
    assert hole[0, 0, 4:12, 4:12].eq(0).all()


TEN = math.radians(10)


@pytest.mark.parametrize(
    ("kind", "draw", "place"),
    [
        ("scale", 0.8413447, lambda x, y: (x / 2**0.2, y / 2**0.2)),  # a draw one deviation up
        ("stretch", 0.8413447, lambda x, y: (x / 2**0.2, y * 2**0.2)),
        ("rotate", 1.0, lambda x, y: (x * math.cos(TEN) + y * math.sin(TEN), y * math.cos(TEN) - x * math.sin(TEN))),
    ],
)
def test_places_move_as_far_as_they_should(kind, draw, place):
    """Two images that are their own coordinates, across and down: what lies at (x, y) afterwards."""
    at = (torch.arange(64) + 0.5) / 32 - 1
    coordinates = torch.stack([at.expand(64, -1), at[:, None].expand(-1, 64)])[:, None]
    moved = augment(coordinates, draws(2, **{kind: (draw,)}), 1.0, [kind])
    for column, row in ((40, 48), (20, 30)):
        assert moved[:, 0, row, column].tolist() == pytest.approx(place(float(at[column]), float(at[row])), abs=1e-3)


def test_an_image_does_not_depend_on_its_neighbours():
    film, random = images(6), torch.rand(6, len(KINDS), DRAWS, generator=torch.Generator().manual_seed(2))
    kinds = [kind for kind in KINDS if kind not in ("saturation", "hue")]
    together = augment(film, random, 0.7, kinds)
    alone = torch.cat([augment(film[i : i + 1], random[i : i + 1], 0.7, kinds) for i in range(6)])
    assert torch.allclose(together, alone, atol=1e-6)


def test_its_gradient_is_right():
    film = images(2, channels=3, side=8).double().requires_grad_()
    random = torch.rand(2, len(KINDS), DRAWS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    random[:, KINDS.index("scale"), 1:] = 0.57
    assert torch.autograd.gradcheck(lambda x: augment(x, random, 0.9, KINDS), film)


def test_the_controller_finds_the_strength_at_which_d_stops_overfitting():
    config, strength = Augment(name="ada", kimg=10.0, target=0.6), Strength()

    def sign(p):  # a D whose overfitting falls with the strength, through the target at 0.35
        return 0.95 - p

    for _ in range(2000):
        strength.follow(sign(strength.p), config, 32)
    assert strength.p == pytest.approx(0.35, abs=0.02)
    for _ in range(3):  # up by at most images / kimg
        before = strength.p
        strength.follow(1.0, config, 32)
        assert strength.p == before
    strength.follow(1.0, config, 32)
    assert strength.p - before == pytest.approx(4 * 32 / 10_000)
    for _ in range(2000):
        strength.follow(1.0, config, 32)
    assert strength.p == config.p_max
    for _ in range(2000):
        strength.follow(-1.0, config, 32)
    assert strength.p == 0


def test_strengths_follow_the_images():
    assert Strength(0.3).of(Augment(name="ada"), 10**9) == 0.3
    assert Strength().of(Augment(name="diffaugment"), 0) == 1
    ramp = Augment(name="ramp", p=0.4, kimg=100)
    assert [Strength().of(ramp, images) for images in (0, 50_000, 10**6)] == [0, 0.2, 0.4]


@pytest.mark.parametrize(
    ("channels", "mirror", "wanted"),
    [
        (1, False, {"shift", "scale", "rotate", "stretch", "brightness", "contrast"}),
        (1, True, {"flip", "shift", "scale", "rotate", "stretch", "brightness", "contrast"}),
        (3, True, set(KINDS) - {"cutout"}),
    ],
)
def test_only_what_respects_the_images(channels, mirror, wanted):
    data = {"data.channels": channels, "data.mirror": mirror, "augment.name": "ada"}
    assert set(load(overrides=data).augmentations) == wanted
    assert "flip" in load(overrides={**data, "augment.mirror": True}).augmentations
    if not mirror:
        with pytest.raises(ConfigError, match=r"augment\.kinds=flip: .*augment\.mirror=true"):
            load(overrides={**data, "augment.kinds": ["flip"]})
    if channels == 1:
        with pytest.raises(ConfigError, match=r"augment\.kinds=hue: DATA is grey"):
            load(overrides={**data, "augment.kinds": ["hue"]})


def test_ada_grows_stronger_where_d_is_always_right_and_survives_a_checkpoint(tiny):
    config = tiny(augment__name="ada", augment__kimg=1.0, optim__lr_d=1e-2, optim__lr_g=1e-6)
    state = TrainState.create(config, World())
    random = torch.Generator().manual_seed(0)
    for _ in range(40):
        pixels = torch.randint(0, 64, (config.global_batch, 1, 32, 32), dtype=torch.uint8, generator=random)
        labels = torch.eye(2)[torch.randint(0, 2, (config.global_batch,), generator=random)]
        scalars = train_step(state, Batch(pixels, labels, None))
    assert scalars[SCALARS.index("logits/sign")] == 1
    changes = state.strength.p / (4 * config.global_batch / 1000)
    assert 0 < round(changes) <= 40 / 4
    assert math.isclose(changes, round(changes), abs_tol=1e-9)
    again = TrainState.create(config, World())
    again.load(state.save())
    assert again.strength == state.strength
