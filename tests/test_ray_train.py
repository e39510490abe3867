"""The driver of a training, with Ray stood in for: what is asked of Ray, whose events count, how a run ends."""

import inspect
import queue
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray._private.node
import ray.train.torch
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import _AutoscalingCoordinatorActor

from medgan import ray_connect, ray_train
from medgan.config import Refused
from medgan.folder import RunFolder
from medgan.lease import Lease
from medgan.ray_train import Outcome, Workers
from medgan.terminal import Failed, command

from .test_refusals import job

ROOT = Path(__file__).parent.parent
ENDED = {"images_seen": 32, "best": {"kid": 1.0, "images_seen": 32}, "evaluate_share": 0.0, "save_share": 0.0}


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


def fit(out, low=2, **options):
    shown = []
    interrupt = ray_train.Interrupt()
    outcome = ray_train.fit({}, "data", str(out), Workers(low, 2), shown.append, interrupt=interrupt, **options)
    return outcome, shown


@pytest.mark.parametrize("gpu", [False, True])
def test_workers_are_asked_for_on_gpus_that_are_not_there_yet(monkeypatch, tmp_path, gpu):
    stand = Stand(monkeypatch, lambda say: say(told("done", "")))
    fit(tmp_path / "run", gpu=gpu, cpus=3)
    (asked,) = (options["scaling_config"] for options in stand.trainers)
    assert (asked.use_gpu, asked.resources_per_worker) == (gpu, None if gpu else {"CPU": 3})


def test_a_node_that_is_slow_to_come_is_waited_for_and_one_that_never_comes_is_not(monkeypatch):
    asked = []

    def slow(address, node_id):
        asked.append(node_id)
        if len(asked) < 3:
            raise RuntimeError("no such node")
        return {"node": node_id}

    monkeypatch.setattr(ray_connect, "GET_NODE", slow)
    assert ray_connect._node_when_there("127.0.0.1:1", "a") == {"node": "a"}
    asked.clear()
    monkeypatch.setattr(ray_connect, "PATIENCE_S", 0)
    with pytest.raises(RuntimeError, match="no such node"):
        ray_connect._node_when_there("127.0.0.1:1", "a")


@pytest.mark.parametrize("slow", range(ray_connect.STARTS + 1))
def test_a_start_of_ray_that_takes_too_long_is_tried_again_and_given_up_in_one_line(monkeypatch, capsys, slow):
    assert ray_connect.TOO_SLOW in inspect.getsource(ray._private.node)  # its words, held for an upgrade
    tries = []

    def init(**options):
        tries.append(options)
        if len(tries) <= slow:
            raise Exception(f"The current node {ray_connect.TOO_SLOW}. This could happen because ...")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray_connect, "cluster_address", lambda: "local")
    monkeypatch.setattr(ray_connect, "own_folder", lambda: "/tmp/mg/ray")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    if slow < ray_connect.STARTS:
        assert ray_connect.connect() == {"CPU": 2.0}
        assert len(tries) == slow + 1
    else:
        with pytest.raises(Failed, match="did not start in 2 times 90 s: this host is too busy or short of memory"):
            ray_connect.connect()
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "starting Ray on this host ..."
    assert len(out) == 1 + min(slow, ray_connect.STARTS - 1)


def test_another_error_of_a_start_is_not_tried_again(monkeypatch):
    def init(**options):
        raise ConnectionError("no route")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray_connect, "cluster_address", lambda: "local")
    monkeypatch.setattr(ray_connect, "own_folder", lambda: "/tmp/mg/ray")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    with pytest.raises(ConnectionError, match="no route"):
        ray_connect.connect()


def test_the_job_asks_for_what_it_is_told_and_says_what_it_waits_for(monkeypatch, phantoms, tmp_path, capsys):
    asked = {}

    def stand_in(config, data, out, workers, on_event, init, **options):
        asked.update(options, workers=workers, precision=config["precision"])
        return Outcome({"done": ENDED})

    cluster, by_host = {}, []
    monkeypatch.setattr(ray_connect, "connect", lambda verbose: cluster)
    monkeypatch.setattr(ray_connect, "cpus_by_host", lambda: by_host)
    monkeypatch.setattr(ray_train, "fit", stand_in)
    flags = ["--preset", "cgan", "--data", phantoms, "--out", str(tmp_path / "run"), "--use", "gpu"]
    with pytest.raises(Refused, match="global_batch=16 has 4 groups of 4: too few for 8 workers; raise global_batch"):
        job("train")([*flags, "--workers", "1-8", "--wait"])
    flags += ["--set", "global_batch=32"]
    job("train")([*flags, "--workers", "1-8", "--wait"])
    assert (asked["gpu"], asked["workers"], asked["precision"]) == (True, Workers(1, 8), "bfloat16")
    assert "the cluster has 0 GPUs: waiting for 1\ntraining cgan" in capsys.readouterr().out
    cluster["CPU"], by_host[:] = 6.0, [3, 3]
    flags = [*flags[:4], "--out", str(tmp_path / "other"), "--cpus-per-worker", "2"]
    job("train")(flags)
    assert (asked["gpu"], asked["workers"], asked["cpus"]) == (False, Workers(2, 2), 2)


ONE, TWO, FOUR = Workers(1, 1), Workers(2, 2), Workers(4, 4)


@pytest.mark.parametrize(
    ("by_host", "gpus", "workers", "cpus"),
    [([1], 0, ONE, 1), ([2], 0, ONE, 2), ([1], 1, ONE, 1), ([8], 1, ONE, 1), ([4], 2, TWO, 1), ([96], 8, FOUR, 1)],
)
def test_make_train_takes_what_a_host_has(monkeypatch, phantoms, tmp_path, by_host, gpus, workers, cpus):
    """The Makefile's own command; a batch of 16 feeds four workers."""
    asked = {}

    def stand_in(config, data, out, workers, on_event, init, **options):
        asked.update(options, workers=workers)
        return Outcome({"done": ENDED})

    resources = {"CPU": float(sum(by_host))} | ({"GPU": float(gpus)} if gpus else {})
    monkeypatch.setattr(ray_connect, "connect", lambda verbose: resources)
    monkeypatch.setattr(ray_connect, "cpus_by_host", lambda: by_host)
    monkeypatch.setattr(ray_train, "fit", stand_in)
    monkeypatch.chdir(ROOT)
    made = ["make", "--dry-run", "train", f"DEMO_DATA={phantoms}", f"DEMO_RUN={tmp_path}/run"]
    lines = subprocess.run(made, capture_output=True, text=True, check=True).stdout.splitlines()
    (words,) = (line.split("jobs/train.py ")[1].split() for line in lines if "jobs/train.py " in line)
    job("train")(words)
    assert (asked["workers"], asked["gpu"], asked["cpus"]) == (workers, gpus > 0, cpus)


def test_the_help_says_how_many_cpus_a_worker_has_by_itself():
    told = " ".join(job("train").__globals__["parser"]().format_help().split())
    assert f"one worker, which has all CPUs of the largest host, up to {ray_train.MOST_CPUS})" in told


def test_ray_is_told_of_hosts_when_they_have_changed_and_not_otherwise(monkeypatch):
    asked = []
    ticks = SimpleNamespace(get_reserved_resources=SimpleNamespace(remote=lambda **how: asked.append(how)))
    there = {"a": True, "b": True}
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": name, "Alive": alive} for name, alive in there.items()])
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: ticks)
    lookout = ray_train.Lookout()
    for alive, changed in (({}, 1), ({}, 1), ({"b": False}, 2), ({}, 2), ({"c": True}, 3)):
        there.update(alive)
        lookout.look()
        assert len(asked) == changed
    # What is asked for, of the real one: to look at the hosts now. Nobody is named "", so that nothing is reserved.
    seen = []
    coordinator = _AutoscalingCoordinatorActor(
        send_resources_request=lambda *_, **__: None, get_cluster_nodes=lambda: seen.append(1) or []
    )
    assert coordinator.get_reserved_resources(**asked[0]) == {}
    assert len(seen) == 2  # when it began, and now


def test_an_elastic_run_is_watched_over_while_it_lasts(monkeypatch, tmp_path):
    looked = []

    def look(self):
        looked.append(self)
        say[0](told("done", ""))

    say = []
    monkeypatch.setattr(ray_train.Lookout, "look", look)
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")
    stand = Stand(monkeypatch, lambda tell: (say.append(tell), looked or time.sleep(3)))
    outcome, _ = fit(tmp_path / "run", low=1)
    assert "done" in outcome.events
    (lookout,) = set(looked)
    assert stand.trainers[0]["scaling_config"].num_workers == (1, 2)
    lookout.join(5)
    assert not lookout.is_alive()
    looked.clear()
    Stand(monkeypatch, lambda tell: time.sleep(1.5))
    fit(tmp_path / "other")
    assert looked == []


def told(event, group, **more):
    return {"event": event, "group": group, "rank": 0, "host": "10.0.0.1", **more}


@pytest.mark.parametrize("late", [False, True])
def test_what_workers_that_were_given_up_say_of_their_end_does_not_count(monkeypatch, tmp_path, late):
    lost = told("failed", "a", kind="Lost", reason="later workers took the run over")

    def script(say):
        events = [told("joined", "a"), told("joined", "b"), told("done", "b")]
        events.insert(2 if late else 1, lost)
        for event in events:
            say(event)

    Stand(monkeypatch, script)
    outcome, shown = fit(tmp_path / "run")
    assert set(outcome.events) == {"done"}
    assert (lost in shown) is not late


def broken(*arguments):
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize("reason", ["RUN cannot be written: No space left on device", None])
def test_a_storage_that_fails_does_not_hide_why_the_run_ended(monkeypatch, tmp_path, reason):
    def script(say):
        monkeypatch.setattr(RunFolder, "checkpoints", broken)
        monkeypatch.setattr(RunFolder, "delete", broken)
        if reason is None:
            raise RuntimeError("a worker died")
        say(told("failed", "", kind="Storage", reason=reason))

    Stand(monkeypatch, script)
    outcome, shown = fit(tmp_path / "run")
    assert outcome.events.get("failed", {}).get("reason") == reason
    unread = f"a worker died; {tmp_path}/run cannot be read: Input/output error"
    assert outcome.error == (None if reason else unread)
    assert shown[-1]["reason"] == f"{tmp_path}/run/.ray cannot be removed: Input/output error"


FAILED = {"kind": "Storage", "reason": "RUN cannot be written: No space left on device"}


def ends(monkeypatch, phantoms, out, events):
    """The exit code of jobs/train.py whose workers told these events, on a storage that has failed since."""

    def stand_in(*arguments, **options):
        monkeypatch.setattr(RunFolder, "checkpoints", broken)
        monkeypatch.setattr(Lease, "end", broken)
        return Outcome(events)

    monkeypatch.setattr(ray_connect, "connect", lambda verbose: {"CPU": 2.0})
    monkeypatch.setattr(ray_connect, "cpus_by_host", lambda: [2])
    monkeypatch.setattr(ray_train, "fit", stand_in)
    return command(job("train"), ["--preset", "cgan", "--data", phantoms, "--out", str(out)])


def test_the_job_says_why_it_failed_on_a_storage_that_no_longer_answers(monkeypatch, phantoms, tmp_path, capsys):
    assert ends(monkeypatch, phantoms, tmp_path / "run", {"failed": FAILED}) == 1
    said = capsys.readouterr()
    assert f"training stopped: {FAILED['reason']}; its checkpoints cannot be listed: Input/output error" in said.err
    assert "cannot be given up: Input/output error" in said.out


def test_a_run_that_is_done_has_not_failed(monkeypatch, phantoms, tmp_path):
    assert ends(monkeypatch, phantoms, tmp_path / "run", {"failed": FAILED, "done": ENDED}) == 0
