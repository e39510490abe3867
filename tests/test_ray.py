"""Runs through jobs/ on a Ray cluster: preparing, two workers, kills, Ctrl-C, a submitted job, the demo."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest

from medgan.data import shards
from medgan.folder import RunFolder
from medgan.keys import patient_key
from medgan.private import epsilon
from medgan.state import packed
from medgan.tracking import read_rows

from .conftest import TINY, free_port, write_key
from .test_run import assert_same_bits, last_checkpoint, untimed_rows

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parent.parent


class Job:
    """A script of jobs/ in a process group of its own, with a mark in its environment that its children inherit."""

    def __init__(self, name, *arguments, env=None, cwd=ROOT, without=()):
        self.mark = f"medgan-test-{uuid.uuid4().hex}"
        self.command = [str(ROOT / f"jobs/{name}.py"), *map(str, arguments)]
        self.process = subprocess.Popen(
            [sys.executable, *self.command],
            env={
                **{name: value for name, value in os.environ.items() if name not in without},
                **{"MEDGAN_TEST_MARK": self.mark, **(env or {})},
            },
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def pids(self, title=""):
        """Processes that carry the mark, whose command line holds the title."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    marked = self.mark.encode() in (entry / "environ").read_bytes()
                    named = title.encode() in (entry / "cmdline").read_bytes()
                    alive = "\nState:\tZ" not in (entry / "status").read_text()
                except OSError:
                    continue
                if marked and named and alive:
                    found.append(int(entry.name))
        return found

    def wait(self, timeout=240):
        try:
            output, _ = self.process.communicate(timeout=timeout)
        finally:
            self.end()
        return self.process.returncode, output

    def end(self):
        """Kill what is left of the job, and wait until it is gone."""
        for _ in range(100):
            left = self.pids()
            if not left:
                return
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.1)
        raise AssertionError(f"processes of {self.mark} do not end")


def until(condition, timeout=300, what="it"):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {timeout} s"
        time.sleep(0.05)


def run_job(name, *arguments, timeout=240, **kwargs):
    return Job(name, *arguments, **kwargs).wait(timeout)


def settings(**overrides):
    flat = {**TINY, **{key.replace("__", "."): value for key, value in overrides.items()}}
    return [argument for key, value in flat.items() for argument in ("--set", f"{key}={value}")]


def bytes_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.parquet"))}


@pytest.fixture(scope="module")
def key_file(tmp_path_factory):
    return write_key(tmp_path_factory.mktemp("key") / "key")


def test_a_private_run_goes_on_with_another_number_of_workers_and_tells_what_it_spent(phantoms, tmp_path):
    patients = shards.read_manifest(phantoms)[0].patients["train"]
    private = {"loss.r1_gamma": 0, "model.stddev_group": 1, "privacy.dp.epsilon": 30, "privacy.dp.noise": 0.7}
    for workers, images in ((2, 128), (1, 256)):
        asked = settings(**private, precision="auto", total_images=images)
        status, output = run_job(
            "train", "--preset", "cgan", "--data", phantoms, "--out", tmp_path / "run", "--workers", workers, *asked
        )
        assert status == 0, output
        assert "private: at most epsilon 30" in output
        spent = float(re.search(r"privacy spent: epsilon ([\d.]+) at delta", output)[1])
        steps = last_checkpoint(RunFolder(str(tmp_path / "run")))["private_steps"]
        assert steps == images // 16
        assert spent == pytest.approx(epsilon(0.7, 16 / patients, steps, 0.1 / patients), rel=0.01)


def test_prepare_gives_the_same_bytes_with_one_and_two_workers_and_counts_bad_files(tmp_path, key_file, monkeypatch):
    import ray

    from medgan.data import ingest
    from medgan.data.sources import SOURCES, Options, Raw

    raw = tmp_path / "raw"
    source = SOURCES["phantom_cxr"]
    nothing, options = Raw(""), Options(limit=60)
    for index, record in enumerate(source.listing(nothing, options).records):
        name = f"person{record.patient}_virus_{index}.png" if record.labels[0] else f"IM-{record.patient}-{index}.png"
        file = raw / "train" / source.classes[record.labels[0]] / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(source.read(nothing, record, options))
    (raw / "train/NORMAL/IM-9999-0001.jpeg").write_text("not an image")
    key = patient_key(key_file)
    written = []
    for cpus in (1, 2):
        ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False)
        try:
            request = ingest.Request("kermany_cxr", str(raw), str(tmp_path / f"out{cpus}"), 32, rows_per_shard=16)
            manifest = ingest.write(ingest.plan(request, ingest.find(request), key)).manifest
            read = ray.data.read_parquet(str(tmp_path / f"out{cpus}/train")).take_all()
        finally:
            ray.shutdown()
        written.append((bytes_of(tmp_path / f"out{cpus}"), (tmp_path / f"out{cpus}/manifest.json").read_bytes()))
    assert written[0] == written[1]
    assert sum(map(manifest.rows, manifest.splits)) == 60
    assert manifest.rejected == 1
    import pyarrow.parquet as pq

    rejected = pq.read_table(tmp_path / "out1/rejected.parquet").to_pylist()
    name_id = shards.keyed_id(key, "name", "train/NORMAL/IM-9999-0001.jpeg")
    assert rejected == [{"name_id": name_id, "reason": "not a readable image (UnidentifiedImageError)"}]
    assert not any(b"IM-9999" in path.read_bytes() for path in (tmp_path / "out1").rglob("*.*"))
    shards.verify(tmp_path / "out1", manifest)
    files = sorted((tmp_path / "out1/train").glob("*.parquet"))
    column = [row for file in files for row in pq.read_table(file).column("pixels").to_pylist()]
    assert sorted(row["pixels"] for row in read) == sorted(column)


def test_prepare_is_done_once_and_goes_on_where_it_was_killed(tmp_path, key_file):
    command = ("prepare", "--source", "phantom_cxr", "--limit", 1200, "--out", tmp_path / "data", "--resolution", 32)
    command = (*command, "--patient-key-file", key_file)
    code, output = run_job(*command)
    assert code == 0, output
    whole = bytes_of(tmp_path / "data")
    started = time.monotonic()
    assert run_job(*command)[0] == 0
    assert time.monotonic() - started < 30
    shutil.rmtree(tmp_path / "data")
    job = Job(*command)
    until(lambda: list((tmp_path / "data").glob("*/*.parquet")), what="the first shard")
    job.end()
    job.process.communicate()
    assert not (tmp_path / "data/manifest.json").exists()
    assert run_job(*command)[0] == 0
    assert bytes_of(tmp_path / "data") == whole


@pytest.fixture(scope="module")
def uninterrupted(phantoms, tmp_path_factory):
    """A run of one worker, float32, that nothing disturbed."""
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    code, output = run_job("train", *train(phantoms, out))
    assert code == 0, output
    return RunFolder(str(out)), output


def train(data, out, workers=1, images=3840):
    length = settings(
        total_images=images,
        checkpoint__interval_kimg=0.256,
        evaluate__interval_kimg=1.6,
        tracking__interval_kimg=0.064,
    )
    return ["--preset", "cgan", "--data", data, "--out", out, "--workers", workers, *length]


def test_what_a_run_prints_is_progress_and_paths_and_nothing_of_rays(uninterrupted):
    folder, output = uninterrupted
    first, *lines = output.strip().splitlines()
    assert first == "starting Ray on this host ..."
    assert lines[0].startswith("training cgan at 32x32, float32")
    assert any("img/s" in line and "left" in line and "KID" in line for line in lines)
    assert "done: 3,840 images" in output
    assert f"{folder.location}/report.html" in output
    for noise in ("ray", "Ray", "WARNING", "Traceback", "INFO", "wandb:"):
        assert noise not in "\n".join(lines).replace(".ray", "")
    assert not folder.exists(".ray")
    assert "manifest.json" in folder.names()


def kill_worker(job, moment):
    until(lambda: job.pids("RayTrainWorker"), what="the worker")
    time.sleep(moment)
    pids = job.pids("RayTrainWorker")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return bool(pids)


def test_a_worker_killed_at_random_moments_changes_no_bit(uninterrupted, phantoms, tmp_path):
    folder, _ = uninterrupted
    job = Job("train", *train(phantoms, tmp_path / "run"))
    killed = RunFolder(str(tmp_path / "run"))
    try:
        for _ in range(2):
            before = max(killed.checkpoints(), default=0)
            until(lambda before=before: max(killed.checkpoints(), default=0) > before, what="a checkpoint")
            assert kill_worker(job, random.uniform(0, 1.0))
    finally:
        code, output = job.wait()
    assert code == 0, output
    assert "going on from the checkpoint at" in output
    assert_same_bits(last_checkpoint(folder), last_checkpoint(killed))
    assert untimed_rows(folder) == untimed_rows(killed)


def test_a_driver_killed_at_a_random_moment_goes_on_by_the_same_command_and_changes_no_bit(
    uninterrupted, phantoms, tmp_path
):
    folder, _ = uninterrupted
    killed = RunFolder(str(tmp_path / "run"))
    job = Job("train", *train(phantoms, tmp_path / "run"))
    try:
        until(killed.checkpoints, what="a checkpoint")
        time.sleep(random.uniform(0, 1.0))
        assert job.process.poll() is None
        os.kill(job.process.pid, signal.SIGKILL)
        job.process.wait()
    finally:
        job.end()
        job.process.stdout.close()
    code, output = run_job("train", *train(phantoms, tmp_path / "run"))
    assert code == 0, output
    assert "going on from the checkpoint at" in output
    assert_same_bits(last_checkpoint(folder), last_checkpoint(killed))
    assert run_job("train", *train(phantoms, tmp_path / "run"))[1].startswith("complete:")


def test_ctrl_c_saves_a_checkpoint_says_how_to_go_on_and_changes_no_bit(uninterrupted, phantoms, tmp_path):
    whole, _ = uninterrupted
    folder = RunFolder(str(tmp_path / "run"))
    # A terminal sends Ctrl-C to the whole group; SIGTERM comes from whoever started the job, to the job alone.
    for send, number in ((os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)):
        before = max(folder.checkpoints(), default=0)
        job = Job("train", *train(phantoms, tmp_path / "run"))
        try:
            until(lambda before=before: max(folder.checkpoints(), default=0) > before, what="a checkpoint")
            send(job.process.pid, number)
        finally:
            code, output = job.wait()
        assert code == 130, output
        saved = folder.checkpoints()[-1]
        last_line = output.strip().splitlines()[-1]
        assert last_line == f"train.py: stopped at {saved:,} images; to go on: python {shlex.join(job.command)}"
        assert "Traceback" not in output
    code, output = run_job("train", *train(phantoms, tmp_path / "run"))
    assert code == 0, output
    assert_same_bits(last_checkpoint(whole), last_checkpoint(folder))


def test_more_workers_than_the_cluster_has_are_refused(phantoms, tmp_path):
    code, output = run_job("train", *train(phantoms, tmp_path / "run", workers=99))
    assert code == 2, output
    told = f"train.py: --workers 99: the cluster has {os.cpu_count()} CPUs"
    assert output.strip().splitlines() == ["starting Ray on this host ...", told]
    assert not (tmp_path / "run").exists()


def test_a_worker_has_a_thread_for_each_of_its_cpus(tmp_path):
    script = f"""
from medgan import ray_connect, ray_train

class Roll(ray_train.Roll):
    def call(self, event):
        if event["event"] == "joined":
            print("threads", event["threads"])
        return super().call(event)

ray_train.Roll = Roll
ray_connect.connect(verbose=False)
for cpus in (1, 2):
    ray_train.fit({{}}, "data", {str(tmp_path)!r}, ray_train.Workers(1, 1), lambda event: None, cpus=cpus)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}  # as others leave it behind
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "threads" in line] == ["threads 1", "threads 2"]


def test_two_workers_follow_one(uninterrupted, phantoms, tmp_path):
    folder, _ = uninterrupted
    code, output = run_job("train", *train(phantoms, tmp_path / "run", workers=2))
    assert code == 0, output
    one, two = (
        {row["images_seen"]: row for row in read_rows(Path(location) / "metrics.jsonl") if "loss/D" in row}
        for location in (folder.location, tmp_path / "run")
    )
    assert one.keys() == two.keys()
    assert two[64]["loss/D"] == pytest.approx(one[64]["loss/D"], abs=1e-3)
    assert two[128]["loss/G"] == pytest.approx(one[128]["loss/G"], abs=5e-3)


def test_a_run_that_diverges_ends_with_one_line_and_keeps_the_last_good_checkpoint(uninterrupted, phantoms, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(uninterrupted[0].location, out)
    # Weights are too large to be added up: the next step makes what is no number.
    folder = RunFolder(str(out))
    saved = last_checkpoint(folder)
    next(iter(saved["generator"].values())).fill_(3e38)
    folder.save_checkpoint(3840, packed(saved), keep=2, best=None)
    code, output = run_job("train", *train(phantoms, out, images=6400))
    assert code == 1, output
    last = output.strip().splitlines()[-1]
    assert re.search(r"training stopped: .* at 3,904 images; the last good checkpoint is at 3,840 images$", last)
    assert "Traceback" not in output
    assert folder.checkpoints()[-1] == 3840


@contextmanager
def started_head(folder, cpus, env):
    """Ray in such an environment, by which its sessions are below the folder."""
    ports = ["--port", free_port(), "--ray-client-server-port", free_port()]
    words = ["start", "--head", "--num-cpus", cpus, "--include-dashboard=false", "--block", "--disable-usage-stats"]
    program = Path(sys.executable).parent / "ray"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    head = subprocess.Popen([program, *map(str, words + ports)], env=env, **quiet)
    try:
        until(lambda: Path(folder, "ray/ray_current_cluster").exists(), what="the head")
        yield ports[1]
    finally:
        head.terminate()
        head.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_head_of_one_core_that_was_started_under_tmpdir_is_joined_and_trains(phantoms, tmp_path):
    folder = tempfile.mkdtemp(prefix="mg-", dir="/tmp")
    env = {**os.environ, "TMPDIR": folder, "HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    del env["RAY_TMPDIR"]
    with started_head(folder, 1, env) as port:
        train = ["--preset", "cgan", "--data", phantoms, "--out", tmp_path / "run", *settings(total_images=32)]
        code, output = run_job("train", *train, env=env, without=["RAY_TMPDIR"])
    assert code == 0, output
    assert re.fullmatch(rf"joining the Ray cluster at \S+:{port} \.\.\.", output.splitlines()[0])
    assert "starting Ray" not in output


def test_no_process_imports_from_the_current_directory(tmp_path, key_file):
    for name in ("dl", "torch", "random", "wandb", "pyarrow", "train"):
        (tmp_path / name).mkdir()
    for name in ("torch", "wandb"):
        (tmp_path / name / "__init__.py").write_text(f"raise SystemExit('{name} of the current directory')")
    env = {"PYTHONPATH": f":{ROOT}:."}
    code, output = run_job(
        *("prepare", "--source", "phantom_cxr", "--limit", 160, "--resolution", 32, "--out", "data"),
        *("--patient-key-file", key_file),
        env=env,
        cwd=tmp_path,
    )
    assert code == 0, output
    assert "of the current directory" not in output
    length = settings(total_images=32)
    words = ("train", "--preset", "cgan", "--data", "data", "--out", "run", "--workers", 1, *length)
    code, output = run_job(*words, env=env, cwd=tmp_path)
    assert code == 0, output


@pytest.mark.parametrize("home", ["", "/"])
def test_a_user_whom_the_host_does_not_know_trains_without_a_home(phantoms, tmp_path, home):
    """As OpenShift runs containers: a uid of no passwd, without rights, HOME unset or not writable."""
    rights = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]  # to read what is root's
    unknown = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", *rights]
    if subprocess.run([*unknown, "true"], capture_output=True, check=False).returncode:
        pytest.skip("another user cannot be taken on here")
    place = Path(tempfile.mkdtemp(prefix="mg-", dir="/tmp"))
    try:
        place.chmod(0o777)
        env = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
        env |= {"RAY_TMPDIR": str(place), "TMPDIR": str(place), "PYTHONPATH": str(ROOT)} | (
            {"HOME": home} if home else {}
        )
        train = [sys.executable, str(ROOT / "jobs/train.py"), "--preset", "cgan", "--data", phantoms]
        train += ["--out", f"{place}/run", "--workers", "1", *settings(total_images=32)]
        for cache, status, words in (
            ({"MEDGAN_CACHE": ""}, 2, "train.py: HOME.*; set MEDGAN_CACHE to a folder that can be"),
            ({"MEDGAN_CACHE": f"{place}/cache"}, 0, ""),
        ):
            done = subprocess.run(
                [*unknown, *train], env=env | cache, cwd="/", capture_output=True, text=True, timeout=240, check=False
            )
            assert done.returncode == status, done.stdout + done.stderr
            assert re.fullmatch(words and f"{words}.*\n", done.stderr)
            assert (place / "run").exists() == (status == 0)
            if home:  # the rest is the same as without one
                break
    finally:
        shutil.rmtree(place)


@pytest.fixture
def head(tmp_path):
    """A head with tokens on, under a HOME of its own; (environment, dashboard address)."""
    home = tmp_path / "home"
    home.mkdir()
    bin_folder = str(Path(sys.executable).parent)
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k == "RAY_TMPDIR"}
    env |= {"HOME": str(home), "RAY_AUTH_MODE": "token", "PATH": f"{bin_folder}:{env['PATH']}"}
    env["MEDGAN_TEST_MARK"] = mark = f"medgan-head-{uuid.uuid4().hex}"

    def ray(*arguments):
        return subprocess.run(["ray", *arguments], env=env, capture_output=True, text=True, timeout=120, cwd=ROOT)

    generated = ray("get-auth-token", "--generate")
    assert generated.returncode == 0, generated.stderr
    # Its own, beside any other Ray on this machine: tests run in several processes.
    names = ("port", "ray-client-server-port", "dashboard-port", "dashboard-agent-listen-port")
    ports = [part for name in names for part in (f"--{name}", str(free_port()))]
    ports += ["--min-worker-port", "0", "--max-worker-port", "0"]
    started = ray("start", "--head", "--num-cpus", "2", "--disable-usage-stats", *ports)
    assert started.returncode == 0, started.stdout + started.stderr
    yield env, ray
    job = Job.__new__(Job)
    job.mark = mark
    job.end()
    # So that what is tested next does not find the head's note.
    (Path(os.environ["RAY_TMPDIR"]) / "ray/ray_current_cluster").unlink()


def test_the_submitted_job_of_the_readme_works_as_written(head, phantoms, tmp_path):
    env, ray = head
    lines = [line.strip() for line in (ROOT / "README.md").read_text().splitlines()]
    written = next(line for line in lines if line.startswith("ray job submit"))
    assert written.startswith("ray job submit --working-dir . -- python jobs/train.py --preset cgan --data ")
    command = written.replace("/shared/data/drawn", phantoms).replace("/shared/runs/first", str(tmp_path / "run"))
    assert phantoms in command
    assert str(tmp_path / "run") in command
    extra = settings(total_images=256)
    result = subprocess.run([*command.split(), *extra], env=env, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "done: 256 images" in result.stdout
    assert last_checkpoint(RunFolder(str(tmp_path / "run")))["images_seen"] == 256
    relative = ray(
        "job", "submit", "--working-dir", ".", "--", *command.split("-- ")[1].replace(phantoms, "data").split()
    )
    assert relative.returncode != 0
    assert "--data data: a relative path in a submitted job" in relative.stdout + relative.stderr
    stranger = {**env, "RAY_AUTH_TOKEN": "0" * 64}
    refused = subprocess.run(["ray", "job", "list"], env=stranger, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert refused.returncode != 0


@pytest.mark.parametrize(
    ("films", "images", "fall", "read"),
    [(1500, 10_000, 4, 0.75), pytest.param(6000, 40_000, 10, 0.9, marks=pytest.mark.slow)],
)
def test_the_demo_learns_films_whose_class_can_be_read(tmp_path, key_file, films, images, fall, read):
    """What `make train` runs, and its first quarter on fewer films: KID falls so many times, and a classifier of real
    films reads the class of so many samples."""
    from .classifier import accuracy, fit

    data, out, length = tmp_path / "data", tmp_path / "run", f"total_images={images}"
    for command in (
        (
            *("prepare", "--source", "phantom_cxr", "--out", data, "--resolution", 32, "--limit", films),
            *("--patient-key-file", key_file),
        ),
        ("train", "--config", "jobs/demo.yaml", "--data", data, "--out", out, "--set", length),
        ("generate", "--run", out, "--out", tmp_path / "synthetic", "--per-class", 200),
    ):
        code, output = run_job(*command, timeout=500)
        assert code == 0, output
    kids = [row["metric/kid"] for row in read_rows(out / "metrics.jsonl") if "metric/kid" in row]
    network = fit(str(data))
    assert accuracy(network, str(data), "test") > 0.95
    synthetic = accuracy(network, str(tmp_path / "synthetic"), "train")
    print(json.dumps({"kid": kids, "class_accuracy": synthetic}))
    assert kids[0] / min(kids) >= fall
    assert synthetic >= read
