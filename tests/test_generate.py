"""Releases: the same bytes on any number of workers, filtered, read back by others; nothing in them leads back."""

import dataclasses
import json
import re
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
import yaml
from PIL import Image

from jobs import evaluate, generate
from medgan import release
from medgan.config import Refused
from medgan.data import shards
from medgan.metrics import evidence
from medgan.sample import Sampler

from .test_sample import write

pytestmark = pytest.mark.usefixtures("small_evaluation")


def made(run, out, *more, workers=0):
    generate.main(["--run", run, "--out", str(out), "--workers", str(workers), *map(str, more)])
    return Path(out)


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_release_is_read_back_by_others(trained, tmp_path):
    out = made(trained, tmp_path / "out", "--per-class", 6, "--png", "--dicom")
    table = pq.read_table(out / "train")
    assert table.num_rows == 12
    assert table.column_names == ["pixels", "labels", "seed"]
    (shard,) = (out / "train").glob("*.parquet")  # alone too it says what it holds
    assert json.loads(pq.read_schema(shard).metadata[b"medgan"])["synthetic"] is True
    sampler = Sampler.open(trained)
    labels = np.array(table["labels"].to_pylist())
    pixels = np.frombuffer(b"".join(table["pixels"].to_pylist()), np.uint8).reshape(-1, 1, 32, 32)
    again = sampler.at(labels[7:8], table["seed"].to_pylist()[7:8])
    assert np.abs(again.astype(int) - pixels[7:8]).max() <= 1

    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "hub"))  # by the card's header
    assert loaded.num_rows == 12
    assert loaded[3]["seed"] == table["seed"][3].as_py()

    films = sorted(out.glob("dicom/*/*.dcm"))
    assert [film.parent.name for film in films] == ["NORMAL"] * 6 + ["PNEUMONIA"] * 6
    read = [pydicom.dcmread(film) for film in films]
    assert np.array_equal(read[8].pixel_array, pixels[8, 0])
    assert len({film.SOPInstanceUID for film in read}) == 12
    assert len({film.StudyInstanceUID for film in read}) == 1
    first = read[0]
    assert first.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage
    assert list(first.ImageType) == ["DERIVED", "SECONDARY", "SYNTHETIC"]
    assert first.ConversionType == "SYN"
    assert first.SyntheticData == "YES"
    assert "SYNTHETIC" in str(first.PatientName)
    assert "not of a patient" in first.ImageComments
    assert first.StudyDate == ""
    pictures = list(out.glob("png/*/*.png"))
    assert len(pictures) == 12
    assert Image.open(pictures[0]).text == {"Comment": release.MARK}
    assert shards.problems(out) == []


@pytest.mark.parametrize(
    ("classes", "folders"),
    [
        (("N/A", "../../escaped"), {"N%2FA", "%2E.%2F..%2Fescaped"}),
        (("Ödem\\links|rechts", ".."), {"Ödem%5Clinks%7Crechts", "%2E%2E"}),
        (("normal", "NORMAL"), {"normal", "%4E%4F%52%4D%41%4C"}),
    ],
)
def test_classes_of_any_name_stay_within_the_release(tiny, tmp_path, capsys, classes, folders):
    config = tiny()
    run = tmp_path / "run"
    write(run, config.model_copy(update={"data": config.data.model_copy(update={"classes": classes})}))
    before = files_of(tmp_path)
    asked = (str(run), tmp_path / "re/lease", "--per-class", 2, "--png", "--dicom")
    out = made(*asked)
    assert {path.name for kind in ("png", "dicom") for path in (out / kind).iterdir()} == folders
    written = files_of(out)
    assert len([name for name in written if name.endswith((".png", ".dcm"))]) == 8
    assert files_of(tmp_path).keys() == before.keys() | {f"re/lease/{name}" for name in written}
    made(*asked)
    assert "complete" in capsys.readouterr().out
    assert files_of(made(*asked, "--overwrite")).keys() == written.keys()
    assert shards.problems(out) == []
    films = [pydicom.dcmread(path) for path in sorted(out.glob("dicom/*/*.dcm"))]
    assert len({film.SeriesInstanceUID for film in films}) == 2
    for film in films:
        assert film["SeriesDescription"].VM == 1
        assert film.SeriesDescription.removeprefix("SYNTHETIC ") in {name.replace("\\", "%5C") for name in classes}
        assert any(f"Class {name}, seed" in film.ImageComments for name in classes)
    table = [line for line in (out / "README.md").read_text().splitlines() if line.endswith(" | 2 |")]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in table] == [3, 3]


def test_a_licence_of_any_words_leaves_the_header_of_the_card_whole(trained, tmp_path):
    out = made(trained, tmp_path / "out", "--count", 20, "--licence", "cc: by\n--- #4.0")
    header = yaml.safe_load((out / "README.md").read_text().split("\n---\n")[0])
    assert header["license"] == "cc: by\n--- #4.0"
    assert header["tags"] == ["medical", "synthetic", "gan", "medgan"]


def test_a_release_of_drawn_images_says_that_nobody_is_in_it(tiny, phantoms, tmp_path):
    nobody = "learnt from drawn images alone, of no patient"
    careful = "learnt from images of patients"
    for drawn in (True, False):
        run = tmp_path / f"run{drawn}"
        write(run, tiny(), drawn=drawn)
        out = made(str(run), tmp_path / f"out{drawn}", "--count", 20, "--dicom")
        card = (out / "README.md").read_text()
        assert ((nobody in card), (careful in card), ("<!-- persons -->" in card)) == (drawn, not drawn, not drawn)
        assert (f"| {'drawn' if drawn else 'real'} images shown while training |") in card
        film = pydicom.dcmread(next(out.glob("dicom/*/*.dcm")))
        assert (nobody in film.DerivationDescription) is drawn
        assert ("learnt from drawn images alone" in (out / "summary.html").read_text()) is drawn
        assert shards.read_manifest(out)[0].drawn is drawn  # a generator that learns from it says the same
        evaluate.main(
            ["--synthetic", str(out), "--data", phantoms, "--n", "20", "--workers", "0", "--extractor", "radiomics"]
        )
        assert (nobody in (out / "report.html").read_text()) is drawn
        claim = {"verdict": "leaks", "sentence": "x"}
        judged = release.with_evaluation(card, {"settings": {"manifest_sha256": "ab"}, "privacy": {"claim": claim}})
        assert ("give patients away" in judged) is not drawn


def test_colour_images_are_captured_in_colour():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 5), np.uint8)
    film = pydicom.dcmread(BytesIO(release.secondary_capture(pixels, "DRUSEN", "ab" * 32, 3, 0, "r")))
    assert np.array_equal(film.pixel_array, pixels.transpose(1, 2, 0))


def test_images_that_differ_in_anything_have_other_uids():
    pixels = np.zeros((1, 4, 4), np.uint8)
    asked = [
        (pixels, "A", "r"),
        (pixels, "A", "s"),
        (pixels + 1, "A", "r"),
    ]  # another label or truncation: other pixels
    made = [pydicom.dcmread(BytesIO(release.secondary_capture(p, label, "ab", 3, 0, r))) for p, label, r in asked]
    assert len({film.SOPInstanceUID for film in made}) == 3
    assert made[0].StudyInstanceUID == made[2].StudyInstanceUID != made[1].StudyInstanceUID
    assert made[0].SeriesInstanceUID == made[2].SeriesInstanceUID != made[1].SeriesInstanceUID


def test_who_judges_a_release_has_not_chosen_its_images(phantoms):
    data = {"location": phantoms, "sha256": "0"}
    question = evidence.Question({"run": "/r", "sha256": "0"}, data, ("a", "b"), "test", "val", 20, seed=0)
    judge = question.fidelity()["faithful"].needs[0]
    common = dict.fromkeys(("run", "sha256", "out", "request"), "") | {"seed": 0, "truncation": 1.0}
    chooser = release.plan(np.eye(2, dtype=np.uint8), {**common, "png": False, "dicom": False}, data, 0.5)[0].needs[1]
    assert judge.call == chooser.call
    assert judge.digest != chooser.digest


def test_nothing_in_a_release_leads_back(trained, phantoms, tmp_path):
    out = made(trained, tmp_path / "out", "--per-class", 6, "--data", phantoms, "--confidence", 0.01, "--dicom")
    held = files_of(out)
    assert not [name for name in held if name.startswith(".parts") or name.endswith((".npz", ".pt", ".safetensors"))]
    columns = [(split, name) for split in shards.SPLITS for name in ("patient", "image_id")]
    ids = {value for split, name in columns for value in shards.column(phantoms, split, name)}
    everything = b"\0".join(held.values())
    assert not [one for one in ids if one.encode() in everything]
    assert str(tmp_path).encode() not in everything  # no path of whoever made it
    assert phantoms.encode() not in everything


def test_the_card_is_a_hub_card_and_takes_the_figures_of_an_evaluation(trained, phantoms, tmp_path):
    out = made(trained, tmp_path / "out", "--per-class", 20, "--licence", "cc-by-4.0")
    card = (out / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["license"] == "cc-by-4.0"
    assert header["configs"][0]["data_files"] == [{"split": "train", "path": "train/*.parquet"}]
    assert header["size_categories"] == ["n<1K"]
    sampler = Sampler.open(trained)
    assert sampler.sha256 in card
    assert sampler.config.data.manifest_sha256 in card
    assert "near-copies of training images were not looked for" in card
    assert "Not evaluated yet" in card
    for more in (("--fidelity", "--extractor", "radiomics"), ("--privacy",)):
        evaluate.main(["--synthetic", str(out), "--data", phantoms, "--n", "40", "--workers", "0", *more])
    card = (out / "README.md").read_text()
    figures = json.loads((out / "evaluation.json").read_text())
    assert "Not evaluated yet" not in card
    assert card.count("## Evaluation") == 1
    assert f"{figures['fidelity']['kid']['value']:.4g}" in card
    assert figures["privacy"]["claim"]["sentence"] in card
    page = (out / "report.html").read_text()
    assert figures["privacy"]["claim"]["sentence"] in page
    assert "--synthetic out --data DATA --fidelity --privacy" in page
    assert str(out) not in page
    assert sampler.config.data.manifest_sha256 in page
    assert not list(out.rglob("*.npz"))  # what was derived from real images is kept beside it
    assert (tmp_path / "out.cells").is_dir()
    assert shards.problems(out) == []
    made(trained, out, "--per-class", 20, "--licence", "cc-by-4.0")  # complete: stays as it is
    assert (out / "README.md").read_text() == card


def test_the_card_of_a_generator_takes_them_too(trained, phantoms):
    evaluate.main(["--run", trained, "--data", phantoms, "--n", "20", "--workers", "0", "--extractor", "radiomics"])
    card = (Path(trained) / "generator/README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "medgan"
    assert "**Faithful?** Against 20 real images of the test split, radiomics features" in card


def test_near_copies_are_dropped_counted_and_drawn_anew(trained, phantoms, tmp_path, leaking, capsys):
    out = made(trained, tmp_path / "out", "--per-class", 40, "--data", phantoms)
    table = pq.read_table(out / "train")
    assert table.num_rows == 80
    assert not [seed for seed in table["seed"].to_pylist() if seed % 5 == 0]
    dropped = int(capsys.readouterr().out.split("note: ")[1].split(" near-copies")[0])
    assert 8 <= dropped <= 32
    assert f"{dropped} near-copies of training images dropped" in (out / "README.md").read_text()


def test_images_of_uncertain_class_are_dropped_and_slots_that_stay_empty_are_told(
    trained, phantoms, tmp_path, monkeypatch, capsys
):
    answers = lambda reader, pixels: np.tile(np.array([[0.9, 0.1]], np.float32), (len(pixels), 1))
    monkeypatch.setattr(evidence, "read_by", answers)
    out = made(trained, tmp_path / "out", "--per-class", 3, "--data", phantoms, "--confidence", 0.5)
    assert shards.read_manifest(out)[0].counts["train"] == {"NORMAL": 3, "PNEUMONIA": 0}
    shown = capsys.readouterr().out
    assert f"{3 * release.TRIES} images dropped whose class was read with less than 0.5" in shown
    assert "3 images are missing: no attempt passed" in shown


def test_a_release_that_was_stopped_goes_on_and_has_the_same_bytes(trained, phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr(release, "ROWS_PER_SHARD", 8)
    asked = ("--count", 40, "--data", phantoms, "--png")
    whole = files_of(made(trained, tmp_path / "whole", *asked))
    assert len([name for name in whole if name.endswith(".parquet")]) == 5
    calls, draw = [], Sampler.at

    def cut(self, labels, seeds):
        calls.append(seeds)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return draw(self, labels, seeds)

    monkeypatch.setattr(Sampler, "at", cut)
    with pytest.raises(KeyboardInterrupt):
        made(trained, tmp_path / "cut", *asked)
    assert not (tmp_path / "cut/manifest.json").exists()
    made(trained, tmp_path / "cut", *asked)
    again = [seeds for seeds in calls[4:] if seeds in calls[:3]]
    assert again == []  # what was finished is not drawn again
    assert files_of(tmp_path / "cut") == whole


def test_a_release_of_another_request_is_begun_anew(trained, phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr(release, "ROWS_PER_SHARD", 8)
    draw = Sampler.at
    monkeypatch.setattr(Sampler, "at", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        made(trained, tmp_path / "out", "--count", 20)
    monkeypatch.setattr(Sampler, "at", draw)
    out = made(trained, tmp_path / "out", "--count", 12, "--seed", 3)
    assert shards.read_manifest(out)[0].rows("train") == 12


def test_what_was_found_of_a_release_goes_with_it(trained, tmp_path):
    out = made(trained, tmp_path / "out", "--count", 20)
    for name in ("evaluation.json", "report.html"):
        (out / name).write_text("No leak found")
    made(trained, out, "--count", 20)  # there already: nothing happens
    assert (out / "report.html").exists()
    made(trained, out, "--count", 20, "--seed", 3, "--overwrite")
    assert not any((out / name).exists() for name in ("evaluation.json", "report.html"))


def test_a_release_that_is_begun_anew_has_no_card_of_the_old_one(trained, tmp_path, monkeypatch):
    out = made(trained, tmp_path / "out", "--count", 20)
    assert (out / "README.md").exists()

    def stop(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "draw", stop)
    with pytest.raises(KeyboardInterrupt):
        made(trained, out, "--count", 20, "--seed", 3, "--overwrite")
    assert not any((out / name).exists() for name in ("README.md", "manifest.json"))


def test_a_generator_that_changes_meanwhile_ends_the_release(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(release, "ROWS_PER_SHARD", 8)
    run, other = tmp_path / "run", tmp_path / "other"
    write(run, tiny())
    write(other, tiny(seed=5))
    name, at = "generator/model.safetensors", Sampler.at

    def training_goes_on(self, labels, seeds):
        (run / name).write_bytes((other / name).read_bytes())
        return at(self, labels, seeds)

    monkeypatch.setattr(Sampler, "at", training_goes_on)
    with pytest.raises(shards.DataError, match="its generator is another one since this began"):
        made(str(run), tmp_path / "out", "--count", 20)
    again = made(str(run), tmp_path / "out", "--count", 20)
    assert Sampler.open(str(other)).sha256 in (again / "README.md").read_text()


def test_seeds_that_agree_in_their_low_bits_make_other_images(trained):
    sampler = Sampler.open(trained)
    first, second = sampler.at(np.eye(2, dtype=np.uint8)[[0, 0]], [7, 7 + (5 << 32)])
    assert not np.array_equal(first, second)


def test_the_card_calls_nobody_in_it_a_stranger_before_an_audit_did(trained, phantoms, tmp_path):
    nobody, unknown = "and found no leak (see Evaluation)", "repeats an image of a patient was not looked for"
    card = (made(trained, tmp_path / "plain", "--count", 20) / "README.md").read_text()
    assert unknown in card
    assert nobody not in card
    card = (made(trained, tmp_path / "filtered", "--count", 20, "--data", phantoms) / "README.md").read_text()
    assert "Near-copies of training images were dropped" in card
    assert nobody not in card
    settings = {"manifest_sha256": "ab"}
    for verdict, words in (
        ("no leak found", nobody),
        ("leaks", "give patients away"),
        ("cannot tell", "could not tell"),
    ):
        claim = {"verdict": verdict, "sentence": "x"}
        card = release.with_evaluation(card, {"settings": settings, "privacy": {"claim": claim}})
        assert words in card
        assert (nobody in card) == (verdict == "no leak found")
        assert card.count("<!-- persons -->") == 1


def test_several_findings_and_none_have_folders_of_their_own(trained, tmp_path, monkeypatch, capsys):
    sets = ({"classes": [], "images": 1}, {"classes": ["NORMAL", "PNEUMONIA"], "images": 1})
    real = Sampler.open
    monkeypatch.setattr(Sampler, "open", lambda *where: dataclasses.replace(real(*where), label_sets=sets))
    out = made(trained, tmp_path / "out", "--count", 20, "--png")
    assert {path.name for path in (out / "png").iterdir()} == {"none", "NORMAL+PNEUMONIA"}
    assert shards.problems(out) == []
    made(trained, tmp_path / "even", "--per-class", 3)
    assert "each image was asked for with one class alone" in capsys.readouterr().out


def test_a_release_can_be_what_a_data_set_lacks(trained, phantoms, tmp_path):
    counts = shards.read_manifest(phantoms)[0].counts["train"]
    out = made(trained, tmp_path / "out", "--balance-to", phantoms)
    drawn = shards.read_manifest(out)[0].counts["train"]
    assert [counts[name] + drawn[name] for name in counts] == [max(counts.values())] * 2


def test_a_release_of_one_class_is_evaluated_by_what_it_has(trained, phantoms, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generate, "amounts_of", lambda args, classes: [20, 0])
    out = made(trained, tmp_path / "out", "--balance-to", phantoms)
    asked = ["--synthetic", str(out), "--data", phantoms, "--workers", "0", "--extractor", "radiomics"]
    evaluate.main([*asked, "--n", "20", "--fidelity"])
    found = json.loads((out / "evaluation.json").read_text())["fidelity"]
    assert 0 <= found["class_accuracy"]["value"] <= 1
    assert found["class_accuracy"]["floor"] == found["classes"]["NORMAL"]["class_accuracy"]["floor"]
    assert 0.3 < found["class_shift"] < 0.7
    warning = "Figures over all classes also measure the mix"
    assert warning in capsys.readouterr().out
    assert warning in (out / "README.md").read_text()
    found["kid"]["value"] = found["class_accuracy"]["floor"] = None  # what cannot be measured is left out
    settings = {"n": 20, "extractor": "radiomics", "split": "test", "manifest_sha256": "ab"}
    card = release.with_evaluation("", {"settings": settings, "fidelity": found})
    evaluate.show({"settings": settings, "fidelity": found})
    assert "class read right" not in card
    assert "| FID |" in card
    with pytest.raises(Refused, match="--n: 12 images are too few"):
        evaluate.main([*asked, "--n", "12"])


def test_a_release_too_small_to_judge_is_refused_in_one_line(trained, phantoms, tmp_path):
    out = made(trained, tmp_path / "out", "--count", 9)
    for question in ("--fidelity", "--privacy"):
        with pytest.raises(Refused, match=f"--synthetic {out}: 9 images are too few to compare"):
            evaluate.main(["--synthetic", str(out), "--data", phantoms, "--workers", "0", question])


def test_privacy_is_asked_of_the_data_that_was_trained_on(trained, phantoms, tmp_path):
    from .conftest import write_phantoms

    other = str(write_phantoms(tmp_path / "other", count=80))
    out = made(trained, tmp_path / "out", "--count", 20)
    assert shards.read_manifest(out)[0].trained_on == shards.read_manifest(phantoms)[1]
    assert "trained_on" not in (Path(phantoms) / "manifest.json").read_text()
    for subject in (("--run", trained), ("--synthetic", str(out))):
        for question in (("--privacy",), ("--utility", "--no-strict")):
            with pytest.raises(Refused, match=f"{question[0]}: {subject[0]} .* was trained on other data"):
                evaluate.main([*subject, "--data", other, *question])
        quick = ("--n", "16", "--extractor", "radiomics", "--workers", "0")
        small = ("--split", "train") if subject[0] == "--run" else ("--split", "val")
        asked = [*subject, "--data", other, "--fidelity", *quick, *small, "--out", str(tmp_path / "e.json")]
        with pytest.raises(Refused, match="images are too few"):  # no complaint of the data
            evaluate.main(asked)


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--count", 3, "--confidence", 0.5), "--confidence: needs --data"),
        (("--count", 3, "--confidence", 2), "--confidence 2.0: must be between 0 and 1"),
        (("--count", 3, "--data", "/nowhere"), "--data /nowhere: no manifest.json"),
        (("--balance-to", "/nowhere"), "--balance-to /nowhere: no manifest.json"),
    ],
)
def test_what_cannot_be_released_is_refused_before_anything_is_written(trained, tmp_path, more, line):
    with pytest.raises(Refused, match=line):
        made(trained, tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


def test_filters_want_the_data_of_the_training(trained, tmp_path):
    from .conftest import write_phantoms

    other = write_phantoms(tmp_path / "other", count=40)
    with pytest.raises(Refused, match="not what the generator was trained on"):
        made(trained, tmp_path / "out", "--count", 3, "--data", other)


@pytest.mark.ray
def test_any_number_of_workers_makes_the_same_bytes(trained, phantoms, tmp_path):
    from .test_ray import run_job

    made_by = {}
    for workers in (0, 1, 2):
        out = tmp_path / f"out{workers}"
        asked = ("--run", trained, "--out", out, "--count", 2100, "--data", phantoms, "--workers", workers)
        code, output = run_job("generate", *asked)
        assert code == 0, output
        assert "images/s" in output
        made_by[workers] = files_of(out)
    assert made_by[0] == made_by[1] == made_by[2]


def test_a_release_serves_the_arms_of_utility(trained, phantoms, tmp_path):
    out = made(trained, tmp_path / "out", "--per-class", 40)
    small = ("--n", 20, "--draws", 1, "--seeds", 1, "--steps", 2, "--scenarios", "20%", "--workers", 0)
    evaluate.main(["--synthetic", str(out), "--data", phantoms, "--utility", *map(str, small)])
    found = json.loads((out / "evaluation.json").read_text())["utility"]
    assert found["settings"]["strict"] is False
    (added,) = (row for row in found["cells"] if row["synthetic"])
    assert added["arm"] == "real+classical+synthetic"
    assert added["synthetic"] == added["real"]
    assert found["read"][0]["classes"].keys() == {"NORMAL", "PNEUMONIA"}
    assert "one generator for all" in (out / "README.md").read_text()
