"""Jobs submitted to test hosts, and what is true of a run whatever happened to it."""

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

from medgan import config as configs
from medgan import run
from medgan.data import shards
from medgan.data.loader import Order, open_split
from medgan.distributed import World
from medgan.folder import RunFolder
from medgan.state import open_checkpoint
from medgan.tracking import read_rows

from . import ranks

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
SETTINGS = {
    "model.width": 16,
    "model.max_width": 16,
    "model.z_dim": 8,
    "global_batch": 24,
    "precision": "float64",
    "optim.lr_g": 1e-6,
    "optim.lr_d": 1e-6,
    "evaluate.n": 16,
    "evaluate.interval_kimg": 100.0,
    "checkpoint.interval_kimg": 0.24,
    "tracking.interval_kimg": 0.048,
    "tracking.wandb": "disabled",
    "tracking.sample_ids": True,
}
"""A net that every host steps several times per second, so that something can happen to it in between. It learns so
slowly that a rounding does not grow: at a rate of 1e-4 one of 1e-16 has become 1e-2 after 72,000 images, at 1e-6 it
is as small as before after 216,000, while one batch left out shows at once as 1e-6, a thousand times what is
allowed."""


ENDLESS = 10**9
"""Images of a run that lasts until what is waited for has happened, however fast the machine is."""


def until(condition, timeout, what):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {timeout} s"
        time.sleep(0.02)


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


def job_of(hosts, *command, variables=None):
    """`ray job submit` of a script of jobs/, which prints what the job prints."""
    submit = [str(BIN / "ray"), "job", "submit", "--address", hosts.dashboard, "--working-dir", "."]
    submit += ["--runtime-env-json", json.dumps({"env_vars": variables or {}}), "--", "python", *command]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(submit, env=environment(hosts), cwd=ROOT, **output)


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
    """A training submitted to the hosts, and what it prints, line by line with the time.

    variables: environment variables of the job, as its runtime environment gives them.
    """

    def __init__(self, hosts, out, workers, *more, variables=None, **settings):
        self.hosts, self.name, self.workers, self.out = hosts, out, workers, hosts.shared / out
        self.folder = RunFolder(str(self.out))
        chosen = {**SETTINGS, **{key.replace("__", "."): value for key, value in settings.items()}}
        flags = [f for key, value in chosen.items() for f in ("--set", f"{key}={value}")]
        train = ["--preset", "cgan", "--data", str(hosts.shared / "data"), "--out", str(self.out)]
        train += ["--workers", workers, *more, *flags]
        self.process = job_of(hosts, "jobs/train.py", *train, variables=variables)
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

    def line(self, pattern, since=0.0, timeout=150):
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

    def progress(self, since=0.0, timeout=150):
        return self.line(r"^([\d,]+)/[\d,]+ images", since, timeout)

    def restarted(self, before, timeout=150):
        """The row of the first figures after a restart, once there are more such rows than before, and when it came.

        From what the run writes: what `ray job submit` shows of a job can stand still for a minute after a host died.
        """
        end = time.monotonic() + timeout
        while len(rows := [row for row in read_rows(self.out / "metrics.jsonl") if "resume/lost_s" in row]) <= before:
            assert time.monotonic() < end, f"not training again within {timeout} s:\n{self.text[-3000:]}"
            time.sleep(0.1)
        return time.monotonic(), rows[before]

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
        term = max((self.out / ".lease").glob("??????"))
        return json.loads(term.read_text())["host"]

    def stop(self):
        """`ray job stop`, and its end; returns the images seen of the newest checkpoint."""
        stopped = ray_command(self.hosts, "job", "stop", "--address", self.hosts.dashboard, self.id, timeout=180)
        assert stopped.returncode == 0, stopped.stderr
        self.wait(60)
        return self.folder.checkpoints()[-1]

    def again(self, timeout=300):
        """Submit it once more, to end 480 images after its newest checkpoint; returns that, which has ended well."""
        wanted = self.folder.checkpoints()[-1] + 20 * self.folder.config().global_batch
        last = Submitted(self.hosts, self.name, self.workers, total_images=wanted)
        try:
            code, output = last.wait(timeout)
        finally:
            last.end()
        assert code == 0, output[-3000:]
        assert f"done: {wanted:,} images" in output
        assert_every_image_once_per_epoch(last)
        return last

    def end(self):
        if self.process.poll() is None:
            ray_command(self.hosts, "job", "stop", "--address", self.hosts.dashboard, self.id)
            self.process.kill()
        self.process.wait()
        self.reader.join(10)
        self.process.stdout.close()
        for moment, line in self.lines:  # shown where a test fails
            print(f"{self.name} {moment:.1f} {line}")


def undisturbed(hosts, out, job):
    """The same run up to its newest checkpoint in one process without Ray, which nothing happened to."""
    config = job.folder.config()
    tracking = config.tracking.model_copy(update={"wandb": "disabled"})
    config = config.model_copy(update={"tracking": tracking, "total_images": job.folder.checkpoints()[-1]})
    folder = RunFolder(str(hosts.shared / out))
    folder.write("config.yaml", configs.to_yaml(config))
    data = str(hosts.shared / "data")
    folder.write("manifest.json", shards.read_manifest(data)[0].to_json())
    ranks.run(1, _trained, config.dump(), data, folder.location)
    return folder


def _trained(rank, config, data, out):
    run.train(configs.validate(config), data, out, World.current(), lambda event: None)


def assert_same_weights(one, other, at=-1, tolerance=1e-9):
    """at: which of the checkpoints that both have, the last by default."""
    images_seen = sorted({*one.checkpoints()} & {*other.checkpoints()})[at]
    assert images_seen >= one.checkpoints()[at]
    saved = [open_checkpoint(folder.read_checkpoint(images_seen)) for folder in (one, other)]
    for network in ("generator", "discriminator", "ema"):
        for key, weight in saved[0][network].items():
            apart = (weight - saved[1][network][key]).abs().max().item()
            assert apart <= tolerance, f"{network} {key}: {apart:.2g} apart after {saved[0]['images_seen']:,} images"


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
