import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medgan.pixels import encode_png
from medgan.tracking import JsonlTracker, NullTracker, Several, WandbTracker, has_wandb_key, read_rows


def test_rows_past_the_resumed_point_are_cut(tmp_path):
    file = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(file, 0)
    for images_seen in (0, 64, 128):
        tracker.log(images_seen, {"loss/D": float(images_seen)})
    tracker.close()
    tracker = JsonlTracker(file, 64)
    tracker.log(128, {"loss/D": -1.0})
    tracker.close()
    assert [(row["images_seen"], row["loss/D"]) for row in read_rows(file)] == [(0, 0.0), (64, 64.0), (128, -1.0)]
    JsonlTracker(file, 0).close()  # a run that starts again from nothing
    assert read_rows(file) == []


def test_wandb_writes_an_offline_run_with_figures_pictures_and_config(tiny, tmp_path):
    tracker = Several(NullTracker(), WandbTracker(tiny(), tmp_path, "abc", "demo"))
    tracker.log(0, {"metric/kid": 3.0})
    tracker.picture(0, "samples", encode_png(np.zeros((1, 8, 8), np.uint8)))
    tracker.log(64, {"metric/kid": 2.0})
    tracker.close()
    folders = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 1
    assert list(folders[0].glob("files/media/images/*.png"))
    leet = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(folders[0])]
    output = subprocess.run(leet, capture_output=True, check=True, timeout=60, text=True).stdout
    items = [record["history"] for record in map(json.loads, output.splitlines()) if record["type"] == "history"]
    rows = [(row["step"]["num"], row["item"]) for row in items]
    assert [(step, row["metric/kid"]) for step, row in rows] == [(0, 3), (64, 2)]
    assert rows[0][1]["samples.width"] == 8


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"WANDB_API_KEY": "x" * 40}, True),
        ({"WANDB_API_KEY": "x" * 40, "WANDB_MODE": "offline"}, False),
        ({}, False),
    ],
)
def test_wandb_is_online_only_where_a_key_is_set(monkeypatch, tmp_path, environment, expected):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert has_wandb_key() is expected


def test_a_key_in_netrc_counts(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert has_wandb_key()
