"""Training on three hosts of their own, through `ray job submit`: what happens to clusters happens here."""

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

from cluster import hosts as tool
from medgan import config as configs
from medgan import run
from medgan.data import shards
from medgan.data.loader import Order, open_split
from medgan.distributed import World
from medgan.folder import RunFolder
from medgan.state import open_checkpoint
from medgan.tracking import read_rows

from .conftest import write_phantoms

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.hosts, pytest.mark.timeout(900)]
BIN = Path(sys.executable).parent
SETTINGS = {
    "model.width": 16,
    "model.max_width": 16,
    "model.z_dim": 8,
    "global_batch": 24,
    "precision": "float64",
    "optim.lr_g": 1e-4,
    "optim.lr_d": 1e-4,
    "evaluate.n": 16,
    "evaluate.interval_kimg": 100.0,
    "checkpoint.interval_kimg": 0.24,
    "tracking.interval_kimg": 0.048,
    "tracking.wandb": "disabled",
    "tracking.sample_ids": True,
}
"""A net that every host steps several times per second, so that something can happen to it in between."""


def test_a_machine_that_may_not_have_hosts_says_why(monkeypatch):
    monkeypatch.setattr(tool.shutil, "which", lambda name: None)
    assert tool.why_not() == "ip is not installed (iproute2 and util-linux have it)"
    monkeypatch.undo()
    monkeypatch.setattr(tool.os, "geteuid", lambda: 1000)
    assert "root" in str(tool.why_not())


def needs_hosts():
    reason = tool.why_not()
    if reason:
        pytest.skip(f"hosts cannot be started here: {reason}")


def command_line(folder, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "cluster/hosts.py"), *arguments],
        env={**os.environ, "MEDGAN_HOSTS": str(folder), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def leftovers(folder):
    """What is left of hosts: network links, processes that name their folder, the folder itself."""
    bridge = tool.Hosts(folder).bridge
    found = [path.name for path in Path("/sys/class/net").iterdir() if path.name.startswith(bridge)]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if str(folder).encode() in (entry / "cmdline").read_bytes():
                    found.append(entry.name)
            except OSError:
                continue
    return found + [str(folder)] * folder.exists()


def until(condition, timeout, what):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {timeout} s"
        time.sleep(0.02)


@pytest.mark.parametrize("moment", ["network.json", "disks/host1", "disks/host2/ready", "disks/host1/ray.log"])
def test_ctrl_c_while_hosts_start_leaves_nothing(tmp_path, moment):
    needs_hosts()
    folder = tmp_path / "hosts"
    starting = command_line(folder, "up", "2", start_new_session=True)
    until((folder / moment).exists, 30, "the start")
    os.killpg(starting.pid, 2)
    output, _ = starting.communicate(timeout=60)
    assert starting.returncode == 130, output
    assert leftovers(folder) == []


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Three hosts, and a data folder in what they share."""
    needs_hosts()
    made = tool.Hosts(Path(f"/tmp/mg-{os.getpid()}"))
    try:
        made.up(3)
        write_phantoms(made.shared / "data")
        yield made
    finally:
        made.down()
        assert leftovers(made.folder) == []


@pytest.fixture(autouse=True)
def whole(request):
    """Every test begins with all three hosts up and joined."""
    if "hosts" in request.fixturenames:
        made = request.getfixturevalue("hosts")
        for name in made.names():
            if made.pid(name) is not None:
                made.heal(name)
        made.up(3)
        until(lambda: alive(made) == 3, 60, "three hosts")


def environment(hosts):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != "PYTHONPATH"}
    return {**inherited, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(hosts.token)}


def ray_command(hosts, *arguments, timeout=60, **options):
    return subprocess.run(
        [str(BIN / "ray"), *arguments],
        env=environment(hosts),
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        **options,
    )


def ask(hosts, path, token):
    """The dashboard's answer: status and JSON."""
    request = urllib.request.Request(hosts.dashboard + path)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, None
    except OSError:
        return 0, None


def alive(hosts):
    _, answer = ask(hosts, "/api/v0/nodes?limit=100", hosts.token.read_text())
    rows = answer["data"]["result"]["result"] if answer else []
    return sum(row["state"] == "ALIVE" for row in rows)


class Submitted:
    """A training submitted to the hosts, and what it prints, line by line with the time."""

    def __init__(self, hosts, out, workers, *more, **settings):
        self.hosts, self.out = hosts, hosts.shared / out
        self.folder = RunFolder(str(self.out))
        chosen = {**SETTINGS, **{key.replace("__", "."): value for key, value in settings.items()}}
        flags = [f for key, value in chosen.items() for f in ("--set", f"{key}={value}")]
        train = ["--preset", "cgan", "--data", str(hosts.shared / "data"), "--out", str(self.out)]
        self.command = [
            *(str(BIN / "ray"), "job", "submit", "--address", hosts.dashboard, "--working-dir", "."),
            *("--", "python", "jobs/train.py", *train, "--workers", workers, *more, *flags),
        ]
        self.process = subprocess.Popen(
            self.command,
            env=environment(hosts),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[tuple[float, str]] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))

    @property
    def text(self):
        return "\n".join(line for _, line in self.lines)

    @property
    def id(self):
        return re.search(r"'(raysubmit_\w+)' submitted", self.text).group(1)

    def line(self, pattern, since=0.0, timeout=90):
        """The first line since a moment that matches, and when it came."""
        end = time.monotonic() + timeout
        while True:
            for moment, line in list(self.lines):
                matched = re.search(pattern, line)
                if moment > since and matched:
                    return moment, matched
            assert time.monotonic() < end, f"no {pattern!r} within {timeout} s:\n{self.text[-3000:]}"
            assert self.process.poll() is None or self.reader.is_alive(), f"ended:\n{self.text[-3000:]}"
            time.sleep(0.1)

    def progress(self, since=0.0, timeout=90):
        return self.line(r"^([\d,]+)/[\d,]+ images", since, timeout)

    def wait(self, timeout=300):
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.text[-3000:]) from None
        self.reader.join(10)
        return code, self.text

    def worker(self, host):
        """Process id, on that host, of its training worker."""
        found = self.hosts.exec(host, ["pgrep", "-f", "RayTrainWorker"], capture_output=True).stdout.split()
        return found[0] if found else None

    def holder(self):
        """The name of the host whose worker writes the run."""
        term = max((self.out / ".lease").glob("[0-9]*"))
        return json.loads(term.read_text())["host"]

    def end(self):
        if self.process.poll() is None:
            ray_command(self.hosts, "job", "stop", "--address", self.hosts.dashboard, self.id)
            self.process.kill()
        self.process.wait()
        self.reader.join(10)
        self.process.stdout.close()


@pytest.fixture
def submit(hosts):
    submitted = []

    def start(*arguments, **options):
        submitted.append(Submitted(hosts, *arguments, **options))
        return submitted[-1]

    yield start
    for job in submitted:
        job.end()


def undisturbed(hosts, out, job):
    """The same run on one process without Ray, which nothing happened to."""
    config = job.folder.config()
    folder = RunFolder(str(hosts.shared / out))
    folder.write("config.yaml", configs.to_yaml(config))
    data = str(hosts.shared / "data")
    folder.write("manifest.json", shards.read_manifest(data)[0].to_json())
    run.train(config, data, folder.location, World(), lambda event: None)
    return folder


def assert_same_weights(one, other, tolerance=1e-9):
    saved = [open_checkpoint(folder.read_checkpoint(folder.checkpoints()[-1])) for folder in (one, other)]
    assert saved[0]["images_seen"] == saved[1]["images_seen"]
    for network in ("generator", "discriminator", "ema"):
        for key, weight in saved[0][network].items():
            assert torch.allclose(weight, saved[1][network][key], rtol=0, atol=tolerance), (network, key)


def assert_every_image_once_per_epoch(job):
    """From the rows that were used, as the workers wrote them down; returns the numbers of workers."""
    lines = read_rows(job.out / "order.jsonl")
    batch = job.folder.config().global_batch
    assert [line["images_seen"] for line in lines] == list(range(0, len(lines) * batch, batch))
    used = [row for line in lines for row in line["rows"]]
    images = len(open_split(job.hosts.shared / "data", "train"))
    for epoch in range(len(used) // images):
        assert sorted(used[epoch * images : (epoch + 1) * images]) == list(range(images))
    assert len(used) == job.folder.checkpoints()[-1]
    order = Order(open_split(job.hosts.shared / "data", "train").labels, 0)
    assert sorted(lines[5]["rows"]) == sorted(order.batch(5 * batch, batch).tolist())
    return [line["workers"] for line in lines]


def test_without_the_token_nothing_is_answered_and_hosts_have_names_addresses_and_disks_of_their_own(hosts):
    assert [ask(hosts, "/api/jobs/", token)[0] for token in ("", "0" * 64)] == [401, 403]
    assert ask(hosts, "/api/jobs/", hosts.token.read_text())[0] == 200
    lines = hosts.status().splitlines()
    assert [line.split()[:3] for line in lines[:3]] == [
        [f"host{n}", hosts.address(f"host{n}"), "up"] for n in (1, 2, 3)
    ]
    assert lines[0].endswith("head")
    for name in hosts.names():
        said = hosts.exec(name, ["sh", "-c", "hostname; getent hosts $(hostname); touch here"], capture_output=True)
        assert said.stdout.split()[:2] == [name, "127.0.1.1"]
    assert len(list(hosts.folder.glob("disks/*/here"))) == 3
    secret = hosts.token.read_text().encode()
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not any(secret in line for line in lines)


def test_three_workers_on_three_hosts_equal_one_process(hosts, submit):
    job = submit("three", "3", total_images=480, evaluate__interval_kimg=0.48)
    code, output = job.wait()
    assert code == 0, output
    assert "done: 480 images" in output
    assert set(assert_every_image_once_per_epoch(job)) == {3}
    assert (
        len({name for name in hosts.names() if list((hosts.folder / "disks" / name / "cache").glob("*/train*"))}) == 3
    )
    assert_same_weights(job.folder, undisturbed(hosts, "one", job))
    secret = hosts.token.read_text().encode()
    written = [path for path in (*job.out.rglob("*"), *hosts.folder.glob("disks/*/ray/**/*")) if path.is_file()]
    assert len(written) > 50
    assert not any(secret in path.read_bytes() for path in written)


def test_an_elastic_run_outlives_a_worker_and_a_host_and_takes_up_one_that_joins(hosts, submit):
    job = submit("elastic", "1-3", total_images=24_000)
    job.line("^480/")
    started = time.monotonic()
    hosts.exec("host2", ["kill", "-9", job.worker("host2")])
    again, _ = job.line("going on from the checkpoint", started)
    moment, _ = job.progress(again)
    print(f"a worker was killed: training again after {moment - started:.0f} s")
    assert moment - started < 30

    time.sleep(5)
    started = time.monotonic()
    hosts.kill("host3")
    again, _ = job.line("2 workers now", started)
    moment, _ = job.progress(again)
    print(f"a host was killed: training again after {moment - started:.0f} s")
    assert moment - started < 45

    started = time.monotonic()
    hosts.up(3)
    moment, _ = job.line(r"3 workers now; \d+ s and \d+ images lost", started, timeout=120)
    print(f"a host joined: taken up after {moment - started:.0f} s")
    code, output = job.wait(400)
    assert code == 0, output
    assert {2, 3} <= set(assert_every_image_once_per_epoch(job))
    rows = [row for row in read_rows(job.out / "metrics.jsonl") if "resume/lost_s" in row]
    assert [row["resume/workers"] for row in rows] == [3, 2, 3]
    assert all(0 <= row["resume/lost_images"] <= 240 + 48 for row in rows)
    assert_same_weights(job.folder, undisturbed(hosts, "elastic-one", job))


def test_a_host_that_is_cut_off_and_comes_back_splits_nothing(hosts, submit):
    job = submit("cut", "1-3", total_images=12_000)
    job.line("^480/")
    victim = job.holder() if job.holder() != tool.HEAD else "host2"  # if possible the one that writes
    started = time.monotonic()
    hosts.cut(victim)
    assert hosts.state(victim) == "cut"
    moment, _ = job.line("2 workers now", started, timeout=90)
    print(f"{victim} was cut off: training again after {moment - started:.0f} s")
    assert job.holder() != victim
    hosts.heal(victim)
    job.line("3 workers now", moment, timeout=120)
    code, output = job.wait(400)
    assert code == 0, output
    assert_every_image_once_per_epoch(job)
    assert not list((job.out / "checkpoints").glob("*.damaged"))
    assert_same_weights(job.folder, undisturbed(hosts, "cut-one", job))


def test_a_worker_that_hangs_in_a_collective_is_named_and_replaced(hosts, submit):
    job = submit("hang", "3", "--timeout", "20", total_images=100_000)
    job.line("^480/")
    started = time.monotonic()
    hosts.exec("host2", ["kill", "-STOP", job.worker("host2")])
    moment, matched = job.line(r"worker \d on (\S+) did not answer for 20 s; starting anew", started)
    assert matched.group(1) == hosts.address("host2")
    assert moment - started < 20 + 15
    again, _ = job.line("going on from the checkpoint", moment)
    job.progress(again)


def test_a_notice_that_a_host_will_be_taken_away_saves_a_checkpoint_at_once(hosts, submit):
    job = submit("notice", "1-3", total_images=100_000, checkpoint__interval_kimg=1000)
    job.line("^480/")
    assert job.folder.checkpoints() == []
    _, answer = ask(hosts, "/api/v0/nodes?limit=100", hosts.token.read_text())
    rows = answer["data"]["result"]["result"]
    node = next(r["node_id"] for r in rows if r["node_ip"] == hosts.address("host3") and r["state"] == "ALIVE")
    drain = ["ray", "drain-node", "--address", f"{hosts.address('host1')}:6379", "--node-id", node]
    drain += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds"]
    started = time.monotonic()
    drained = hosts.exec("host1", [*drain, "20"], capture_output=True)
    assert drained.returncode == 0, drained.stdout + drained.stderr
    moment, _ = job.line("a host will be taken away: a checkpoint is saved", started, timeout=20)
    print(f"a notice was heard after {moment - started:.0f} s")
    until(lambda: len(job.folder.checkpoints()) == 1, 5, "a checkpoint")
    saved = job.folder.checkpoints()[0]
    job.line(f"going on from the checkpoint at {saved:,} images", moment, timeout=90)
    hosts.kill("host3")


def test_a_stopped_job_saves_a_checkpoint_and_says_how_to_go_on(hosts, submit):
    job = submit("stopped", "2", total_images=100_000, checkpoint__interval_kimg=1000)
    job.line("^480/")
    stopped = ray_command(hosts, "job", "stop", "--address", hosts.dashboard, job.id)
    assert stopped.returncode == 0, stopped.stderr
    job.wait(60)
    logs = ray_command(hosts, "job", "logs", "--address", hosts.dashboard, job.id).stdout
    told = re.search(r"stopped at ([\d,]+) images; to go on: (.*)", logs)
    assert told, logs[-2000:]
    assert job.folder.checkpoints() == [int(told.group(1).replace(",", ""))]
    assert told.group(2).startswith("ray job submit --working-dir . -- python jobs/train.py --preset cgan --data ")


def test_a_second_command_is_refused_and_the_same_command_goes_on_after_its_driver_was_killed(hosts, submit):
    first = submit("twice", "2", total_images=100_000)
    first.line("^480/")
    second = submit("twice", "2", total_images=100_000)
    code, output = second.wait(90)
    assert code == 1, output
    assert re.search(r"train.py: .*/twice: another command, on host1, writes this run: stop it first", output)
    driver = hosts.exec("host1", ["pgrep", "-f", "^python jobs/train.py"], capture_output=True).stdout.split()
    hosts.exec("host1", ["kill", "-9", *driver])
    assert first.wait(60)[0] == 1
    saved = first.folder.checkpoints()[-1]
    third = submit("twice", "2", total_images=saved + 480)
    code, output = third.wait(240)
    assert code == 0, output
    assert "is silent: waiting 30 s in all" in output
    assert f"going on from the checkpoint at {saved:,} images" in output
    assert_every_image_once_per_epoch(third)


def test_after_the_head_was_killed_and_started_again_the_same_command_resumes(hosts, submit):
    job = submit("head", "2", total_images=100_000)
    job.line("^480/")
    hosts.kill("host1")
    job.process.kill()
    saved = job.folder.checkpoints()[-1]
    hosts.up(3)
    until(lambda: alive(hosts) == 3, 60, "three hosts")
    again = submit("head", "2", total_images=saved + 480)
    code, output = again.wait(240)
    assert code == 0, output
    assert "going on from the checkpoint at" in output
    assert_every_image_once_per_epoch(again)
