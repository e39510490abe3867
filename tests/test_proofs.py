"""What benches and proofs claim, without running them: a figure that misses what is wanted, a search that took long."""

import ast
import random
import subprocess
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from medgan.distributed import World
from medgan.models.convolution import conv2d
from medgan.plan import random_batch
from medgan.state import TrainState
from medgan.step import train_step
from medgan.terminal import Failed

from .bench.__main__ import WANTED, missed
from .bench.step import Operations
from .prove import mistakes, mutations, search, soak

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("name", "figures", "told"),
    [
        ("scaling/2workers", {"ours": 300, "ratio": 1.7}, "ratio 1.8"),
        ("scaling/2workers", {"ours": 1, "ratio": 1.81}, ""),
        ("checkpoint/stall", {"ours": 2.1, "ratio": 9}, "at most 2"),
        ("checkpoint/stall", {"ours": 0.1, "ratio": 0.1}, ""),
        ("search/busy", {"ours": 80, "ratio": 2}, "ours 90"),
        ("step/dcgan64", {"ours": 9, "ratio": 1.0}, "ratio 2.8"),
        ("step/memory", {"ours": 9, "ratio": 0.1}, ""),
    ],
)
def test_a_row_that_misses_what_is_wanted_is_told(name, figures, told):
    assert missed({"name": name, **figures}, "flags: amx_bf16") == told


def test_what_bfloat16_is_worth_is_wanted_only_where_the_processor_has_it():
    assert "step/dcgan64" in WANTED
    assert missed({"name": "step/dcgan64", "ours": 9, "ratio": 1.0}, "flags: avx2") == ""


def test_the_minutes_of_a_search_are_those_of_all_its_calls_or_not_claimed(tmp_path, monkeypatch):
    seconds = iter(range(0, 10_000, 600))
    monkeypatch.setattr(search.time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(search.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0))
    words = ["jobs/search.py", "--out", str(tmp_path / "asha")]
    assert search.search(words)[1] == 10
    (tmp_path / "asha").mkdir()
    assert search.search(words)[1] == 20

    def cut(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(search.subprocess, "run", cut)
    with pytest.raises(KeyboardInterrupt):
        search.search(words)
    with pytest.raises(SystemExit, match="an earlier call was cut"):
        search.search(words)


def test_a_soak_draws_until_something_was_killed():
    killed, found = [], iter([None, None, "7"])

    def kill(name, argv):
        killed.append(argv)
        return subprocess.CompletedProcess(argv, 0)

    hosts = SimpleNamespace(names=lambda: [soak.HEAD], exec=kill)
    job = SimpleNamespace(worker=lambda name: next(found))
    assert soak.disturb(hosts, job, random.Random(0)) == f"the worker on {soak.HEAD} was killed"
    assert killed == [["kill", "-9", "7"]]


def test_operations_of_products_are_counted_also_where_a_penalty_is_taken(tiny):
    x, weight = torch.randn(2, 8, 16, 16, requires_grad=True), torch.randn(4, 8, 3, 3, requires_grad=True)
    with Operations() as counted:
        conv2d(x, weight, padding=1).sum().backward()
    assert counted.number == 3 * 2 * (2 * 4 * 8 * 3**2 * 16**2)  # forwards and to both gradients, two for a product
    state = TrainState.create(tiny(loss__r1_gamma=1.0), World())
    with Operations() as plain:
        state.images_seen = state.config.global_batch
        train_step(state, random_batch(state.config))
    with Operations() as penalised:
        state.images_seen = 0
        train_step(state, random_batch(state.config))
    assert penalised.number > plain.number > 0


@cache
def parsed(file):
    return ast.parse((ROOT / "tests" / file).read_text())


@pytest.mark.parametrize("mutation", mistakes.MUTATIONS, ids=lambda mutation: f"{mutation.module}-{mutation.test}")
def test_a_mistake_can_be_made_and_there_is_a_fast_test_to_notice_it(mutation):
    text = (ROOT / mutation.module).read_text()
    assert text.count(mutation.before) == 1
    compile(text.replace(mutation.before, mutation.after), mutation.module, "exec")
    assert mutation.before != mutation.after
    file, name = mutation.test.split("::")
    tree = parsed(file)
    (test,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    marks = [node.value for node in tree.body if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node)]
    words = " ".join(map(ast.unparse, [*marks, *test.decorator_list]))
    assert not [mark for mark in ("slow", "heavy", "ray", "hosts", "browser", "real_data") if f"mark.{mark}" in words]


def test_of_every_module_mistakes_are_made_or_it_is_said_why_not():
    folders = ("medgan", "tune", "jobs", "cluster")
    modules = {str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*.py")}
    assert modules == mistakes.MISTAKES.keys() | mistakes.WITHOUT.keys()
    assert not mistakes.MISTAKES.keys() & mistakes.WITHOUT.keys()
    assert len(set(mutations.KNOWN)) == len(mistakes.MUTATIONS)


def test_what_notices_mistakes_is_what_make_test_runs():
    heavy = mutations.FAST.removeprefix("not slow and not (").removesuffix(")")
    assert f"HEAVY := {heavy}\n" in (ROOT / "Makefile").read_text()


def test_a_mistake_is_judged_by_its_test_and_undone(tmp_path, monkeypatch):
    one = mistakes.Mutation("m.py", "1 + 1", "1 - 1", "test_m.py::test_two")
    (tmp_path / "m.py").write_text("two = 1 + 1\n")
    seen, codes = [], iter([0, 1, 0, None, 0, 0, 0, 2, 1])

    def run(copy, tests):
        seen.append(((copy / "m.py").read_text(), tests))
        return next(codes), ""

    monkeypatch.setattr(mutations, "run", run)
    rows = [row for _ in range(3) for row in mutations.judge(tmp_path, [one], {"commit": "c"})]
    assert [(row["red"], row["over"], row["commit"]) for row in rows] == [
        (True, False, "c"),
        (True, True, "c"),
        (False, False, "c"),
    ]
    assert seen[:2] == [
        ("two = 1 + 1\n", ["tests/test_m.py::test_two"]),
        ("two = 1 - 1\n", ["tests/test_m.py::test_two"]),
    ]
    assert (tmp_path / "m.py").read_text() == "two = 1 + 1\n"
    with pytest.raises(Failed, match="ended tests/test_m.py::test_two with 2"):
        list(mutations.judge(tmp_path, [one], {}))
    with pytest.raises(Failed, match="its tests are not green without a mistake"):
        list(mutations.judge(tmp_path, [one], {}))
