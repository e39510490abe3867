"""Cells: each computed once, kept, taken over; and the same in this process and on a cluster."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from medgan import cells, ray_tasks
from medgan.cells import Cell
from medgan.config import Refused

LOG = "MEDGAN_TEST_CELLS"


def called(name):
    with open(os.environ[LOG], "a") as log:
        log.write(f"{name}\n")


def count(*, name, value):
    called(name)
    return {"value": value, "row": np.arange(value, dtype=np.int16)}


def add(*parts, name):
    called(name)
    return {"value": sum(part["value"] for part in parts), "rows": np.concatenate([part["row"] for part in parts])}


def stumble(*, name):
    called(name)
    if os.environ.get("MEDGAN_TEST_STUMBLE"):
        raise ValueError("it is dark")
    return {"value": 1, "row": np.zeros(1, np.int16)}


def die_once(*, name, mark):
    called(name)
    if not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"value": 3}


def cell(call, *needs, **arguments):
    return Cell(arguments["name"], f"tests.test_kept_cells:{call}", arguments, needs)


@pytest.fixture(scope="module")
def log_file(tmp_path_factory):
    """Set for the whole file, so that a cluster's workers inherit it."""
    path, patch = tmp_path_factory.mktemp("cells") / "log", pytest.MonkeyPatch()
    patch.setenv(LOG, str(path))
    yield path
    patch.undo()


@pytest.fixture
def log(log_file):
    log_file.write_text("")
    return lambda: log_file.read_text().split()


def quiet(pace):
    pass


def test_a_cell_is_computed_after_what_it_needs_and_never_again(log, tmp_path):
    two, five = cell("count", name="two", value=2), cell("count", name="five", value=5)
    total = cell("add", two, five, two, name="total")
    folder, shown = str(tmp_path / "cells"), []
    cells.run([total, five], folder, lambda pace: shown.append((pace.done, pace.of)))
    assert sorted(log()[:2]) == ["five", "two"]
    assert log()[2:] == ["total"]
    found = total.load(folder)
    assert found["value"] == 9
    assert found["rows"].tolist() == [0, 1, 0, 1, 2, 3, 4, 0, 1]
    assert shown == [(0, 3), (1, 3), (2, 3), (3, 3)]
    cells.run([total], folder, quiet)
    assert len(log()) == 3
    more = cell("add", total_row := cell("count", name="two", value=2), name="more")
    assert total_row.digest == two.digest
    cells.run([more], folder, quiet)
    assert log()[3:] == ["more"]


def test_what_a_cell_is_depends_on_its_call_arguments_and_needs_and_not_on_its_name():
    two = cell("count", name="two", value=2)
    assert Cell("other", two.call, two.arguments).digest == two.digest
    assert cell("count", name="two", value=3).digest != two.digest
    assert cell("add", two, name="x").digest != cell("add", two, two, name="x").digest


WRITTEN = {
    "medgan/task.py": "import medgan.direct\ndef work():\n    from medgan.deep.lazy import two\n    return two()\n",
    "medgan/direct.py": 'X = 1\n"""What it is."""\n',
    "medgan/deep/__init__.py": "",
    "medgan/deep/lazy.py": "import os\n\n\ndef two():\n    return 2\n",
    "medgan/other.py": "Y = 1\n",
}


@pytest.mark.parametrize(
    ("name", "before", "after", "same"),
    [
        ("medgan/task.py", "return two()", "return two() + 1", False),
        ("medgan/direct.py", "X = 1", "X = 2", False),
        ("medgan/deep/lazy.py", "return 2", "return 3", False),
        ("medgan/deep/__init__.py", "", "Z = 1", False),
        ("medgan/other.py", "Y = 1", "Y = 2", True),
        ("medgan/direct.py", "What it is.", "What it is, better said.", True),
        ("medgan/direct.py", "X = 1", "X = 1  # one", True),
        ("medgan/task.py", "def work():", 'def work():\n    """Returns two."""', True),
        ("medgan/task.py", "def work():\n", "\ndef work():\n", True),
    ],
)
def test_what_is_kept_stays_while_only_words_change_or_code_that_it_does_not_reach(tmp_path, name, before, after, same):
    roots = tmp_path / "before", tmp_path / "after"
    for root in roots:
        for file, text in WRITTEN.items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(text.replace(before, after, 1) if (root, file) == (roots[1], name) else text)
    one, other = (cells.code("medgan.task", root) for root in roots)
    assert (one == other) == same


def test_a_task_reaches_what_its_figures_come_from():
    from medgan.host import ROOT

    for name in ("medgan.metrics.privacy", "medgan.metrics.utility", "medgan.release"):
        assert cells.code(name) == cells.code(name, ROOT) != cells.code("medgan.names")


def test_a_stopped_evaluation_goes_on_with_what_is_missing(log, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDGAN_TEST_STUMBLE", "1")
    total = cell("add", cell("count", name="first", value=1), cell("stumble", name="second"), name="total")
    with pytest.raises(ValueError, match="it is dark"):
        cells.run([total], str(tmp_path), quiet)
    monkeypatch.delenv("MEDGAN_TEST_STUMBLE")
    cells.run([total], str(tmp_path), quiet)
    assert log() == ["first", "second", "second", "total"]


def test_a_result_that_was_cut_while_it_was_written_does_not_count(log, tmp_path):
    two = cell("count", name="two", value=2)
    (tmp_path / f"{two.digest}.npz").write_bytes(b"half")
    (tmp_path / f"{two.digest}.json.tmp").write_bytes(b"{")
    cells.run([two], str(tmp_path), quiet)
    assert two.load(str(tmp_path))["row"].tolist() == [0, 1]


def kinds(calls):
    """Cells of such kinds, each after those before it that its number of needs says."""
    made = []
    for number, (kind, needs) in enumerate(calls):
        made.append(Cell(f"{kind} {number}", kind, {"number": number}, tuple(made[number - needs : number])))
    return made


@pytest.mark.parametrize(
    ("calls", "done", "slots", "told"),
    [
        # Quick cells say nothing of a slow one that is left, whose kind nobody has measured.
        ([("quick", 0)] * 20 + [("slow", 0)], [3.0] * 20, 1, ""),
        ([("quick", 0)] * 21 + [("slow", 0)], [3.0] * 11, 1, "at least 0:30 left"),
        # Two kinds, both measured: 3 of 4 s and 4 of 100 s; on however many hosts no sooner than the longest of them.
        ([("quick", 0), ("slow", 0)] + [("quick", 0)] * 3 + [("slow", 0)] * 4, [4.0, 100.0], 1, "about 6:52 left"),
        ([("quick", 0), ("slow", 0)] + [("quick", 0)] * 3 + [("slow", 0)] * 4, [4.0, 100.0], 2, "about 3:26 left"),
        ([("quick", 0), ("slow", 0)] + [("quick", 0)] * 3 + [("slow", 0)] * 4, [4.0, 100.0], 100, "about 1:40 left"),
        # One after the other, whatever the number of hosts.
        ([("slow", 0)] + [("slow", 1)] * 3, [100.0], 100, "about 5:00 left"),
        ([("slow", 0)] * 3, [], 1, ""),
        ([("slow", 0)] * 3, [50.0] * 3, 1, ""),
    ],
)
def test_the_time_left_is_that_of_cells_of_the_same_kind_and_of_no_other(calls, done, slots, told):
    made = kinds(calls)
    pace = cells.Pace(made, slots)
    for one, seconds in zip(made, done, strict=False):
        pace.start(one)
        pace.finish(one, seconds)
    assert (pace.done, pace.of) == (len(done), len(calls))
    assert pace.told() == told


def test_what_runs_has_less_left_and_once_it_takes_longer_than_others_did_nobody_knows_how_much():
    now = [0.0]
    first, second, third = kinds([("slow", 0)] * 3)
    pace = cells.Pace([first, second, third], clock=lambda: now[0])
    pace.start(first)
    assert (pace.name, pace.told()) == ("slow 0", "")
    pace.finish(first, 60.0)
    pace.start(second)
    now[0] = 20.0
    assert pace.told() == "about 1:40 left"
    now[0] = 200.0
    assert pace.told() == "at least 1:00 left"


@pytest.fixture(scope="module")
def cluster(log_file):
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


@pytest.mark.ray
def test_a_cluster_computes_the_same_and_mends_a_task_that_died(cluster, log, tmp_path):
    parts = [cell("count", name=f"part{index}", value=index + 1) for index in range(6)]
    mortal = cell("die_once", name="mortal", mark=str(tmp_path / "mark"))
    total = cell("add", *parts, name="total")
    cells.run([total], str(tmp_path / "here"), quiet)
    shown = []
    ray_tasks.run([total, mortal], str(tmp_path / "there"), lambda pace: shown.append((pace.done, pace.of)))
    ours, theirs = total.load(str(tmp_path / "here")), total.load(str(tmp_path / "there"))
    assert ours["value"] == theirs["value"]
    assert np.array_equal(ours["rows"], theirs["rows"])
    assert log().count("mortal") == 2
    assert shown[-1] == (8, 8)


@pytest.mark.ray
def test_what_a_cell_raises_on_a_cluster_is_raised_here_as_it_was(cluster, log, tmp_path):
    late = cell("add", cell("fail", name="fail"), name="late")
    with pytest.raises(ValueError, match="it is dark"):
        ray_tasks.run([late], str(tmp_path), quiet)
    assert "late" not in log()


def fail(*, name):
    raise ValueError("it is dark")


def sleep(*, name):
    time.sleep(60)
    return {}


@pytest.mark.ray
def test_ctrl_c_stops_at_once_and_says_how_to_go_on(cluster, log, tmp_path):
    from medgan.terminal import Stopped

    def interrupt(pace):
        if pace.done:
            os.kill(os.getpid(), signal.SIGINT)

    began = time.monotonic()
    wanted = [cell("count", name="quick", value=1), cell("sleep", name="slow")]
    with pytest.raises(Stopped, match="1 of 2 cells are left; to go on"):
        ray_tasks.run(wanted, str(tmp_path), interrupt)
    assert time.monotonic() - began < 30
    assert wanted[0].load(str(tmp_path))["value"] == 1


@pytest.mark.parametrize(
    ("resources", "asked", "options", "limit", "visible"),
    [
        ({"CPU": 8.0}, {}, {"num_cpus": 1, "num_gpus": 0}, 8, None),
        ({"CPU": 8.0, "GPU": 2.0}, {}, {"num_cpus": 0, "num_gpus": 1}, 2, None),
        ({"CPU": 8.0, "GPU": 2.0}, {"use": "cpu"}, {"num_cpus": 1, "num_gpus": 0}, 8, ""),
        ({}, {"use": "gpu", "workers": 4}, {"num_cpus": 0, "num_gpus": 1}, 4, None),
    ],
)
def test_cells_take_what_is_asked_for_also_what_an_autoscaler_has_to_add(resources, asked, options, limit, visible):
    made, at_once = ray_tasks.room(resources, **asked)
    environment = made.pop("runtime_env", {}).get("env_vars", {})
    assert (made, at_once, environment.get("CUDA_VISIBLE_DEVICES")) == (options, limit, visible)


@pytest.mark.parametrize(
    ("resources", "use", "words"),
    [
        ({}, "auto", "the cluster has no CPU and no GPU yet: say which to wait for, such as --use gpu --workers 8"),
        ({"CPU": 8.0}, "gpu", "the cluster has no GPU yet: name --workers"),
    ],
)
def test_where_there_is_no_room_for_a_cell_it_has_to_be_said_what_to_wait_for(resources, use, words):
    with pytest.raises(Refused, match=words):
        ray_tasks.room(resources, use=use)
