"""The whole way from films to a search, with names, paths and keys that are looked for in every byte that is left."""

import os
import tempfile
from pathlib import Path

import pytest

from ..conftest import KEY, write_key
from ..test_ingest import film, put
from ..test_ray import run_job, settings, started_head

LITTLE = settings(total_images=320, tracking__wandb="auto")
SECRET = "hunter2-of-the-storage"


@pytest.fixture
def head():
    """Ray with two CPUs, whose logs stay for as long as the test; its folder."""
    folder = Path(tempfile.mkdtemp(prefix="mg-", dir="/tmp"))
    with started_head(folder, 2, {**os.environ, **under(folder)}):
        yield folder


def under(folder):
    return {"RAY_TMPDIR": str(folder), "HOME": str(folder), "RAY_AUTH_MODE": "disabled"}


def found(words, *folders):
    """Which of the words are where, in names of files and in their bytes."""
    for folder in folders:
        for path in folder.rglob("*"):
            content = str(path.relative_to(folder)).encode() + (path.read_bytes() if path.is_file() else b"")
            yield from ((str(path), word) for word in words if word.encode() in content.lower())


@pytest.mark.ray
@pytest.mark.slow  # five commands on a cluster; each part has its own fast test in test_names.py
def test_no_patient_path_or_key_is_in_any_byte_of_what_is_made_sent_or_logged(head, tmp_path):
    home = tmp_path / "mueller"
    raw, data, run, release, search = (home / name for name in ("films", "data", "run", "release", "search"))
    for number in range(360):
        put(raw, f"{('NORMAL', 'MASS')[number % 2]}/anna_{number // 2}-{number}.png", film(number, 32))
    put(raw, "NORMAL/anna_broken.png", b"no image")
    key = write_key(tmp_path / "key")
    kept = {**under(head), "WANDB_MODE": "offline", "AWS_SECRET_ACCESS_KEY": SECRET}
    keyed = ["--patient-key-file", key]
    films = ["--source", "image_folder", "--raw", raw, "--patient-regex", r"[a-z]+_\d+", "--resolution", 32]
    one = ["--trials", 1, "--space", "model.name=cgan", "--scheduler", "none", "--finalists", 0]
    said = ""
    for name, *words in (
        ("prepare", *films, "--out", data, *keyed),
        ("train", "--preset", "cgan", "--data", data, "--out", run, "--workers", 1, *LITTLE),
        ("generate", "--run", run, "--out", release, "--per-class", 4, "--data", data, "--png", "--dicom", *keyed),
        ("search", "--data", data, "--out", search, *one, *LITTLE),
        ("report", "--search", search),
    ):
        code, output = run_job(name, *words, env=kept)
        assert code == 0, output
        said += output
    assert list(run.rglob("*.wandb"))
    assert list(search.rglob("*.wandb"))
    logs = head / "ray"
    assert len(list(logs.rglob("*.out"))) > 3
    of_persons = ("anna_", KEY.hex(), SECRET)
    assert not list(found(of_persons, data, run, release, search, logs))
    # W&B's own folder names where it lies.
    assert not [where for where, _ in found(("mueller",), data, run, release, search) if "/wandb/" not in where]
    assert not [word for word in of_persons if word in said.replace(str(raw), "")]
