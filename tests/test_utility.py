"""Whether synthetic images help: scores by their definitions, and intervals that say what they cover."""

import numpy as np
import pytest
import torch

from medgan.config import Refused
from medgan.data import shards
from medgan.data.loader import open_split
from medgan.loop import Diverged
from medgan.metrics import classifiers, retrain, utility
from medgan.metrics.classifiers import SCORES, Images
from medgan.metrics.evidence import Question

RANDOM = np.random.default_rng(0)


def test_auc_is_the_chance_that_a_positive_scores_higher():
    positive, negative = RANDOM.integers(0, 9, 40), RANDOM.integers(0, 7, 30)
    pairs = [(p > n) + (p == n) / 2 for p in positive for n in negative]
    assert classifiers.auc(positive, negative) == pytest.approx(np.mean(pairs))


def test_a_rate_is_read_where_at_most_so_many_others_are_accused():
    negative = np.arange(100)
    assert classifiers.rate_at(np.array([98, 99.5, 120]), negative, 0.01) == pytest.approx(2 / 3)
    assert classifiers.rate_at(np.array([50, 97.5]), negative, 0.0) == 0
    assert classifiers.rate_at(np.array([89.5]), negative, 1 - classifiers.SPECIFICITY) == 1  # ten of a hundred


def test_scores_of_one_class_per_image_by_their_definitions():
    labels = np.eye(3, dtype=np.uint8)[[0, 0, 0, 0, 1, 1, 2, 2]]
    said = [0, 0, 0, 1, 1, 1, 0, 2]
    answers = np.full((8, 3), 0.1)
    answers[np.arange(8), said] = 0.8
    found = classifiers.scores(answers, labels, 2, single=True)
    assert found["balanced_accuracy"] == pytest.approx((3 / 4 + 2 / 2 + 1 / 2) / 3)
    f1 = [2 * 3 / (4 + 4), 2 * 2 / (3 + 2), 2 * 1 / (1 + 2)]
    assert found["macro_f1"] == pytest.approx(np.mean(f1))
    assert found["calibration_error"] == pytest.approx(abs(0.8 - 6 / 8))
    assert found["rare_sensitivity"] == 0.5
    assert tuple(found) == tuple(SCORES)


def test_scores_of_several_findings_per_image_leave_out_what_is_not_there():
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]], np.uint8)
    answers = np.array([[0.9, 0.2, 0.1], [0.8, 0.4, 0.1], [0.6, 0.1, 0.1], [0.2, 0.9, 0.1]])
    found = classifiers.scores(answers, labels, 2, single=False)
    assert found["auc"] == 1
    assert found["balanced_accuracy"] == pytest.approx(np.mean([1, 0.5, 0.5, 1]))
    assert np.isnan(found["rare_sensitivity"])
    assert not classifiers.exclusive(labels)


def test_of_a_single_class_what_is_recognised_is_told_and_nothing_else():
    answers = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]])
    found = classifiers.scores(answers, np.eye(2, dtype=np.uint8)[[0, 0, 0, 0]], 1, single=True)
    assert found["balanced_accuracy"] == 0.75
    assert np.isnan([found[name] for name in ("auc", "macro_f1", "rare_sensitivity")]).all()


@pytest.mark.parametrize("network", classifiers.NETWORKS)
@pytest.mark.parametrize("resolution", [32, 128])
def test_every_network_takes_every_resolution_and_number_of_channels(network, resolution):
    model = classifiers.NETWORKS[network](3, resolution, 5).eval()
    assert model(torch.zeros(2, 3, resolution, resolution)).shape == (2, 5)


def test_a_classifier_learns_films_and_the_same_seed_makes_the_same_one(phantoms):
    train, test = (open_split(phantoms, name) for name in ("train", "test"))
    images = Images(train.pixels, train.labels)
    answers = []
    for _ in range(2):
        model = classifiers.train(images, "small-cnn", 3, single=True, steps=60, augment=True)
        answers.append(classifiers.predict(model, test.pixels, single=True))
    assert np.array_equal(answers[0], answers[1])
    assert classifiers.scores(answers[0], test.labels, 0, single=True)["auc"] > 0.9


def test_oversampling_shows_rare_images_as_often_as_it_is_told():
    pixels = np.zeros((100, 1, 32, 32), np.uint8)
    pixels[90:] = 255  # the rare ones are white
    labels = np.eye(2, dtype=np.uint8)[[0] * 90 + [1] * 10]
    shown = []

    class Watching(torch.nn.Linear):
        def forward(self, inputs):
            shown.append((inputs > 0).float().mean())
            return super().forward(inputs.flatten(1))

    for weights, share in ((None, 0.1), (np.where(labels[:, 1], 9.0, 1.0), 0.5)):
        shown.clear()
        classifiers.train(
            Images(pixels, labels), "x", 0, single=True, steps=50, weights=weights, begin=Watching(32 * 32, 2)
        )
        assert float(torch.stack(shown).mean()) == pytest.approx(share, abs=0.02)


def test_augmentation_moves_a_film_a_little_and_does_not_mirror_it():
    film = torch.full((200, 1, 32, 32), -0.5)
    film[:, :, 8:12, 4:8] = 0.5  # a mark, left of the middle and above
    changed = classifiers.augmented(film, torch.Generator().manual_seed(0))
    assert changed.shape == film.shape
    assert float((changed - film).abs().mean()) > 0.02
    bright = (changed > 0.1).float()
    at = torch.arange(32.0)
    left = (bright.sum((1, 2)) * at).sum(1) / bright.sum((1, 2, 3))
    assert left.max() < 14  # never on the other side
    mirrored = classifiers.augmented(film, torch.Generator().manual_seed(0), mirror=True)
    bright = (mirrored > 0.1).float()
    left = (bright.sum((1, 2)) * at).sum(1) / bright.sum((1, 2, 3))
    assert 0.35 < float((left > 16).float().mean()) < 0.65
    kept = left < 16
    assert torch.equal(mirrored[kept], changed[kept])


def answers_of(labels, skill, random):
    """Probabilities of two classes, the better the higher the skill, with a part that each training has of its own."""
    z = skill * (labels[:, 1] * 2.0 - 1) + random.normal(size=len(labels))
    p = 1 / (1 + np.exp(-z))
    return np.stack([1 - p, p], 1)


def gained(gain, seed, draws=5, seeds=2):
    random = np.random.default_rng(seed)
    labels = np.eye(2, dtype=np.uint8)[(random.random(300) < 0.3).astype(int)]
    ours, theirs = {}, {}
    for draw in range(draws):
        skill = 0.8 + 0.1 * random.normal()  # some draws of patients are luckier
        theirs[draw] = [answers_of(labels, skill, random) for _ in range(seeds)]
        ours[draw] = [answers_of(labels, skill + gain, random) for _ in range(seeds)]
    return utility.difference(ours, theirs, labels, np.arange(300), 1, random, single=True)


@pytest.mark.heavy
def test_a_gain_that_is_there_is_seen_and_one_that_is_not_is_not_claimed(monkeypatch):
    monkeypatch.setattr(utility, "RESAMPLES", 20)
    found = gained(0.6, seed=0)["macro_f1"]
    assert utility.verdict(found["low"], found["high"]) == "helps"
    assert found["draws"] == 5
    lost = gained(-0.6, seed=0)["macro_f1"]
    assert utility.verdict(lost["low"], lost["high"]) == "harms"
    covered = [gained(0.0, seed=seed, seeds=1)["auc"] for seed in range(12)]
    assert sum(one["low"] < 0 < one["high"] for one in covered) >= 10


def test_an_interval_holds_the_test_patients_too(monkeypatch):
    # Every draw says the same, but of few patients with many images each: that is no certainty.
    monkeypatch.setattr(utility, "RESAMPLES", 100)
    random = np.random.default_rng(0)
    patients = np.repeat(np.arange(20), 10)
    of_patients = np.eye(2, dtype=np.uint8)[np.arange(20) % 2]
    labels = of_patients[patients]
    better, worse = (answers_of(of_patients, skill, random)[patients] for skill in (1.0, 0.7))
    same = [{draw: [answers] for draw in range(5)} for answers in (better, worse)]
    found = utility.difference(*same, labels, patients, 1, random, single=True)["auc"]
    alone = utility.difference(*same, labels, np.arange(200), 1, random, single=True)["auc"]
    assert alone["high"] - alone["low"] > 0.02
    assert found["high"] - found["low"] > 1.5 * (alone["high"] - alone["low"])  # ten images tell as much as one


def test_one_draw_has_no_interval_and_says_nothing(monkeypatch):
    monkeypatch.setattr(utility, "RESAMPLES", 5)
    found = gained(0.6, seed=0, draws=1)["macro_f1"]
    assert (found["low"], found["high"]) == (None, None)
    assert utility.verdict(found["low"], found["high"]) == "cannot tell"


@pytest.mark.parametrize(
    ("low", "high", "what"),
    [(0.01, 0.1, "helps"), (-0.1, -0.01, "harms"), (-0.1, 0.01, "does not help"), (-0.1, 0.1, "cannot tell")],
)
def test_a_verdict_follows_from_the_interval(low, high, what):
    assert utility.verdict(low, high) == what
    difference = {"arm": utility.CANDIDATE, "against": utility.BASELINE, "scenario": "5%", "network": "small-cnn"}
    difference |= {"value": (low + high) / 2, "low": low, "high": high, "draws": 5}
    claim = utility.claim([{**difference, "score": name} for name in SCORES], {"strict": True})
    assert claim["verdict"] == what
    assert {"helps": "images help ", "harms": "harm", "does not help": "do not help"}.get(what, "cannot be told") in (
        claim["sentence"]
    )


def differences(*scenarios, network="small-cnn"):
    """As `compare` makes them, of which every scenario has another value."""
    return [
        {"arm": arm, "against": utility.BASELINE, "scenario": scenario, "network": network, "score": score}
        | {"value": 0.1 * (index + 1), "low": 0.05, "high": 0.5, "draws": 5}
        for arm in ("synthetic", utility.CANDIDATE)
        for index, scenario in enumerate(scenarios)
        for score in SCORES
    ]


def test_the_claim_is_of_one_scenario_and_network_however_many_were_asked():
    full = utility.FULL.scenarios
    asked = [*differences(*full, network="resnet18"), *differences(*full)]
    claim = utility.claim(asked, {"strict": True})
    assert (claim["scenario"], claim["network"]) == (utility.SCENARIO, utility.NETWORK)
    assert claim["auc"]["value"] == claim["value"]
    assert "With 5 % of the training patients" in claim["sentence"]
    assert "macro F1 +0.200 [+0.050, +0.500], AUC +0.200 [+0.050, +0.500], over 5 draws of" in claim["sentence"]
    other = utility.claim(differences("20%", "30%", network="resnet18"), {"strict": True})
    assert (other["scenario"], other["network"]) == ("20%", "resnet18")


def test_the_sentence_says_what_its_interval_does_not_cover():
    def sentence(scenario, **settings):
        return utility.claim(differences(scenario), {"strict": True, **settings})["sentence"]

    assert "over 5 repeats with the same patients" in sentence("100%")
    assert "With 5 % of the rarest class's training patients" in sentence("rare 5%")
    assert "over 5 draws of those patients beside the same others" in sentence("rare 5%")
    for told in (sentence("5%", strict=False), sentence("5%", unlabelled=9)):
        assert "the interval does not cover" in told
    assert sentence("5%").endswith("over 5 draws of patients, generator trained on those patients alone.")


LABELS = np.eye(3, dtype=np.uint8)[[0] * 60 + [1] * 30 + [2] * 10]


def test_synthetic_images_have_the_classes_of_the_draw_or_fill_up_the_rarer_ones():
    alike, filling = utility.pool_labels(LABELS, 2, 0, 0, 0)
    assert alike.sum(0).tolist() == [120, 60, 20]
    assert alike[: len(LABELS)].sum(0).tolist() == [60, 30, 10]  # what an arm takes first is as frequent
    assert filling.sum(0).tolist() == [0, 30, 50]
    several = np.array([[1, 0]] * 5 + [[1, 1]] * 2 + [[0, 0]] * 90, np.uint8)
    alike, filling = utility.pool_labels(several, 2, 0, 0, 0)
    assert alike.sum(0).tolist() == [14, 4]
    assert 170 < len(filling) <= 171  # lacking: 83 and 88
    assert filling.any(1).all()
    alike, filling = utility.pool_labels(LABELS, 2, 450, 0, 0)
    assert alike.sum(0).tolist() == [300, 150, 50]
    assert filling.sum(0).tolist() == [0, 30, 50]


def test_a_release_serves_the_classes_of_the_draw_as_far_as_it_has_them():
    random = np.random.default_rng(0)
    there = np.eye(3, dtype=np.uint8)[[0] * 50 + [1] * 50 + [2] * 5]
    rows = utility.release_rows(there, LABELS, random, alike=True)
    assert there[rows].sum(0).tolist() == [30, 15, 5]
    assert len(np.unique(rows)) == len(rows)
    assert there[utility.release_rows(there, LABELS, random, alike=False)].sum(0).tolist() == [50, 30, 5]
    assert len(utility.release_rows(there[:60], LABELS, random, alike=True)) == 0


def test_every_arm_learns_from_the_images_it_is_named_for(monkeypatch, phantoms):
    learnt = {}

    def watch(images, network, seed, *, augment=False, weights=None, begin=None, **_):
        share = np.ones(len(images)) if weights is None else weights
        films = int(images.pixels.any((1, 2, 3)).sum())  # generated ones are black here
        shown = (films, len(images) - films, augment, (share @ images.labels / share.sum()).round(3))
        learnt.setdefault("shown", []).append(shown)
        learnt["first"] = share[: len(kept)].sum() / share.sum()
        learnt["of_rare"] = share[: len(kept)] @ images.labels[: len(kept), 1] / (share @ images.labels[:, 1])
        return torch.nn.Identity()

    train = open_split(phantoms, "train")
    monkeypatch.setattr(classifiers, "train", watch)
    monkeypatch.setattr(classifiers, "predict", lambda model, pixels, single: np.eye(2)[np.arange(len(pixels)) % 2])
    rows = utility.drawn_rows(train.labels, np.arange(len(train)), "20%", 0, 0)
    kept = np.append(rows[train.labels[rows, 0] > 0], rows[train.labels[rows, 1] > 0][:10])  # uneven
    monkeypatch.setattr(utility, "_train_rows", lambda *_: (train, kept))
    alike, filling = utility.pool_labels(train.labels[kept], 2, 5 * len(kept), 0, 0)
    labels = np.concatenate([alike, filling])
    pool = {"pixels": np.zeros((len(labels), *train.pixels.shape[1:]), np.uint8), "labels": labels, "alike": len(alike)}
    common = {"data": {"location": phantoms}, "scenario": "20%", "draw": 0, "seed": 0}
    prior, seen = train.labels[kept].mean(0).round(3).tolist(), []
    assert prior != [0.5, 0.5]
    answers = np.eye(2)[np.arange(len(alike)) % 2]
    surest = utility.surest(Images(pool["pixels"][: len(alike)], alike), answers)
    real, even = len(kept), [0.5, 0.5]
    for arm, films, made, augmented, shares in (
        ("real", real, 0, False, prior),
        (utility.BASELINE, real, 0, True, prior),
        ("real+oversampled", real, 0, False, even),
        ("real+classical+oversampled", real, 0, True, even),
        ("synthetic", 0, 2 * real, False, prior),
        ("real+synthetic 0.5x", real, round(0.5 * real), False, None),  # the first of a shuffled lot
        ("real+synthetic 1x", real, real, False, prior),
        ("real+synthetic 2x", real, 2 * real, False, prior),
        (utility.CANDIDATE, real, real, True, prior),
        ("real+classical+many", real, 5 * real, True, prior),
        ("real+classical+confident", real, 0, True, prior),  # who says which are sure; then those
        ("real+classical+balanced", real, len(filling), True, even),
        ("real+classical+evened", real, len(labels), True, even),
        ("pretrained+classical", 0, 5 * real, True, prior),  # then the real ones
    ):
        learnt.clear()
        utility.classify(pool, **common, arm=arm, network="small-cnn", classifier=0, steps=1)
        assert learnt["shown"][0][:3] == (films, made, augmented), arm
        assert shares is None or learnt["shown"][0][3].tolist() == pytest.approx(shares, abs=2e-3)
        seen = [*seen, arm]
        if arm in ("real+classical+many", "real+classical+confident", "real+classical+evened"):
            assert learnt["first"] == pytest.approx(0.5)
        if arm == "real+classical+evened":
            assert learnt["of_rare"] == pytest.approx(0.5)
        if arm == "pretrained+classical":
            assert learnt["shown"][1][:3] == (real, 0, True)
        if arm == "real+classical+confident":
            assert learnt["shown"][1][:3] == (real, len(surest), True)
    assert set(seen) == set(utility.ARMS)
    with pytest.raises(Refused, match="the release lacks a class of --data"):
        utility.classify(
            {**pool, "alike": 0}, **common, arm=utility.CANDIDATE, network="small-cnn", classifier=0, steps=1
        )


def test_a_strict_generator_sees_the_patients_of_its_draw_and_no_others(monkeypatch, phantoms, tiny):
    shown = []

    def watch(config, split, rows, *_):
        shown.append(rows)
        raise Diverged("enough")

    monkeypatch.setattr(retrain, "fit", watch)
    data, which = {"location": phantoms}, {"scenario": "20%", "draw": 1, "seed": 0}
    utility.strict_pool(data=data, **which, amount=2, least=9, config=tiny(total_images=64).dump(), images=64)
    train, mine = utility._train_rows(data, **which)
    assert np.array_equal(shown[0], mine)
    patients = np.array(shards.column(phantoms, "train", "patient"))
    others = np.delete(patients, mine)
    assert not set(patients[mine]) & set(others)
    assert 0.1 < len(mine) / len(train) < 0.3


def test_a_draw_whose_generator_diverged_is_left_out_and_counted(monkeypatch, phantoms, tiny):
    def diverge(*_):
        raise Diverged("loss/d is nan at 64 images")

    monkeypatch.setattr(retrain, "fit", diverge)
    data, which = {"location": phantoms}, {"scenario": "20%", "draw": 1, "seed": 0}
    config = tiny(total_images=64).dump()
    pool = utility.strict_pool(data=data, **which, amount=2, least=9, config=config, images=64)
    assert pool == {"failed": "loss/d is nan at 64 images"}
    assert retrain.unlabelled(data=data, config=config, images=64, seed=0) == pool
    assert utility.strict_pool(pool, data=data, **which, amount=2, least=9, config=config, images=64) == pool
    how = {"network": "small-cnn", "classifier": 0, "steps": 1}
    lost = utility.classify(pool, data=data, **which, arm=utility.CANDIDATE, **how)
    answers = np.eye(2)[open_split(phantoms, "test").labels[:, 1]]

    def there(arm, draw):
        return {"row": {"arm": arm, "scenario": "20%", "network": "small-cnn", "draw": draw}, "answers": answers}

    baseline = [there(utility.BASELINE, draw) for draw in range(3)]
    kept = [there(utility.CANDIDATE, draw) for draw in (0, 2)]
    asked = {"data": data, "settings": {"strict": True}, "seed": 0}
    found = utility.compare(*baseline, kept[0], lost, kept[1], **asked)
    assert found["failed"] == [{"scenario": "20%", "draw": 1, "why": "loss/d is nan at 64 images"}]
    assert len(found["cells"]) == 5
    assert "over 2 draws of patients (1 more are left out, their generators diverged)" in found["claim"]["sentence"]
    alone = utility.compare(*baseline, lost, **asked)
    assert alone["differences"] == []
    assert "the trainings of 1 generators diverged" in alone["claim"]["sentence"]


def test_how_the_classes_of_a_draw_are_read_stands_beside_what_it_gained(monkeypatch, phantoms):
    labels = np.eye(2, dtype=np.uint8)[[0] * 4 + [1] * 6]
    pool = {"pixels": np.zeros((10, 1, 32, 32), np.uint8), "labels": labels}
    truth = open_split(phantoms, "test").labels
    half = truth.copy()
    half[np.flatnonzero(truth[:, 0])[::2]] = [0, 1]  # every second NORMAL read as PNEUMONIA
    answers = {10: np.eye(2)[[0] * 3 + [1] * 7], len(half): half.astype(float)}
    monkeypatch.setattr(utility, "read_by", lambda reader, pixels: answers[len(pixels)])
    which = {"data": {"location": phantoms}, "scenario": "5%"}
    one = utility.read({"single": True}, pool, **which, draw=0)
    assert one["read"]["classes"] == {
        "NORMAL": {"value": 0.75, "n": 4, "floor": 0.5},
        "PNEUMONIA": {"value": 1.0, "n": 6, "floor": 1.0},
    }
    none = utility.read({"single": True}, {"failed": "diverged"}, **which, draw=1)
    assert none["read"]["classes"] == {}
    found = utility.compare(one, none, data={"location": phantoms}, settings={"strict": True}, seed=0)
    assert found["read"] == [one["read"], none["read"]]


def test_classes_are_read_only_where_an_arm_has_synthetic_images():
    question = Question({"run": "r", "sha256": "a"}, {"location": "d", "sha256": "b"}, ("NORMAL",), "test", "val", 9, 0)

    def names(*arms):
        (cell,) = utility.plan(question, utility.Grid(arms=arms, draws=2), {}).values()
        return [need.name for need in cell.needs if need.name.startswith("classes read")]

    assert names(utility.BASELINE, utility.CANDIDATE) == ["classes read, 5%, draw 0", "classes read, 5%, draw 1"]
    assert names(utility.BASELINE, "real") == []


def test_filling_up_is_held_against_oversampling_too(phantoms):
    test, seen = open_split(phantoms, "test"), []
    for arm in (utility.BASELINE, "real+classical+oversampled", "real+classical+balanced"):
        row = {"arm": arm, "scenario": "5%", "network": "small-cnn", "draw": 0, "seed": 0}
        seen.append({"row": row, "answers": np.eye(2)[test.labels[:, 1]]})
    found = utility.compare(*seen, data={"location": phantoms}, settings={"strict": True}, seed=0)["differences"]
    assert {(d["arm"], d["against"]) for d in found} == {
        ("real+classical+oversampled", utility.BASELINE),
        ("real+classical+balanced", utility.BASELINE),
        ("real+classical+balanced", "real+classical+oversampled"),
    }


def test_the_surest_half_keeps_each_class_s_share():
    labels = np.eye(2, dtype=np.uint8)[[0] * 6 + [1] * 4]
    sure = np.array([0.9, 0.1, 0.8, 0.2, 0.7, 0.3, 0.6, 0.9, 0.2, 0.4])
    answers = np.where(labels > 0, sure[:, None], 1 - sure[:, None])
    kept = utility.surest(Images(np.arange(10).reshape(10, 1, 1, 1), labels), answers)
    assert kept.pixels.ravel().tolist() == [0, 2, 4, 6, 7]
