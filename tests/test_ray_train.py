"""The driver of a training, with Ray stood in for: what is asked of Ray, whose events count, how a run ends."""

import queue
from types import SimpleNamespace

import pytest
import ray.train.torch

from medgan import ray_train
from medgan.ray_train import Outcome, Workers

from .test_refusals import job


class Stand:
    """Ray without processes: `script` is what the workers do, given a function that takes their events."""

    def __init__(self, monkeypatch, script):
        self.trainers, self.queues = [], []
        stand = self

        class Trainer:
            def __init__(self, loop, **options):
                stand.trainers.append(options)

            def fit(self):
                script(stand.queues[0].put)

        class Queue(queue.Queue):
            def __init__(self, **options):
                super().__init__()
                stand.queues.append(self)

        context = SimpleNamespace(get_node_id=lambda: "00" * 28)
        monkeypatch.setattr(ray_train.ray, "get_runtime_context", lambda: context)
        monkeypatch.setattr(ray_train.ray, "cluster_resources", dict)
        monkeypatch.setattr(ray_train, "Queue", Queue)
        monkeypatch.setattr(ray_train, "Empty", queue.Empty)
        monkeypatch.setattr(ray.train.torch, "TorchTrainer", Trainer)


def fit(out, **options):
    shown = []
    interrupt = ray_train.Interrupt()
    outcome = ray_train.fit({}, "data", str(out), Workers(2, 2), shown.append, interrupt=interrupt, **options)
    return outcome, shown


@pytest.mark.parametrize("gpu", [None, False, True])
def test_workers_are_asked_for_on_gpus_that_are_not_there_yet(monkeypatch, tmp_path, gpu):
    stand = Stand(monkeypatch, lambda say: say({"event": "done"}))
    fit(tmp_path / "run", gpu=gpu)
    assert [options["scaling_config"].use_gpu for options in stand.trainers] == [gpu is True]


def test_the_job_asks_for_what_it_is_told_and_says_what_it_waits_for(monkeypatch, phantoms, tmp_path, capsys):
    asked = {}

    def stand_in(config, data, out, workers, on_event, init, **options):
        asked.update(options, workers=workers, precision=config["precision"])
        best = {"kid": 1.0, "images_seen": 32}
        return Outcome({"done": {"images_seen": 32, "best": best, "evaluate_share": 0.0, "save_share": 0.0}})

    monkeypatch.setattr(ray_train, "connect", lambda verbose: {})
    monkeypatch.setattr(ray_train, "fit", stand_in)
    command = ["--preset", "cgan", "--data", phantoms, "--out", str(tmp_path / "run"), "--use", "gpu"]
    job("train")([*command, "--workers", "1-8", "--wait"])
    assert (asked["gpu"], asked["workers"], asked["precision"]) == (True, Workers(1, 8), "bfloat16")
    assert "the cluster has 0 GPUs: waiting for 1\ntraining cgan" in capsys.readouterr().out
