"""Names, paths and keys that leave with what medgan writes, sends or prints: none but those of classes."""

import json
import os
import time
from pathlib import Path

import pytest

from medgan.config import Refused
from medgan.data import ingest, shards
from medgan.data.sources import SourceError
from medgan.locations import redact, redact_command
from medgan.names import doubtful
from medgan.terminal import absolute
from tune.trial import reason_of

from ..test_ingest import film, put, request

# -- classes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "classes",
    [
        [f"person {letter}" for letter in "abcdefghijklmnopqrstu"],  # 21 of them
        ["MRN4000_Mueller_Hans", "MRN4001_Roe_Jane"],
        ["NORMAL", "Mueller^Hans"],
        ["NORMAL", "Mueller, Hans"],
        ["NORMAL", "Patient_7"],
        ["NORMAL", "Frau Roe"],
        ["NORMAL", "sub-01"],
        ["NORMAL", "seen 3.4.61"],
    ],
)
def test_folders_that_look_like_patients_are_no_classes_until_somebody_names_them(tmp_path, classes):
    for number in range(5):
        for name in classes:
            put(tmp_path / "raw", f"{name}/{number}.png", film(number, 16))
    with pytest.raises(SourceError, match="patients or series, perhaps; name the classes") as refused:
        ingest.find(request(tmp_path / "raw", tmp_path / "out"))
    message = str(refused.value).replace(str(tmp_path), "")
    assert not any(name in message for name in classes if name != "NORMAL")
    assert set(
        ingest.find(request(tmp_path / "raw", tmp_path / "out", options={"classes": tuple(classes)})).classes
    ) == set(classes)


def test_one_folder_per_patient_with_few_films_each_is_asked_about_too(tmp_path):
    for number, name in enumerate(("anna", "bert", "cora", "dirk")):
        put(tmp_path / "raw", f"{name}/a.png", film(number, 16))
    with pytest.raises(SourceError, match="4 of 4 classes have fewer than 5 images: patients or series, perhaps"):
        ingest.find(request(tmp_path / "raw", tmp_path / "out"))


@pytest.mark.parametrize(
    "classes",
    [
        ("NORMAL", "PNEUMONIA"),
        ("CNV", "DME", "DRUSEN", "NORMAL"),
        ("0", "1", "2", "3", "4"),
        ("Grade 0", "Grade 10", "T2b", "BI-RADS 4a", "KL-2"),
        ("Pleural Thickening", "No Finding", "Viral Pneumonia", "COVID-19", "normal, benign", "Pathological", "Patchy"),
        ("MR Brain", "MS plaque", "MS T2", "MR_Normal", "CT"),
        ("Lung_Opacity", "Mass", "Case of doubt", "Msc.", "Mrna"),
    ],
)
def test_names_that_published_sets_have_are_asked_about_by_nobody(classes):
    assert doubtful(dict.fromkeys(classes, 100)) is None


def test_a_rare_class_beside_others_is_none_to_ask_about():
    assert doubtful({"a": 900, "b": 3, "c": 1}) is None


@pytest.mark.parametrize("folders", ["MRN400{}_Mueller", "anna {}"])
def test_a_mistaken_name_lists_no_patients(tmp_path, folders):
    for number in range(6):
        put(tmp_path / "raw", f"{folders.format('abcdef'[number])}/{number}.png", film(number, 16))
    with pytest.raises(SourceError, match=r"^--classes NORMAL: .* has 6 others$"):
        ingest.find(request(tmp_path / "raw", tmp_path / "out", options={"classes": ("NORMAL",)}))


# -- locations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "location",
    [
        "s3://AKIA:hunter2@bucket/data",
        "s3://:hunter2@bucket/data",
        "s3://bucket/data?access_key=AKIA&secret_key=hunter2",
        "s3://bucket/data?region=eu&session_token=hunter2",
        "abfss://c@a.dfs.core.windows.net/x?account_key=hunter2",
        "https://store/x?sig=hunter2",
        "s3://AKIA:hun/ter2hunter2@bucket/data",
        "s3://AKIA:[hunter2@bucket/data",
        "s3://bucket/data?aws_secret_access_key=hunter2",
        "s3://bucket/data?a=1;secret%5Fkey=hunter2",
    ],
)
def test_a_location_with_a_password_is_refused_and_never_quoted(location):
    for open_it in (lambda: absolute("--out", location), lambda: shards.filesystem(location)):
        with pytest.raises(Refused, match="a key in a location is written into files and shown") as refused:
            open_it()
        assert "hunter2" not in str(refused.value)
        assert "AKIA" not in str(refused.value)


@pytest.mark.parametrize(
    "location",
    [
        "s3://bucket/a:b@c",
        "http://host:8080/a@b",
        "abfss://films@hospital.dfs.core.windows.net/x",
        "s3://bucket/x?endpoint_override=h%3A9&scheme=http",
    ],
)
def test_locations_without_one_are_taken(location):
    assert absolute("--out", location) == location


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("/home/mueller/films/run cannot be written: no room", "run cannot be written: no room"),
        ("at s3://clinic/mueller/data?region=eu.", "at data."),
        ("in '/a/b c' or \"/x/y\"", "in 'b c' or \"y\""),
        ("KID 0.1/0.2, 3 of 4 / 5", "KID 0.1/0.2, 3 of 4 / 5"),
        ("ends (/mnt/d)", "ends (d)"),
        ("open '/home/hans mueller/my films/a b'", "open 'a b'"),
    ],
)
def test_texts_that_others_read_hold_the_last_part_of_a_path_alone(said, told):
    assert redact(said) == told


def test_a_text_of_any_form_is_read_in_no_time():
    """Ray's errors have megabytes."""
    began = time.monotonic()
    for text in ("a" * 10**6, "/" * 10**6, "/.," * 10**5, "'/" * 10**5, "a:/" * 10**5):
        redact(text)
    assert time.monotonic() - began < 20  # a second; more than an hour where it grows by its square


def test_a_command_that_others_read_holds_no_path():
    words = ["--data", "/home/mueller/films", "--out=../mueller/first", "--space", "model.name=cgan,dcgan"]
    words += ["--set", "optim.lr_g=1e-4", "--config", "s3://clinic/mueller/a.yaml?region=eu"]
    told = redact_command(words)
    assert told == ("--data films --out=first --space model.name=cgan,dcgan --set optim.lr_g=1e-4 --config a.yaml")


def test_the_reason_of_a_failed_trial_holds_no_path():
    assert reason_of("RuntimeError: /home/mueller/films/train is gone") == "RuntimeError: train is gone"


def test_nothing_of_a_patient_leaves_a_preparation(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(ingest, "_on_ray", lambda task, things: map(task, things))
    raw, out = tmp_path / "planted_place", tmp_path / "out"
    for number in range(40):
        put(raw, f"NORMAL/planted_name-{number}.png", film(number, 32))
    put(raw, "NORMAL/planted_name-broken.png", b"no image")
    asked = request(raw, out, options={"patient_regex": r"planted_name-\w+"})
    ingest.write(ingest.plan(asked, ingest.find(asked), b"planted key of 32 bytes in all.."))
    found = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file()).lower()
    said = "".join(capfd.readouterr()).lower().encode()
    for planted in (b"planted", b"planted key of 32 bytes in all..".hex().encode(), os.fsencode(tmp_path)):
        assert planted not in found + said
    assert json.loads(Path(out, "manifest.json").read_text())["rejected"] == 1


def test_keys_of_storage_are_not_handed_on_to_trials_whose_settings_ray_logs(monkeypatch):
    from ray.tune.execution import class_cache

    from tune import search

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setattr(class_cache.ray, "remote", lambda runtime_env: lambda trial: runtime_env)
    assert search.Request
    assert "hunter2" not in str(class_cache._ActorClassCache().get("trial"))
