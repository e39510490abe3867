"""A user's mistake ends with exit code 2 and one line that names it, and nothing is written."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from medgan.pixels import encode_png
from medgan.terminal import command

from .conftest import write_key, write_phantoms

ROOT = Path(__file__).parent.parent


def job(name):
    """main of jobs/NAME.py."""
    spec = importlib.util.spec_from_file_location(f"job_{name}", ROOT / f"jobs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """refused(job, *arguments) -> the line on stderr, after checking that it was a refusal that wrote nothing."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        before = tree(tmp_path)
        folders = {path for path in tmp_path.rglob("*") if path.is_dir()}
        code = command(job(name), [str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert code == 2
        lines = captured.err.strip().splitlines()
        assert len(lines) == 1
        assert "Traceback" not in captured.err
        assert tree(tmp_path) == before
        left = {path for path in tmp_path.rglob("*") if path.is_dir()} - folders
        assert not left
        return lines[0]

    return run


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("loss.gama=1", "loss.gama=1: unknown key"),
        ("total_images=soon", "total_images=soon: must be a valid integer"),
        ("optim.lr_g=7", "optim.lr_g=7: must be less than or equal to 1"),
        ("global_batch=30", "global_batch=30: must be a multiple of model.stddev_group=4"),
        ("data.resolution=64", "data.resolution=64: DATA has 32"),
        ("data.resolution=48", "data.resolution=48: must be 32, 64, 128, 256 or 512"),
    ],
)
def test_a_setting_that_cannot_be(refused, phantoms, tmp_path, setting, words):
    assert words in refused(
        "train", "--preset", "cgan", "--data", phantoms, "--out", tmp_path / "run", "--set", setting
    )


def test_a_forbidden_combination(refused, phantoms, tmp_path):
    line = refused(
        "train", "--preset", "dcgan", "--data", phantoms, "--out", tmp_path / "run", "--set", "model.norm_d=batch"
    )
    assert "BatchNorm in D mixes images: set model.norm_d=none" in line


def test_an_unknown_preset_a_missing_flag_and_wrong_workers(refused, phantoms, tmp_path):
    run = ("--data", phantoms, "--out", tmp_path / "run")
    assert "choose one of dcgan, cgan" in refused("train", "--preset", "biggan", *run)
    assert "--preset or --config is missing" in refused("train", *run)
    assert "--data is missing" in refused("train", "--preset", "cgan", "--out", tmp_path / "run")
    for workers in ("0", "two", "3-1", "-1"):
        assert f"--workers {workers}" in refused("train", "--preset", "cgan", *run, f"--workers={workers}")


@pytest.mark.parametrize("name", ["prepare", "train", "generate", "evaluate", "report"])
def test_a_flag_that_is_unknown_or_of_the_wrong_type(refused, name):
    assert "; --help shows what there is" in refused(name, "--wrong")
    if name == "prepare":
        rest = ("--source", "phantom_cxr", "--out", "x")
        assert "--resolution: invalid int value: 'big'" in refused(name, *rest, "--resolution", "big")


def test_a_data_folder_that_is_missing(refused, tmp_path):
    line = refused("train", "--preset", "cgan", "--data", tmp_path / "none", "--out", tmp_path / "run")
    assert f"--data {tmp_path}/none: no manifest.json in it" in line


def test_a_shard_cut_short(refused, tmp_path):
    data = write_phantoms(tmp_path / "data")
    shard = data / "train/00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-10])
    line = refused("train", "--preset", "cgan", "--data", data, "--out", tmp_path / "run")
    assert "train/00000.parquet has" in line
    assert "the manifest says" in line


def test_data_with_too_few_images(refused, tmp_path):
    data = write_phantoms(tmp_path / "data", count=30)
    line = refused("train", "--preset", "dcgan", "--data", data, "--out", tmp_path / "run")
    assert "train has" in line
    assert "at least 32 are needed" in line


def test_a_run_of_another_config_or_no_run_at_all(refused, phantoms, tmp_path, tiny):
    from medgan import config as configs

    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(configs.to_yaml(tiny()))
    arguments = ("train", "--config", tmp_path / "run/config.yaml", "--data", phantoms, "--out", tmp_path / "run")
    line = refused(*arguments, "--set", "loss.name=hinge", "--set", "seed=3")
    assert "another config's run: loss.name=hinge (the run has bce), seed=3 (the run has 0)" in line
    (tmp_path / "home_work").mkdir()
    (tmp_path / "home_work/letter.txt").write_text("x")
    line = refused("train", "--preset", "cgan", "--data", phantoms, "--out", tmp_path / "home_work")
    assert "holds letter.txt and is no run" in line


def test_a_run_folder_that_is_a_file_or_damaged(refused, phantoms, tmp_path):
    train = ("train", "--preset", "cgan", "--data", phantoms, "--out")
    (tmp_path / "file").write_text("x")
    assert "is a file, a run is a folder" in refused(*train, tmp_path / "file")
    (tmp_path / "run/generator").mkdir(parents=True)
    (tmp_path / "run/config.yaml").write_text("a: [")
    assert "run/config.yaml: not YAML" in refused(*train, tmp_path / "run")
    assert "run/config.yaml: not YAML" in refused("report", "--run", tmp_path / "run")
    (tmp_path / "run/generator/model.safetensors").write_bytes(b"x")
    (tmp_path / "run/generator/config.yaml").write_text("a: [")
    generate = ("generate", "--run", tmp_path / "run", "--out", tmp_path / "syn", "--count", 1)
    assert "generator/config.yaml: not YAML" in refused(*generate)


def test_weights_of_another_model_or_of_no_run(refused, phantoms, tmp_path, tiny):
    from medgan import config as configs

    command = ("train", "--preset", "cgan", "--data", phantoms, "--out", tmp_path / "run", "--init")
    assert "no run with a checkpoint" in refused(*command, tmp_path / "none")
    (tmp_path / "other/checkpoints").mkdir(parents=True)
    (tmp_path / "other/config.yaml").write_text(configs.to_yaml(tiny()))
    (tmp_path / "other/checkpoints/000000000064.pt").write_bytes(b"")
    assert "has another model" in refused(*command, tmp_path / "other")


def test_a_relative_path_in_a_submitted_job(refused, phantoms, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({}))
    line = refused("train", "--preset", "cgan", "--data", phantoms, "--out", "runs/mine")
    assert "--out runs/mine: a relative path in a submitted job" in line


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(np.zeros((1, 32, 32), np.uint8)))


@pytest.mark.parametrize("resolution", [48, 0, 16, 2048])
def test_a_resolution_that_is_no_power_of_two_or_out_of_range(refused, tmp_path, resolution):
    line = refused("prepare", "--source", "phantom_cxr", "--out", tmp_path / "data", "--resolution", resolution)
    assert f"--resolution {resolution}: must be a power of two, one of 32, 64, 128" in line


def test_raw_folders_that_cannot_be_used(refused, tmp_path):
    def prepare(raw):
        return refused(
            "prepare", "--source", "kermany_cxr", "--raw", raw, "--out", tmp_path / "data", "--resolution", 32
        )

    assert "no such folder" in prepare(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "expected {train,test,val}/{NORMAL,PNEUMONIA}/" in prepare(tmp_path / "empty")
    (tmp_path / "hollow/train/NORMAL").mkdir(parents=True)
    assert "expected {train,test,val}/{NORMAL,PNEUMONIA}/" in prepare(tmp_path / "hollow")
    for name in ("IM-0001-0001", "IM-0002-0001"):
        (tmp_path / f"words/train/NORMAL/{name}.jpeg").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"words/train/NORMAL/{name}.jpeg").write_text("not an image")
    assert "none of its 2 files is an image" in prepare(tmp_path / "words")
    picture(tmp_path / "names/train/NORMAL/a.png")
    assert "1 of 1 file names are of no published version" in prepare(tmp_path / "names")
    (tmp_path / "film.png").write_bytes(b"film")
    assert "neither a folder nor an archive of files" in prepare(tmp_path / "film.png")
    picture(tmp_path / "odd/train/TUBERCULOSIS/a.png")
    assert "odd: has folders of other classes than NORMAL and PNEUMONIA" in prepare(tmp_path / "odd")


def test_a_source_without_its_raw_folder_or_with_one_too_many(refused, tmp_path):
    rest = ("--out", tmp_path / "data", "--resolution", 32)
    assert "name their folder with --raw" in refused("prepare", "--source", "kermany_cxr", *rest)
    assert "leave --raw out" in refused("prepare", "--source", "phantom_cxr", "--raw", tmp_path, *rest)
    assert "choose one of phantom_cxr, phantom_oct, kermany_cxr" in refused("prepare", "--source", "mri", *rest)
    assert "--limit 0" in refused("prepare", "--source", "phantom_cxr", "--limit", 0, *rest)


def test_a_target_that_holds_other_things(refused, phantoms, tmp_path):
    rest = ("--source", "phantom_cxr", "--resolution", 32)
    (tmp_path / "work").mkdir()
    (tmp_path / "work/thesis.tex").write_text("dear")
    assert "holds files that are not medgan data" in refused("prepare", *rest, "--out", tmp_path / "work")
    data = write_phantoms(tmp_path / "other", count=40)
    write_key(tmp_path / "key")
    assert "holds other data" in refused("prepare", *rest, "--out", data, "--patient-key-file", tmp_path / "key")
    # A raw folder has the very split names of a data folder: it must not be taken for one and emptied.
    picture(tmp_path / "raw/train/NORMAL/IM-0001-0001.png")
    raw = ("--source", "kermany_cxr", "--resolution", 32, "--raw", tmp_path / "raw", "--out", tmp_path / "raw")
    assert "holds files that are not medgan data" in refused("prepare", *raw)


def test_real_images_are_no_release(refused, phantoms):
    assert "holds real images" in refused("evaluate", "--synthetic", phantoms, "--data", phantoms)


def test_generate_evaluate_and_report_refuse_a_folder_that_is_no_run(refused, phantoms, tmp_path):
    run = ("--run", tmp_path / "none")
    assert "no generator/ in it" in refused("generate", *run, "--out", tmp_path / "syn", "--count", 3)
    assert "--count 0: must be at least 1" in refused("generate", *run, "--out", tmp_path / "syn", "--count", 0)
    assert "no generator/ in it" in refused("evaluate", *run, "--data", phantoms)
    assert "no run in it" in refused("report", *run)
