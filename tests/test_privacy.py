"""The audit finds leaks that were planted, and none where there are none."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from medgan.data import copies, phantom, shards
from medgan.data.loader import open_split
from medgan.data.shards import Manifest, read_manifest, write_shard
from medgan.metrics import privacy, retrain
from medgan.metrics.evidence import Question
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
    compared = [privacy.alike(part, data=data) for part in parts]
    found = privacy.audit(privacy.copied(*compared, data=data), *near, seed=0)
    return {**found, "claim": privacy.claim(found)}


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


@pytest.mark.heavy
def test_films_of_strangers_leak_nothing(data, strangers, monkeypatch):
    monkeypatch.setattr(privacy, "MOST", 200)
    found = audit(data, strangers, tuple(privacy.SPACES))
    assert found["copies"]["value"] == 0
    inside = found["membership"]
    assert inside["low"] < 0.5 < inside["high"]
    assert inside["control_low"] < 0.5 < inside["control_high"]
    for space in found["closeness"].values():
        assert space["value"] == pytest.approx(space["expected"], abs=0.12)
        assert space["p"] > 0.01
    assert found["patients"]["p"] > 0.01
    assert found["claim"]["verdict"] in ("no leak found", "cannot tell")


@pytest.mark.heavy
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
    assert 48 <= hits <= 59


def shadows(leak, count=8, films=400, seed=0, own=None):
    """An audited generator, and shadows of its recipe. leak: how much nearer films are when trained on; own: to the
    audited one's samples, if not as much."""
    random = np.random.default_rng(seed)
    hard = random.normal(3, 0.5, films)  # some films are far from everything, whoever trains on them

    def attacked(member, leak):
        near = -np.exp(hard + 0.1 * random.normal(size=films) - leak * member)
        return {"nearness": near, "member": member, "patients": np.arange(films)}

    made = [attacked(np.arange(films) < films // 2, leak if own is None else own)]
    for _ in range(count // 2):
        half = random.permutation(films) < films // 2
        made += [attacked(half, leak), attacked(~half, leak)]
    return made


def test_a_shadow_is_trained_on_its_half_of_the_patients_and_its_twin_on_the_other(monkeypatch, phantoms, tiny):
    shown = []

    def watch(config, split, rows, *_):
        shown.append((split, rows))
        return SimpleNamespace(ema=None), {}

    def blank(generator, config, labels, name):
        return np.zeros((len(labels), 1, 32, 32), np.uint8)

    monkeypatch.setattr(retrain, "fit", watch)
    monkeypatch.setattr(retrain, "draw", blank)
    of_samples = lambda ours, theirs: (np.full(len(ours), -float(len(theirs))), None)
    monkeypatch.setattr(privacy, "describer", lambda space: (lambda pixels: pixels, of_samples))
    data = {"location": phantoms}
    common = {"data": data, "config": tiny(total_images=64).dump(), "images": 64, "seed": 0, "drawn": 9}
    made = [privacy.shadow(**common, index=index) for index in range(4)]
    films = privacy.contested(data)
    patients, count = films["patients"], len(films["patients"])
    for one, (split, rows) in zip(made, shown, strict=True):
        assert np.array_equal(split.pixels, films["pixels"])
        assert np.array_equal(split.labels, films["labels"])
        assert np.array_equal(np.flatnonzero(one["member"]), rows)
        assert not set(patients[rows]) & set(np.delete(patients, rows))
        assert 0.4 < len(rows) / count < 0.6
        assert 0.3 < films["trained"][rows].mean() / films["trained"].mean() < 1.7  # of both sides
    assert np.array_equal(made[0]["member"], ~made[1]["member"])
    assert not np.array_equal(made[0]["member"], made[2]["member"])
    assert [one["nearness"].tolist() for one in made] == [[-9.0] * count] * 4  # of as many samples


@pytest.mark.heavy
def test_real_shadows_find_a_generator_that_blurs_what_it_saw(monkeypatch, phantoms, tiny):
    """Real features, and trainings that keep the films they are given: a generator that does so too leaks, one that
    keeps films of others does not."""
    monkeypatch.setattr(privacy, "SHADOW_FILMS", 80)
    data = {"location": phantoms}
    films = privacy.contested(data)

    def blurred(pixels):
        sharp = torch.from_numpy(pixels).float()
        return sharp.lerp(F.avg_pool2d(sharp, 3, 1, 1, count_include_pad=False), 0.4).round().byte().numpy()

    monkeypatch.setattr(retrain, "fit", lambda config, split, rows, *_: (SimpleNamespace(ema=split.pixels[rows]), {}))
    monkeypatch.setattr(retrain, "draw", lambda kept, config, labels, name: blurred(kept[: len(labels)]))
    common = {"data": data, "config": tiny(total_images=64).dump(), "images": 64, "seed": 0, "drawn": 200}
    made = [privacy.shadow(**common, index=index) for index in range(privacy.LEAST_SHADOWS)]
    contested = {one.tobytes() for one in films["pixels"]}
    others = np.stack([one for one in open_split(phantoms, "train").pixels if one.tobytes() not in contested][:40])
    for kept, leaks in ((films["pixels"][films["trained"]], True), (others, False)):
        audited = privacy.released({"pixels": blurred(kept)}, data=data, drawn=200)
        assert np.array_equal(audited["member"], films["trained"])
        found = privacy.likelihood_ratio(audited, *made, seed=0)
        assert found["low"] > 0.8  # of the shadows
        assert (found["released"]["auc"] > 0.9) == leaks
        assert (found["released"]["low"] > 0.5) == leaks


def test_what_is_contested_is_as_many_films_of_training_as_of_others(monkeypatch, phantoms):
    monkeypatch.setattr(privacy, "SHADOW_FILMS", 40)
    films = privacy.contested({"location": phantoms})
    trained = films["trained"]
    assert 20 <= trained.sum() < 30
    assert 20 <= (~trained).sum() < 30
    assert not set(films["patients"][trained]) & set(films["patients"][~trained])
    there = {split: {one.tobytes() for one in open_split(phantoms, split).pixels} for split in ("train", "val", "test")}
    for pixels, inside in zip(films["pixels"], trained, strict=True):
        assert (pixels.tobytes() in there["train"]) == inside
        assert (pixels.tobytes() in there["val"] | there["test"]) == (not inside)


def test_a_likelihood_ratio_sees_what_a_plain_distance_does_not():
    made = shadows(leak=0.2)
    found = privacy.likelihood_ratio(*made, seed=0)
    plain = np.mean([privacy.auc(one["nearness"][one["member"]], one["nearness"][~one["member"]]) for one in made])
    assert plain < 0.65
    for attack in (found, found["released"]):
        assert attack["low"] > 0.8
        assert attack["control_low"] < 0.5 < attack["control_high"]
        assert attack["tpr"] > 0.1
    assert (found["released"]["n"], found["released"]["n_held_out"]) == (200, 200)


def test_a_generator_that_keeps_what_its_recipe_would_leak_is_told_from_its_shadows():
    found = privacy.likelihood_ratio(*shadows(leak=0.2, own=0.0), seed=0)
    assert found["low"] > 0.8
    assert found["released"]["low"] < 0.5 < found["released"]["high"]
    assert said(shadows=found)["verdict"] == "cannot tell"
    told = said(shadows=privacy.likelihood_ratio(*shadows(leak=0.2), seed=0))
    assert told["verdict"] == "leaks"
    assert "who was trained on: membership AUC 0.9" in told["sentence"]


def test_a_shadow_that_diverged_is_left_out_with_its_pair_and_counted():
    made = shadows(leak=0.2, count=8)
    made[4] = {"failed": "loss/d is nan"}
    found = privacy.likelihood_ratio(*made, seed=0)
    assert (found["shadows"], found["failed"]) == (6, 2)
    assert found["low"] > 0.7
    told = said(shadows={**found, **SHADOWS})
    assert "by 6 shadow generators of its recipe (2 more are left out" in told["sentence"]
    made[1] = {"failed": "loss/d is nan"}
    found = privacy.likelihood_ratio(*made, seed=0)
    assert found == {"shadows": 4, "failed": 4, "auc": None}
    assert "are too few to tell" in said(shadows=found)["sentence"]


def test_shadows_that_are_nearer_to_all_films_than_others_do_not_disturb():
    random = np.random.default_rng(0)

    def apart(made):
        return [{**one, "nearness": one["nearness"] * np.exp(random.normal(0, 1))} for one in made]

    for leak, seed in ((0.0, 1), (0.2, 2)):
        found = privacy.likelihood_ratio(*apart(shadows(leak=leak, count=8, seed=seed)), seed=0)
        assert found["control"] == pytest.approx(0.5, abs=0.06)
        assert (found["low"] > 0.8) == (leak > 0)


def test_a_likelihood_ratio_finds_nothing_where_nothing_leaks():
    found = privacy.likelihood_ratio(*shadows(leak=0.0), seed=0)
    assert found["low"] < 0.5 < found["high"]
    assert found["tpr"] < 0.05
    assert found["released"]["low"] < 0.5 < found["released"]["high"]
    few = privacy.likelihood_ratio(*shadows(leak=0.0, count=privacy.LEAST_SHADOWS, films=4000), seed=0)
    assert few["auc"] == pytest.approx(0.5, abs=0.015)
    assert 0 <= found["tpr_low"] < found["tpr"] < found["tpr_high"] < 0.1


def test_who_is_exposed_by_chance_is_not_called_exposed_more_often_than_said():
    random, called = np.random.default_rng(0), 0
    for _ in range(100):
        near = {"member": random.normal(size=300), "member_patients": np.arange(300) // 2}
        near |= {"held": random.normal(size=80), "held_patients": np.arange(80) // 2}
        called += privacy.exposure(near, random)["p"] < 0.05
    assert called <= 12


def test_patients_of_training_keep_their_films_and_are_looked_at_through_as_many(monkeypatch):
    sizes = {"train": [4] * 400, "val": [4] * 20, "test": [4] * 20}
    films = {name: np.zeros((sum(counts), 1, 32, 32), np.uint8) for name, counts in sizes.items()}
    ids = {name: [f"{name}{i}" for i, c in enumerate(counts) for _ in range(c)] for name, counts in sizes.items()}
    manifest = type("Manifest", (), {"splits": sizes})
    monkeypatch.setattr(shards, "read_manifest", lambda location: (manifest, ""))
    monkeypatch.setattr(shards, "column", lambda location, name, what: ids[name])
    monkeypatch.setattr(
        privacy, "open_split", lambda location, name: SimpleNamespace(pixels=films[name], labels=films[name])
    )
    member, held = privacy.real_films({"location": ""}, 200)
    assert set(np.bincount(member["patients"])) == {0, 4}
    assert len(member["pixels"]) == 200
    assert len(held["pixels"]) == 160

    ours, theirs = privacy.equal_counts([1, 9, 5, 2], [3, 2, 1, 4, 6, 1, 1, 2])
    assert ours.tolist() == [1, 6, 3, 2]
    assert theirs.tolist() == [3, 2, 1, 4, 6, 1, 1, 2]
    random, called = np.random.default_rng(0), 0
    for _ in range(40):  # held-out patients have more films: by itself that makes them look nearer
        near = {"member": random.normal(size=300), "member_patients": np.arange(300) // 2}
        near |= {"held": random.normal(size=480), "held_patients": np.arange(480) // 6}
        found = privacy.exposure(near, random)
        called += found["p"] < 0.2
    assert 3 <= called <= 15


def test_which_samples_are_nearest_to_patients_of_training_is_no_finding_where_a_few_films_attract_all():
    # Half of all samples are nearest to one film: certain of samples, but not of films.
    patients = np.arange(40)
    near = {"member_patients": patients, "held_patients": patients[:10], "member": patients * 1.0}
    near |= {"held": patients[:10] * 1.0, "sample_patient": np.r_[np.zeros(500, int), np.arange(500) % 50 - 10]}
    near["sample_member"] = (near["sample_patient"] >= 0) * 1.0
    near["sample_held"] = 1 - near["sample_member"]
    found = privacy.closeness(near, np.random.default_rng(0))
    assert found["low"] > found["expected"]
    assert found["p"] > 0.1
    near["sample_patient"] = np.arange(1000) % 40
    near["sample_member"], near["sample_held"] = np.ones(1000), np.zeros(1000)
    assert privacy.closeness(near, np.random.default_rng(0))["p"] < 0.01


ATTACK = {"auc": 0.5, "low": 0.46, "high": 0.54, "control": 0.5, "control_low": 0.46, "control_high": 0.54}
INSIDE = {**ATTACK, "tpr": 0.01, "tpr_low": 0.0, "tpr_expected": 0.01, "patients": 300, "patients_held_out": 90}
SHADOWS = {**INSIDE, "released": INSIDE}


def said(copies=(0, 0), beyond=0, inside=None, close=0.5, **more):
    """The claim for an audit that found nothing but what is told. copies: of 2,000 samples, of 1,000 held-out films."""
    found = {"value": copies[0], "n": 2000, "held_out": copies[1], "n_held_out": 1000, "patients": 3, "beyond": beyond}
    near = {"value": 0.9, "expected": 0.8, "p": close}
    return privacy.claim(
        {
            "membership": {**INSIDE, "spaces": {"pixels": INSIDE, "aligned": {**INSIDE, **(inside or {})}}},
            "copies": found,
            "patients": {"value": 0.01, "expected": 0.01, "p": 0.5},
            "closeness": {"pixels": {**near, "p": 0.5}, "aligned": near},
            **more,
        }
    )


@pytest.mark.parametrize(
    ("copies", "beyond", "verdict"),
    [
        ((0, 0), 0, "no leak found"),
        ((1, 0), 1, "leaks"),
        ((5, 2), 5, "leaks"),  # as often as held-out films are, but as good as identical
        ((5, 2), 0, "no leak found"),
        ((30, 2), 0, "leaks"),
    ],
)
def test_copies_count_where_held_out_films_have_fewer_or_are_less_alike(copies, beyond, verdict):
    told = said(copies, beyond)
    assert told["verdict"] == verdict
    assert ("near-copies of films of" in told["sentence"]) == (verdict == "leaks")


@pytest.mark.parametrize(
    ("evidence", "verdict", "words"),
    [
        ({"inside": {"auc": 0.6, "low": 0.55, "high": 0.65}}, "leaks", "who was trained on"),
        ({"inside": {"auc": 0.6, "low": 0.55, "high": 0.65, "control_high": 0.7}}, "cannot tell", "differ as much"),
        ({"inside": {"auc": 0.4, "low": 0.35, "high": 0.45}}, "cannot tell", "held-out films are nearer"),
        ({"inside": {"auc": 0.6, "low": 0.55, "high": 0.65, "patients_held_out": 9}}, "cannot tell", "9 patients on a"),
        ({"inside": {"tpr": 0.08, "tpr_low": 0.04}}, "leaks", "8.0% of training films are found by aligned"),
        ({"close": 0.001}, "leaks", "90.0% of samples are nearest to a training film"),
        ({"shadows": {**SHADOWS, "auc": 0.7, "low": 0.65, "shadows": 8}}, "cannot tell", "by 8 shadow"),
        ({"shadows": {**SHADOWS, "tpr_low": 0.03, "shadows": 8}}, "cannot tell", "its recipe in shadow trainings"),
        ({"shadows": {**SHADOWS, "shadows": 8}}, "no leak found", "by 8 shadow generators"),
        (
            {"shadows": {**SHADOWS, "released": {**INSIDE, "auc": 0.6, "low": 0.55, "high": 0.65}, "shadows": 8}},
            "leaks",
            "who was trained on: membership AUC 0.60",
        ),
        (
            {"shadows": {**SHADOWS, "released": {**INSIDE, "tpr": 0.05, "tpr_low": 0.03}, "shadows": 8}},
            "leaks",
            "5.0% of training films are found by shadow generators where",
        ),
        (
            {"shadows": {**SHADOWS, "released": {**INSIDE, "low": 0.3, "high": 0.7}, "shadows": 8}},
            "cannot tell",
            "Too few films",
        ),
    ],
)
def test_no_evidence_for_a_leak_stands_above_no_leak_found(evidence, verdict, words):
    told = said(**evidence)
    assert told["verdict"] == verdict
    assert words in told["sentence"]


def test_a_copy_is_beyond_doubt_only_where_no_held_out_film_is_as_alike(monkeypatch):
    films = {"pixels": np.zeros((3, 1, 32, 32), np.uint8), "patients": np.arange(3)}
    monkeypatch.setattr(privacy, "real_films", lambda data: (films, films))
    drawn = {"likeness": np.array([[0.97], [0.985], [0.995], [0.5]]), "patients": np.array([[0], [1], [2], [0]])}
    for strangers, value, beyond in (([0.5, 0.6], 3, 3), ([0.5, 0.96], 3, 2), ([0.5, 0.99], 3, 1)):
        monkeypatch.setattr(privacy, "by_chance", lambda *_, held=strangers: (np.array(held), 0.95))
        found = privacy.copied(drawn, data={})
        assert (found["value"], found["beyond"]) == (value, beyond)


def test_all_rows_of_a_release_are_compared(data, train, tmp_path, monkeypatch):
    monkeypatch.setattr(privacy, "CHUNK", 16)
    pixels = RANDOM.integers(0, 256, (40, 1, 32, 32), np.uint8)
    pixels[39] = train[5]
    shard = write_shard(tmp_path, "train/00000.parquet", pixels, np.zeros((40, 0), np.uint8), (), {"seed": [0] * 40})
    manifest = Manifest("medgan", (), 32, 1, {"train": [shard]}, synthetic=True, counts={"train": {}})
    shards.write_file(tmp_path, "manifest.json", manifest.to_json().encode())
    subject = {"synthetic": str(tmp_path), "sha256": "0"}
    question = Question(subject=subject, data=data, classes=(), split="train", other="val", n=16, seed=0)
    copied = privacy.plan(question)["privacy"].needs[0]
    assert [cell.arguments["first"] for cell in copied.needs] == [0, 16, 32]
    found = privacy.copied(*(privacy.alike(**cell.arguments) for cell in copied.needs), data=data)
    assert (found["value"], found["n"]) == (1, 40)


def test_films_are_taken_into_memory_a_few_at_a_time(monkeypatch):
    pixels, sizes, real = RANDOM.integers(0, 256, (10, 3, 64, 64), np.uint8), [], copies.F.interpolate
    whole = privacy.look(pixels).thumbnails
    monkeypatch.setattr(
        copies.F, "interpolate", lambda images, *a, **k: (sizes.append(len(images)), real(images, *a, **k))[1]
    )
    monkeypatch.setattr(copies, "CHUNK", 4)
    assert np.array_equal(privacy.look(pixels).thumbnails, whole)
    assert sizes == [4, 4, 2]
    assert privacy.look(pixels[:0]).thumbnails.shape == (0, 32, 32)


def test_the_interval_of_a_share_is_wilsons():
    assert privacy.wilson(5, 100) == pytest.approx((0.0215, 0.1118), abs=1e-3)
