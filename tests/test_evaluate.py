"""jobs/evaluate.py from the command line to evaluation.json, on a generator that is hardly one."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from jobs import evaluate
from medgan import evaluation_page
from medgan.cells import Cell
from medgan.config import Refused
from medgan.data import shards
from medgan.data.loader import open_split
from medgan.metrics import classifiers, evidence, privacy, retrain, utility
from medgan.state import open_checkpoint

from .test_ray import run_job
from .test_sample import write

pytestmark = pytest.mark.usefixtures("small_evaluation")


def asked(trained, phantoms, *more, workers=0):
    evaluate.main(["--run", trained, "--data", phantoms, "--workers", str(workers), *map(str, more)])


def test_an_evaluation_answers_all_three_questions_as_the_contract_says(trained, phantoms, capsys, monkeypatch):
    small = ("--n", 40, "--utility", "--draws", 2, "--seeds", 1, "--steps", 4, "--gan-images", 64)
    asked(trained, phantoms, *small, "--scenarios", "20%")
    asked(trained, phantoms, "--n", 40, "--fidelity", "--privacy")
    found = json.loads(shards.read_file(trained, "evaluation.json"))
    assert found.keys() == {"settings", "fidelity", "utility", "privacy"}
    settings = found["settings"]
    assert {
        "extractor",
        "input",
        "resize",
        "dtype",
        "n",
        "split",
        "manifest_sha256",
        "subject_sha256",
    } <= settings.keys()
    fidelity = found["fidelity"]
    assert fidelity["kid"].keys() == {"value", "low", "high", "n", "floor"}
    for name in ("fid", "precision", "recall", "density", "coverage", "class_accuracy"):
        assert {"value", "n", "floor"} <= fidelity[name].keys()
    assert {"kid", "class_accuracy"} <= fidelity["classes"]["NORMAL"].keys() | {"kid"}
    assert {"auc", "low", "high", "control"} <= found["privacy"]["membership"].keys()
    assert found["privacy"]["copies"]["n"] == 40
    rows = found["utility"]["cells"]
    assert len(rows) == 2 * 2
    assert {row["arm"] for row in rows} == {"real+classical", "real+classical+synthetic"}
    assert {row["synthetic"] for row in rows if row["arm"] == "real+classical"} == {0}
    assert all(row["synthetic"] == row["real"] for row in rows if row["arm"] != "real+classical")
    assert all(set(classifiers.SCORES) <= row.keys() for row in rows)
    assert found["utility"]["settings"]["strict"] is True
    assert found["utility"]["claim"]["verdict"] in ("helps", "harms", "does not help", "cannot tell")
    shown = capsys.readouterr().out
    assert re.search(
        r"With 20 % of the training patients .* over 2 draws of patients, generator trained on those", shown
    )
    assert "membership AUC" in shown

    # What is kept is not computed again, and a larger grid takes over what is there.
    computed = []
    monkeypatch.setattr(
        Cell, "compute", lambda self, folder, real=Cell.compute: computed.append(self.name) or real(self, folder)
    )
    asked(trained, phantoms, *small, "--scenarios", "20%")
    assert computed == []
    asked(trained, phantoms, *small, "--scenarios", "20%", "--arms", "real,real+classical,real+classical+synthetic")
    assert sorted(computed) == ["differences", *(f"real, small-cnn, 20%, draw {draw}.0" for draw in range(2))]


def test_the_given_generator_may_serve_every_draw_and_the_result_says_so(trained, phantoms, tmp_path):
    out = tmp_path / "given.json"
    small = (
        "--utility",
        "--no-strict",
        "--draws",
        1,
        "--seeds",
        1,
        "--steps",
        2,
        "--scenarios",
        "rare 50%",
        "--out",
        out,
    )
    asked(trained, phantoms, *small, "--n", 20)
    found = json.loads(out.read_text())["utility"]
    assert found["settings"] == {"strict": False, "steps": 2}
    assert found["claim"]["verdict"] == "cannot tell"  # one draw says nothing of others
    assert "one generator for all, which had seen all training patients" in found["claim"]["sentence"]


def test_a_generator_may_begin_with_all_images_without_labels_and_change_its_recipe(trained, phantoms, tmp_path):
    out = tmp_path / "e.json"
    small = ("--utility", "--draws", 2, "--seeds", 1, "--steps", 2, "--scenarios", "20%", "--gan-images", 64, "--n", 20)
    asked(trained, phantoms, *small, "--gan-unlabelled", 64, "--gan-set", "data.balance=1", "--out", out)
    found = json.loads(out.read_text())["utility"]
    changed = {"changed": ["data.balance=1"]}
    assert found["settings"] == {"strict": True, "steps": 2, "images": 64, "unlabelled": 64, **changed}
    assert "without labels, with data.balance=1: the interval" in found["claim"]["sentence"]
    assert "after one training for all on all images without labels" in found["claim"]["sentence"]
    notes = [json.loads(path.read_text()) for path in (tmp_path / "e.cells").glob("*.json")]
    assert len([note for note in notes if note["cell"] == "generator without labels"]) == 1
    assert {note["result"]["images_seen"] for note in notes if note["cell"].startswith("generator")} == {64}


def test_a_training_without_labels_is_what_the_next_begins_with(phantoms, tiny):
    split = open_split(phantoms, "train")
    config = tiny(total_images=32)
    data = {"location": phantoms, "sha256": ""}
    first = retrain.unlabelled(data=data, config=config.dump(), images=64, seed=0)
    short = tiny(total_images=16, optim__lr_g=1e-9, optim__lr_d=1e-9)
    state, _ = retrain.fit(short, split, np.arange(100), begin=first["checkpoint"].tobytes())
    before = open_checkpoint(first["checkpoint"].tobytes())["ema"]
    for name, value in state.generator.module.named_parameters():
        assert torch.allclose(value, before[name], atol=1e-5)


def test_schedules_of_a_recipe_fit_into_a_shorter_training(tiny):
    config = tiny(total_images=100_000, model__anneal_from_kimg=20, model__anneal_to_kimg=50)
    short = retrain.recipe(config.dump(), seed=5, images=10_000)
    assert (short.total_images, short.seed) == (10_000, 5)
    assert (short.model.anneal_from_kimg, short.model.anneal_to_kimg) == (2, 5)
    ends = {"optim.warmup_kimg": 5, "optim.decay_kimg": 90, "loss.gamma_kimg": 70, "augment.kimg": 60}
    settings = {key.replace(".", "__"): value for key, value in ends.items()}
    for name, of_augment in (("ramp", 6), ("ada", 60)):  # ADA's is a speed
        whole = tiny(total_images=100_000, augment__name=name, augment__p=0.3, **settings)
        short = retrain.recipe(whole.dump(), seed=5, images=10_000)
        assert (short.optim.warmup_kimg, short.optim.decay_kimg, short.loss.gamma_kimg) == (0.5, 9, 7)
        assert short.augment.kimg == of_augment


def test_neighbours_are_shown_only_on_request_and_never_inside_a_release(trained, phantoms, tmp_path):
    quick = ("--extractor", "radiomics", "--n", 20, "--out", tmp_path / "e.json")
    asked(trained, phantoms, *quick, "--neighbours", tmp_path / "near.png")
    with Image.open(tmp_path / "near.png") as picture:
        assert picture.size == (6 * 34 + 2, 8 * 34 + 2)
    with pytest.raises(Refused, match="do not belong in what is handed over"):
        evaluate.main(["--synthetic", "/x", "--data", phantoms, "--neighbours", "/x/near.png"])
    with pytest.raises(Refused, match="do not belong in what is handed over"):
        evaluate.main(["--run", "/x", "--data", phantoms, "--neighbours", "/x/generator/near.png"])
    with pytest.raises(Refused, match=f"name a place outside {trained}/generator"):
        evaluate.main(["--run", trained, "--data", phantoms, "--out", f"{trained}/generator/e.json"])


def test_a_generator_that_is_handed_on_gets_figures_and_nothing_of_real_images(trained, phantoms, tmp_path):
    handed = tmp_path / "handed"
    shutil.copytree(f"{trained}/generator", handed)
    before = set(handed.iterdir())
    asked(str(handed), phantoms, "--n", 20, "--extractor", "radiomics", "--fidelity", "--privacy")
    assert set(handed.iterdir()) - before == {handed / "evaluation.json"}
    assert list((tmp_path / "handed.cells").iterdir())
    assert "KID" in (handed / "README.md").read_text()
    with pytest.raises(Refused, match="do not belong in what is handed over"):
        asked(str(handed), phantoms, "--neighbours", handed / "near.png")


def test_a_figure_does_not_depend_on_how_the_samples_were_parted(trained, phantoms, tmp_path, monkeypatch):
    found = []
    for part in (7, 512):
        monkeypatch.setattr(evidence, "PART", part)
        asked(trained, phantoms, "--n", 20, "--extractor", "radiomics", "--out", tmp_path / f"{part}.json")
        found.append(json.loads((tmp_path / f"{part}.json").read_text())["fidelity"])
    for name in ("kid", "fid", "recall", "class_accuracy"):
        assert found[0][name]["value"] == pytest.approx(found[1][name]["value"], rel=1e-3)


def test_an_unconditional_generator_is_evaluated_without_classes_and_not_asked_what_it_cannot_tell(
    tiny, phantoms, tmp_path
):
    write(tmp_path, tiny("dcgan"))
    run = str(tmp_path)
    asked(run, phantoms, "--n", 20, "--extractor", "radiomics", "--fidelity", "--privacy")
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["fidelity"]["classes"] == {}
    assert "class_accuracy" not in found["fidelity"]
    with pytest.raises(Refused, match="unconditional, its images have no class"):
        asked(run, phantoms, "--utility")


@pytest.mark.heavy
def test_shadow_generators_attack_the_generator_and_each_other(monkeypatch, trained, phantoms, tmp_path):
    monkeypatch.setattr(privacy, "SHADOW_FILMS", 40)
    out = tmp_path / "e.json"
    asked(trained, phantoms, "--privacy", "--shadows", 6, "--gan-images", 32, "--n", 20, "--out", out)
    found = json.loads(out.read_text())["privacy"]
    shadows, own = found["shadows"], found["shadows"]["released"]
    assert (shadows["shadows"], shadows["failed"], shadows["images"], shadows["changed"]) == (6, 0, 32, [])
    assert shadows["films"] == own["n"] + own["n_held_out"]
    for attack in (shadows, own):
        assert 0 <= attack["low"] < attack["auc"] < attack["high"] <= 1
        assert attack["control_low"] < 0.5 < attack["control_high"]
    assert "by 6 shadow generators of its recipe, control" in found["claim"]["sentence"]
    # Again without: what they found stays, and the page shows it.
    asked(trained, phantoms, "--privacy", "--n", 20, "--out", out)
    again = json.loads(out.read_text())
    assert again["privacy"] == found
    assert "by 6 shadow generators" in str(evaluation_page.render(again))


def test_what_shadows_found_stays_and_is_part_of_the_claim():
    attack = {"auc": 0.5, "low": 0.46, "high": 0.54, "control": 0.5, "control_low": 0.46, "control_high": 0.54}
    attack |= {"tpr": 0.01, "tpr_low": 0.0, "tpr_expected": 0.01, "patients": 90, "patients_held_out": 90}
    audit = {
        "membership": {**attack, "spaces": {"pixels": attack}},
        "copies": {"value": 0, "beyond": 0, "n": 9, "held_out": 0, "n_held_out": 9, "patients": 0},
        "patients": {"value": 0.0, "expected": 0.01, "p": 1.0},
        "closeness": {"pixels": {"value": 0.8, "expected": 0.8, "p": 0.5}},
    }
    counted = {"shadows": 8, "released": attack, "changed": ["ema.half_life_kimg=1"]}
    found = {"privacy": audit, "shadows": {**attack, "low": 0.7, "auc": 0.8, **counted}}
    first = evaluate.assemble({}, 9, found, {})
    again = evaluate.assemble({}, 9, {"privacy": audit}, before=first)
    for result in (first, again):
        assert result["privacy"]["shadows"]["auc"] == 0.8
        assert result["privacy"]["claim"]["verdict"] == "cannot tell"
        assert (
            "by 8 shadow generators of its recipe with ema.half_life_kimg=1, control"
            in result["privacy"]["claim"]["sentence"]
        )
        assert "membership AUC 0.80 [0.70, 0.54] of themselves" in result["privacy"]["claim"]["sentence"]
    assert evaluate.assemble({}, 9, {"privacy": audit}, {})["privacy"]["claim"]["verdict"] == "no leak found"
    old = {"privacy": {"shadows": {**attack, "shadows": 8}}}  # of a version that did not attack the generator itself
    assert "shadows" not in evaluate.assemble({}, 9, {"privacy": audit}, before=old)["privacy"]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--fidelity", "--shadows", 8), "--shadows: is of --privacy"),
        (("--privacy", "--shadows", 4), "--shadows 4: must be an even number, at least 6"),
        (("--privacy", "--shadows", 3), "--shadows 3: must be an even number"),
        (("--privacy", "--shadows", 7, "--gan-images", 1, "--n", 16), "--shadows 7: must be an even number"),
        (("--utility", "--gan-unlabelled", -5), "--gan-unlabelled -5: must be at least 0"),
        (("--utility", "--no-strict", "--gan-unlabelled", 64), "--gan-unlabelled: is of --utility --strict"),
        (("--gan-images", 64), "--gan-set, --gan-images: nothing that is asked for trains a generator"),
        (("--utility", "--arms", "real,fake"), "--arms fake: unknown, choose of real, real"),
        (("--utility", "--scenarios", "5"), "--scenarios 5: give a share of the train patients"),
        (("--utility", "--networks", "vgg"), "--networks vgg: unknown"),
        (("--utility", "--draws", 0), "--draws 0: must be at least 1"),
        (("--extractor", "inception"), "--extractor inception: needs --weights"),
        (("--weights", "/x"), "--weights /x: --extractor efficientnet-lite0 has its own"),
    ],
)
def test_what_cannot_be_asked_is_refused(trained, phantoms, more, line):
    with pytest.raises(Refused, match=re.escape(line)):
        asked(trained, phantoms, *more)


def test_a_draw_keeps_whole_patients_the_same_share_of_every_class():
    patients = np.repeat(np.arange(200), 2)
    labels = np.eye(2, dtype=np.uint8)[(patients % 4 == 0).astype(int)]  # 50 patients of the rare class
    rows = utility.drawn_rows(labels, patients, "10%", 0, 0)
    assert len(np.unique(patients[rows])) == 20
    assert len(rows) == 40
    assert labels[rows].sum(0).tolist() == [30, 10]
    assert not np.array_equal(rows, utility.drawn_rows(labels, patients, "10%", 1, 0))
    assert len(utility.drawn_rows(labels, patients, "100%", 0, 0)) == 400
    rare = utility.drawn_rows(labels, patients, "rare 10%", 0, 0)
    assert labels[rare].sum(0).tolist() == [300, 10]
    assert len(np.unique(patients[utility.drawn_rows(labels, patients, "1%", 0, 0)])) == 4  # at least two of each


@pytest.mark.ray
def test_a_cluster_finds_the_same_figures(tiny, phantoms, tmp_path):
    write(tmp_path / "run", tiny("dcgan"))
    common = ("--run", tmp_path / "run", "--data", phantoms, "--n", 20, "--extractor", "radiomics")
    for workers in (0, 2):
        code, output = run_job("evaluate", *common, "--out", tmp_path / f"{workers}.json", "--workers", workers)
        assert code == 0, output
    ours, theirs = (json.loads((tmp_path / f"{workers}.json").read_text()) for workers in (0, 2))
    assert ours["settings"] == theirs["settings"]
    assert ours["fidelity"]["kid"]["value"] == pytest.approx(theirs["fidelity"]["kid"]["value"], rel=1e-4)
