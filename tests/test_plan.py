"""The capacity plan: its formula in closed form, its bytes counted, and what was measured with two workers."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from medgan import config as configs
from medgan.distributed import World
from medgan.plan import Plan, gradient_bytes, measured, table
from medgan.state import TrainState

RESULTS = Path(__file__).parent.parent / "results/scaling.json"


def test_without_a_network_in_the_way_workers_multiply_and_one_worker_has_none():
    plan = Plan(global_batch=64, compute_s=1.0, gradient_bytes=10**8, most_workers=16)
    assert plan.traffic_s(1, bandwidth=1.0) == 0
    assert plan.images_per_s(1, bandwidth=1.0) == 64
    assert plan.images_per_s(8, bandwidth=1e30, latency_s=0) == pytest.approx(8 * 64)
    # Two workers each send and receive the bytes once: half of them to reduce, half to spread.
    assert plan.traffic_s(2, bandwidth=1e9, latency_s=0) == pytest.approx(0.1)
    assert plan.images_per_s(2, 1e9, 0) == pytest.approx(64 / (0.5 + 0.1))


def test_where_communication_takes_over():
    plan = Plan(global_batch=64, compute_s=1.0, gradient_bytes=10**8, most_workers=16)
    # 1 s / W is less than 2 (W - 1) / W * 0.09 s from W = 6.6 on
    assert plan.takeover(1e8 / 0.09, latency_s=0) == 7
    assert plan.takeover(1e30, latency_s=0) is None
    with pytest.raises(ValueError, match="global_batch=64 keeps at most 16 workers busy"):
        plan.images_per_s(17, 1e9)


def test_the_bytes_are_those_of_the_gradients(tiny):
    for settings in ({}, {"precision": "float64"}, {"optim__compression": "bfloat16"}):
        config = tiny(**settings)
        state = TrainState.create(config, World())
        size = 2 if config.optim.compression == "bfloat16" else next(state.ema.parameters()).element_size()
        count = sum(p.numel() for player in (state.generator, state.discriminator) for p in player.module.parameters())
        assert gradient_bytes(config) == size * count


def test_a_step_is_measured_and_the_table_names_what_is_too_many(tiny):
    plan = measured(tiny(), torch.device("cpu"), steps=2)
    assert 1e-4 < plan.compute_s < 60
    lines = table(plan, 10_000, (1, 8, 64), [10])
    assert "MB of gradients a step" in lines[0]
    assert [line.split()[2] for line in lines[2:4]] == ["1", "8"]
    assert "global_batch feeds at most 4: global_batch=32 would feed 8" in lines[3]
    assert tiny(global_batch=32).most_workers == 8
    assert lines[-1].startswith("     10 Gb/s: gradients travel for longer than is computed")


def test_the_job_prints_a_plan_and_writes_nothing(phantoms, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(Path(__file__).parent.parent / "jobs/train.py"), run_name="job")["main"]
    command = ["--preset", "cgan", "--data", phantoms, "--plan", "--set", "model.width=4", "--set", "model.max_width=8"]
    main(command)
    assert "images/s" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(configs.Refused, match="--gigabits fast: give numbers such as 10,100"):
        main([*command, "--gigabits", "fast"])


def test_the_formula_says_what_two_workers_were_measured_to_do():
    """From one worker's step, and from a sum of as many bytes between two: images per second of two, of which waiting
    for each other takes up to a fifth."""
    if not RESULTS.exists():
        pytest.skip("results/scaling.json is not there: make bench ONLY=scaling measures it on an idle machine")
    found = json.loads(RESULTS.read_text())
    for run in found["runs"]:
        plan = Plan(found["global_batch"], run["step_s"]["1"], found["gradient_bytes"], found["global_batch"])
        bandwidth = found["gradient_bytes"] / run["sum_s"]  # of a ring of two: 2 (2 - 1) / 2 = 1
        assert 0.8 < found["global_batch"] / run["step_s"]["2"] / plan.images_per_s(2, bandwidth, 0) < 1.05
