"""Rows in metrics.jsonl, and W&B: offline, sent to a stand-in server on loopback, and with servers that are ill."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from medgan.folder import RunFolder
from medgan.pixels import encode_png
from medgan.tracking import JsonlTracker, NullTracker, Several, WandbTracker, has_wandb_key, read_rows

from .conftest import free_port
from .wandb_stand_in import serve

KEY = "0123456789abcdef" * 2 + "01234567"


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


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder with a manifest and a generator, and a HOME of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = RunFolder(str(tmp_path / "run"))
    folder.write("manifest.json", "{}")
    folder.write("generator/model.safetensors", b"weights")
    return folder


def write(config, folder, rows, failed=False, alarm=None):
    """Rows and a grid of two classes, as a run writes them."""
    tracker = Several(NullTracker(), WandbTracker(config, folder, "abc", "demo", print))
    for images_seen, row in rows:
        tracker.log(images_seen, row)
    if alarm:
        tracker.alert("collapse", alarm)
    tracker.picture(rows[-1][0], "samples", encode_png(np.zeros((1, 8, 12), np.uint8)))
    tracker.close(failed)


def offline_folders(folder):
    return sorted((folder.work / "wandb").glob("offline-run-*"))


def inspected(folder):
    """Records of an offline run as `wandb leet` reads them back."""
    leet = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(folder)]
    output = subprocess.run(leet, capture_output=True, check=True, timeout=60, text=True).stdout
    return [json.loads(line) for line in output.splitlines()]


def test_wandb_writes_an_offline_run_with_figures_pictures_config_and_names(tiny, run):
    config = tiny(tracking__group="search", tracking__tags=["first"])
    write(config, run, [(0, {"metric/kid": 3.0}), (64, {"metric/kid": 2.0})])
    (folder,) = offline_folders(run)
    assert len(list(folder.glob("files/media/images/**/*.png"))) == 3  # the grid, and each class's row of it
    records = inspected(folder)
    items = [record["history"] for record in records if record["type"] == "history"]
    rows = [(row["step"]["num"], row["item"]) for row in items]
    assert [(step, row["metric/kid"]) for step, row in rows] == [(0, 3), (64, 2)]
    assert rows[1][1]["samples.width"] == 12
    assert rows[1][1]["samples/PNEUMONIA.height"] == 4
    told = next(record["run"] for record in records if record["type"] == "run")
    assert (told["run_group"], told["tags"]) == ("search", ["cgan", "bce", "first"])
    assert told["display_name"] == "cgan bce demo"
    text = json.dumps(records)
    assert '"step_metric": "images_seen"' in text or '"step_metric_index"' in text


def test_pictures_of_a_class_of_any_name_lie_in_the_runs_folder(tiny, run, tmp_path):
    config = tiny()
    classes = ("N/A", "../../../../../x")
    config = config.model_copy(update={"data": config.data.model_copy(update={"classes": classes})})
    write(config, run, [(64, {"metric/kid": 2.0})])
    (folder,) = offline_folders(run)
    pictures = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.png")}
    assert len(pictures) == 3
    media = (folder / "files/media/images/samples").relative_to(tmp_path)
    assert len([path for path in pictures if path.parent == media]) == 2


def test_the_generator_lies_in_the_runs_folder_and_nowhere_else(tiny, run, monkeypatch, tmp_path):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    write(tiny(total_images=64), run, [(64, {"metric/kid": 2.0})])
    (folder,) = offline_folders(run)
    found = {path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"weights"}
    kept = run.work / "generator/model.safetensors"
    assert found == {kept, folder / "artifacts/generator-abc/model.safetensors"}


def test_a_run_in_three_folders_becomes_one_on_the_server_with_its_artifacts_and_alerts(tiny, run, monkeypatch):
    write(tiny(total_images=256, tracking__wandb="auto"), run, [(0, {"metric/kid": 4.0})])  # nobody sends this one
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    time.sleep(1.1 - time.time() % 1)  # W&B names folders by the second
    with serve() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        config = tiny(total_images=256, tracking__wandb="auto")
        write(config, run, [(32, {"metric/kid": 3.0}), (64, {"metric/kid": 2.0, "metric/coverage": 0.8})])
        write(config, run, [(128, {"metric/kid": 1.0, "metric/coverage": 0.1}), (256, {"metric/kid": 1.5})])
    assert len(offline_folders(run)) == 3
    assert list(server.history) == ["abc"]
    assert [row["images_seen"] for row in server.history["abc"]] == [0, 32, 64, 128, 256]
    assert [row["metric/kid"] for row in server.history["abc"]] == [4, 3, 2, 1, 1.5]
    assert server.summary["abc"]["metric/kid"]["min"] == 1
    assert server.done["abc"] == 0
    used = {call["artifactID"] for call in server.of("UseArtifact")}
    assert used == {f"dataset:data-{config.data.manifest_sha256[:12]}"}
    assert server.uploads["model:generator-abc/model.safetensors"] == b"weights"
    assert [call["title"] for call in server.of("NotifyScriptableRunAlert")] == ["cgan bce demo: finished"]
    assert any("samples" in name for name in server.uploads)


def test_a_collapse_and_a_failure_are_alerts(tiny, run, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with serve() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        try:
            raise ValueError("loss/D is nan at 192 images")
        except ValueError:
            write(tiny(tracking__wandb="auto"), run, [(64, {"loss/D": 1.0})], failed=True, alarm="samples grow alike")
    alerts = {call["title"].rpartition(": ")[2]: call["text"] for call in server.of("NotifyScriptableRunAlert")}
    assert alerts["collapse"] == "samples grow alike"
    assert alerts["stopped"] == "ValueError: loss/D is nan at 192 images"
    assert server.done["abc"] == 1


HEAVY = [pytest.param(fault, marks=pytest.mark.heavy) for fault in ("dies", "is not there")]


@pytest.mark.parametrize("fault", ["refuses", "hangs", *HEAVY])
def test_a_server_that_is_ill_neither_stops_nor_slows_a_run_and_nothing_is_lost(fault, tiny, run, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    told = []
    with serve(fault) as server:
        monkeypatch.setenv(
            "WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}" if fault == "is not there" else server.url
        )
        tracker = WandbTracker(tiny(tracking__wandb="auto", tracking__wait_s=3), run, "abc", "demo", told.append)
        slowest = 0.0
        for step in range(60):
            began = time.monotonic()
            tracker.log(step, {"metric/kid": 60.0 - step})
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.05)
        assert slowest < 0.5
        began = time.monotonic()
        tracker.close()
        assert time.monotonic() - began < 15
        assert tracker.courier.process.poll() is not None
    (folder,) = offline_folders(run)
    assert told == [f"W&B did not take everything; to send it later: wandb sync {folder}"]
    assert sum(record["type"] == "history" for record in inspected(folder)) == 60
    with serve() as server:
        sync = [str(Path(sys.executable).parent / "wandb"), "sync", "--yes", str(folder)]
        environment = {**os.environ, "WANDB_BASE_URL": server.url}
        subprocess.run(sync, env=environment, cwd=run.work, capture_output=True, check=True, timeout=90)
    assert [row["images_seen"] for row in server.history["abc"]] == list(range(60))


class Broken:
    """A W&B run whose process is gone."""

    name = id = "abc"

    def __getattr__(self, name):
        def call(*_, **__):
            raise ConnectionResetError("Connection lost")

        return call


def test_a_wandb_that_fails_is_left_out_and_says_so_once(tiny, run, monkeypatch):
    told = []
    tracker = WandbTracker(tiny(tracking__wandb="offline"), run, "abc", "demo", told.append)
    real, tracker.run = tracker.run, Broken()
    for step in range(3):
        tracker.log(step, {"loss/D": 1.0})
    tracker.alert("collapse", "samples grow alike")
    tracker.picture(3, "samples", encode_png(np.zeros((1, 8, 12), np.uint8)))
    tracker.close()
    (line,) = told
    assert line.startswith("W&B failed (ConnectionResetError: Connection lost) and is left out")
    real.finish()
    monkeypatch.setattr("wandb.init", Broken().init)
    WandbTracker(tiny(tracking__wandb="offline"), run, "abc", "demo", told.append).close(failed=True)
    assert told == [line, line]


def test_where_a_part_of_a_run_ends_nobody_is_told_or_waited_for(tiny, run, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    told = []
    with serve("hangs") as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        config = tiny(total_images=256, tracking__wandb="auto")
        tracker = WandbTracker(config, run, "abc", "demo", told.append, until=128)
        tracker.log(128, {"loss/D": 1.0})
        began = time.monotonic()
        tracker.close()
        assert time.monotonic() - began < 2
        tracker.courier.process.wait(20)
    assert told == []
    text = json.dumps(inspected(offline_folders(run)[0]))
    assert "loss/D" in text
    assert "generator-abc" not in text
    assert "finished" not in text


def test_the_api_key_is_in_no_file_and_in_no_process_list(tiny, run, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with serve() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        tracker = WandbTracker(tiny(tracking__wandb="auto"), run, "abc", "demo", print)
        tracker.log(0, {"metric/kid": 1.0})
        titles = []
        for _ in range(20):
            time.sleep(0.1)
            for entry in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):  # it has ended
                    titles.append(entry.read_bytes())
        tracker.close()
    assert any(b"beta" in title and b"sync" in title for title in titles)
    assert not any(KEY.encode() in title for title in titles)
    files = [path for path in run.work.parent.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not any(KEY.encode() in path.read_bytes() for path in files if path.name != ".netrc")


def test_what_sends_a_run_ends_with_the_process_that_made_it(run, monkeypatch, tmp_path):
    with serve("hangs") as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        (tmp_path / "offline").mkdir()
        code = (
            "import sys; from pathlib import Path; from medgan.tracking import Courier; "
            "c = Courier(Path(sys.argv[1]), 'abc'); print(c.process.pid, flush=True); sys.stdin.read()"
        )
        environment = {**os.environ, "WANDB_BASE_URL": server.url}
        parent = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "offline")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        shell = int(parent.stdout.readline())
        parent.kill()
        parent.communicate()
        end = time.monotonic() + 20
        while Path(f"/proc/{shell}").exists() and "Z (zombie)" not in Path(f"/proc/{shell}/status").read_text():
            assert time.monotonic() < end
            time.sleep(0.1)


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


def test_a_key_in_netrc_sends_a_run_to_a_server_of_ones_own(tiny, run, monkeypatch, tmp_path):
    """Found where W&B finds it: by host and port, in $NETRC too, also in a file that others may read."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert not has_wandb_key()
    with serve() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        lines = f"machine {server.url.removeprefix('http://')} login user password {KEY}\n"
        (tmp_path / "elsewhere").write_text(lines)
        assert not has_wandb_key()
        monkeypatch.setenv("NETRC", str(tmp_path / "elsewhere"))
        assert has_wandb_key()
        monkeypatch.delenv("NETRC")
        (tmp_path / ".netrc").write_text(lines)
        write(tiny(total_images=64, tracking__wandb="auto"), run, [(64, {"metric/kid": 2.0})])
    assert server.keys == {KEY}
    assert [row["metric/kid"] for row in server.history["abc"]] == [2]
