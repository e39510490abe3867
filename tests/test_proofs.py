"""What benches and proofs claim, without running them: a figure that misses what is wanted, a search that took long."""

import random
import subprocess
from types import SimpleNamespace

import pytest
import torch

from medgan.distributed import World
from medgan.models.convolution import conv2d
from medgan.plan import random_batch
from medgan.state import TrainState
from medgan.step import train_step

from .bench.__main__ import WANTED, missed
from .bench.step import Operations
from .prove import search, soak


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
