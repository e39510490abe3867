"""The audit finds leaks that were planted, and none where there are none."""

import numpy as np
import pytest
import torch
from PIL import Image

from medgan.data import phantom
from medgan.data.loader import open_split
from medgan.data.shards import read_manifest
from medgan.metrics import privacy
from medgan.pixels import fit_image

from .conftest import write_phantoms

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(privacy, "RESAMPLES", 200)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    location = str(write_phantoms(tmp_path_factory.mktemp("films") / "data", count=1000))
    return {"location": location, "sha256": read_manifest(location)[1]}


@pytest.fixture(scope="module")
def train(data):
    return np.array(open_split(data["location"], "train").pixels)


@pytest.fixture(scope="module")
def strangers():
    """Films of patients that nobody has trained on or holds out: uint8 (120, 1, 32, 32)."""
    films = [phantom.chest_film(7, patient, 0, patient % 2) for patient in range(120)]
    return np.stack([fit_image(Image.fromarray(film), 32, 1) for film in films])


def audit(data, pixels, spaces=("pixels", "aligned")):
    parts = [{"pixels": part} for part in np.array_split(pixels, 3)]
    near = [privacy.nearness(*parts, data=data, space=space) for space in spaces]
    return privacy.audit(privacy.copied(*parts, data=data), *near, seed=0)


def warped(films: np.ndarray) -> np.ndarray:
    """Shifted by up to half a pixel, of other brightness, with noise: what a copy by a network looks like."""
    turn = torch.eye(2, 3).repeat(len(films), 1, 1)
    turn[:, :, 2] = torch.from_numpy(RANDOM.uniform(-1 / 32, 1 / 32, (len(films), 2)))
    where = torch.nn.functional.affine_grid(turn, list(films.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(
        torch.from_numpy(films).float(), where, padding_mode="border", align_corners=False
    ).numpy()
    scale = RANDOM.uniform(0.9, 1.1, (len(films), 1, 1, 1))
    return np.clip(moved * scale + RANDOM.normal(0, 1, films.shape), 0, 255).astype(np.uint8)


def test_films_of_strangers_leak_nothing(data, strangers, monkeypatch):
    monkeypatch.setattr(privacy, "MOST", 300)
    found = audit(data, strangers, tuple(privacy.SPACES))
    assert found["copies"]["value"] == 0
    inside = found["membership"]
    assert inside["low"] < 0.5 < inside["high"]
    assert inside["control_low"] < 0.5 < inside["control_high"]
    for space in found["closeness"].values():
        assert space["value"] == pytest.approx(space["expected"], abs=0.12)
    assert found["patients"]["p"] > 0.01
    assert found["claim"]["verdict"] in ("no leak found", "cannot tell")


def test_five_films_pasted_among_the_samples_are_found(data, train, strangers):
    pasted = strangers.copy()
    copies = train[[0, 111, 222, 333, 444]]
    darker = np.clip(copies[3:] * 0.9 + RANDOM.normal(0, 1, copies[3:].shape), 0, 255).astype(np.uint8)
    pasted[[3, 50, 80]], pasted[[118, 119]] = copies[:3], darker
    found = audit(data, pasted)
    assert found["copies"]["value"] == 5
    assert found["copies"]["patients"] == 5
    assert found["copies"]["held_out"] == 0
    assert found["claim"]["verdict"] == "leaks"
    assert found["claim"]["sentence"].startswith("It leaks: 5 of 120 samples are near-copies of films of 5 training")


def test_a_generator_that_memorised_twenty_films_is_found(data, train):
    # A generator with twenty films for its weights: a latent chooses among them, softly.
    films = train[:: len(train) // 20][:20]
    codes = RANDOM.normal(size=(20, 16))
    choice = 6 * RANDOM.normal(size=(120, 16)) @ codes.T / 4
    share = np.exp(choice - choice.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    found = audit(data, warped(np.einsum("nk,kchw->nchw", share, films).astype(np.uint8)))
    assert found["copies"]["value"] > 60
    assert 10 <= found["copies"]["patients"] <= 20
    assert found["copies"]["most_of_one_patient"] > 3
    assert found["patients"]["value"] > found["patients"]["expected"]
    assert found["patients"]["p"] < 0.01
    assert found["claim"]["verdict"] == "leaks"
    assert all(space["low"] > space["expected"] for space in found["closeness"].values())


@pytest.mark.parametrize("space", ["pixels", "aligned"])
def test_a_generator_that_memorised_its_films_softly_gives_their_membership_away(data, space, monkeypatch):
    # Blurred beyond what counts as a copy: what is left is that many films are a little nearer than they should be.
    monkeypatch.setattr(privacy, "MOST", 100)
    member, _ = privacy.real_films(data, 100)
    soft = torch.nn.functional.avg_pool2d(torch.from_numpy(warped(member["pixels"])).float(), 3, 1, 1)
    near = privacy.nearness({"pixels": soft.byte().numpy()}, data=data, space=space)
    inside = privacy.membership(near, np.random.default_rng(0))
    assert inside["low"] > 0.6
    assert inside["auc"] > inside["control_high"]


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    random, hits = np.random.default_rng(0), 0
    for _ in range(60):  # patients of three films that are alike: what a bootstrap over films would take for more
        sides = []
        for shift in (0.5, 0.0):
            patients = np.repeat(np.arange(60), 3)
            sides.append((random.normal(size=60)[patients] + 0.1 * random.normal(size=180) + shift, patients))
        _, low, high = privacy.interval(privacy.auc, sides[0], sides[1], random, 0.9)
        hits += low < 0.637 < high  # Phi(0.5 / sqrt(2 * 1.01))
    assert 45 <= hits <= 60


def shadows(leak, count=8, films=400, seed=0):
    random = np.random.default_rng(seed)
    hard = random.normal(3, 0.5, films)  # some films are far from everything, whoever trains on them
    made = []
    for _ in range(count // 2):
        half = random.permutation(films) < films // 2
        for member in (half, ~half):
            near = -np.exp(hard + 0.1 * random.normal(size=films) - leak * member)
            made.append({"nearness": near, "member": member, "patients": np.arange(films)})
    return made


def test_a_likelihood_ratio_sees_what_a_plain_distance_does_not():
    made = shadows(leak=0.2)
    found = privacy.likelihood_ratio(*made, seed=0)
    plain = np.mean([privacy.auc(one["nearness"][one["member"]], one["nearness"][~one["member"]]) for one in made])
    assert plain < 0.65
    assert found["low"] > 0.8
    assert found["control_low"] < 0.5 < found["control_high"]
    assert found["tpr"] > 0.1


def test_a_likelihood_ratio_finds_nothing_where_nothing_leaks():
    found = privacy.likelihood_ratio(*shadows(leak=0.0), seed=0)
    assert found["low"] < 0.5 < found["high"]
    assert found["tpr"] < 0.05
    few = privacy.likelihood_ratio(*shadows(leak=0.0, count=4, films=4000), seed=0)
    assert few["auc"] == pytest.approx(0.5, abs=0.015)  # also where each film is known from one shadow on each side


def test_who_is_exposed_by_chance_is_not_called_exposed_more_often_than_said():
    random, called = np.random.default_rng(0), 0
    for _ in range(100):
        near = {"member": random.normal(size=300), "member_patients": np.arange(300) // 2}
        near |= {"held": random.normal(size=80), "held_patients": np.arange(80) // 2}
        called += privacy.exposure(near, random)["p"] < 0.05
    assert called <= 12


@pytest.mark.parametrize(
    ("found", "held_out", "verdict"),
    [(0, 0, "no leak found"), (1, 0, "leaks"), (1, 1, "no leak found"), (9, 1, "leaks")],
)
def test_copies_count_where_held_out_films_have_fewer(found, held_out, verdict):
    inside = {"auc": 0.5, "low": 0.46, "high": 0.54, "control": 0.5, "control_low": 0.46, "control_high": 0.54}
    copied = {"value": found, "n": 1000, "held_out": held_out, "n_held_out": 1000, "patients": found}
    patients = {"value": 0.01, "expected": 0.01, "p": 0.5}
    said = privacy.claim({"membership": inside, "copies": copied, "patients": patients})
    assert said["verdict"] == verdict
    assert ("near-copies of films of" in said["sentence"]) == (verdict == "leaks")


def test_the_interval_of_a_share_is_wilsons():
    assert privacy.wilson(5, 100) == pytest.approx((0.0215, 0.1118), abs=1e-3)
