"""Training on three hosts of their own, through `ray job submit`: what happens to clusters happens here."""

import os
import re
import subprocess
import sys
import time
from base64 import b64encode
from contextlib import suppress
from pathlib import Path

import pytest

from cluster import hosts as tool
from medgan.data import shards
from medgan.data.sources import SOURCES, Options, Raw
from medgan.folder import SearchFolder, checkpoint_name
from medgan.state import open_checkpoint
from medgan.tracking import read_rows

from .conftest import TINY, fill_up, small_disk, write_phantoms
from .hosts import (
    ENDLESS,
    SETTINGS,
    Submitted,
    alive,
    ask,
    assert_every_image_once_per_epoch,
    assert_same_weights,
    job_of,
    ray_command,
    undisturbed,
    until,
)
from .wandb_stand_in import serve

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.hosts, pytest.mark.timeout(900)]


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


@pytest.mark.parametrize(
    "moment",
    [
        *(pytest.param(early, marks=pytest.mark.slow) for early in ("network.json", "disks/host1")),
        *("disks/host2/ready", "disks/host1/ray.log"),
    ],
)
def test_ctrl_c_while_hosts_start_leaves_nothing(tmp_path, moment):
    needs_hosts()
    folder = tmp_path / "hosts"
    with command_line(folder, "up", "2", start_new_session=True) as starting:
        try:
            until((folder / moment).exists, 30, "the start")
            os.killpg(starting.pid, 2)
            output, _ = starting.communicate(timeout=60)
            assert starting.returncode == 130, output
            assert leftovers(folder) == []
        finally:
            starting.kill()
            tool.Hosts(folder).down()


def test_a_process_that_changes_its_program_while_its_host_is_killed_ends_too(tmp_path, monkeypatch):
    needs_hosts()
    (tmp_path / "disks/host1").mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"]) as process:
        seen = iter([[], [process.pid], [], []])
        monkeypatch.setattr(tool.Hosts, "_processes", lambda hosts, name: next(seen))
        tool.Hosts(tmp_path).kill("host1")
        assert process.wait(timeout=5) == -9


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Three hosts, and in what they share a data folder and a small disk."""
    needs_hosts()
    made = tool.Hosts(Path(f"/tmp/mg-{os.getpid()}"))
    try:
        made.shared.mkdir(parents=True)
        with small_disk(made.shared / "small", "size=64m"):
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


@pytest.fixture
def submit(hosts):
    submitted = []

    def start(*arguments, **options):
        submitted.append(Submitted(hosts, *arguments, **options))
        return submitted[-1]

    yield start
    for job in submitted:
        job.end()


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


def test_every_command_does_what_it_says_and_says_what_is_wrong(hosts):
    def says(*words):
        said = command_line(hosts.folder, *words)
        output, _ = said.communicate(timeout=60)
        return said.returncode, output.strip()

    def states():
        return [line.split()[2] for line in says("status")[1].splitlines()[:3]]

    calls = f"import socket; socket.create_connection(('{hosts.address('host1')}', 6379), 2)"
    reach = ["exec", "host2", "--", "python", "-c", calls]
    assert says("exec", "host2", "--", "hostname") == (0, "host2")
    assert says("exec", "host2", "--", "sh", "-c", "exit 7") == (7, "")
    assert says(*reach)[0] == 0
    assert says("cut", "host2") == (0, "")
    assert states() == ["up", "cut", "up"]
    assert says(*reach)[0] == 1
    assert says("heal", "host2") == (0, "")
    # A neighbour that was asked for in vain until just now is refused for another second, as on any network.
    until(lambda: says(*reach)[0] == 0, 10, "host2 to reach host1 again")
    assert says("kill", "host3") == (0, "")
    assert states() == ["up", "up", "dead"]
    for words, told in {
        ("exec", "host3", "--", "true"): "host3: is dead; `up` starts it again",
        ("cut", "host3"): "host3: is dead; `up` starts it again",
        ("kill", "host9"): "host9: no such host; there are host1, host2, host3",
        ("heal", "kiosk"): "kiosk: no such host; there are host1, host2, host3",
        ("exec", "host1"): "exec host1: give the command after --",
        ("cut",): "cut: which host?",
        ("up", "many"): "up many: give a number of hosts from 1 to 50",
    }.items():
        assert says(*words) == (2, f"hosts.py: {told}")
    code, output = says("up", "3")
    assert (code, states()) == (0, ["up", "up", "up"]), output


def drawn(count):
    """Patients of so many drawn films."""
    return {record.patient for record in SOURCES["phantom_cxr"].listing(Raw(""), Options(limit=count)).records}


def command_lines():
    """Those of all processes of the machine, the hosts' included."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            yield path.read_bytes()


def test_three_workers_on_three_hosts_equal_one_process_and_no_secret_is_written(hosts, submit):
    """Every secret is used where it is looked for: the token by Ray, the patient key by a preparation, the W&B key by
    what sends the run to a server."""
    secrets = {name: bytes.hex(os.urandom(20)) for name in ("W&B key", "patient key")}
    secrets["token"] = hosts.token.read_text()
    (hosts.shared / "patient.key").write_text(secrets["patient key"])
    (hosts.shared / "patient.key").chmod(0o600)
    seen, printed = set(), ""

    def watched(process, timeout):
        """Keep the command lines of whatever runs until a process ends."""
        end = time.monotonic() + timeout
        while process.poll() is None and time.monotonic() < end:
            seen.update(command_lines())
            time.sleep(0.3)

    prepare = ["jobs/prepare.py", "--source", "phantom_cxr", "--resolution", "32", "--limit", "60"]
    prepare += ["--out", str(hosts.shared / "keyed"), "--patient-key-file", str(hosts.shared / "patient.key")]
    preparing = job_of(hosts, *prepare)
    watched(preparing, 120)
    printed += preparing.communicate(timeout=1)[0]
    assert preparing.returncode == 0, printed
    with serve(address=hosts.address("")) as server:
        for home in hosts.folder.glob("disks/*/home"):
            machine = server.url.removeprefix("http://")
            (home / ".netrc").write_text(f"machine {machine} login user password {secrets['W&B key']}\n")
        settings = {"total_images": 480, "evaluate__interval_kimg": 0.48, "tracking__wandb": "auto"}
        online = {"WANDB_MODE": "online", "WANDB_BASE_URL": server.url}
        job = submit("three", "3", variables=online, **settings)
        watched(job.process, 300)
        code, output = job.wait(1)
    printed += output
    assert code == 0, output
    assert "done: 480 images" in output
    assert "of the time, evaluations took " in output
    assert set(assert_every_image_once_per_epoch(job)) == {3}
    assert len(list(hosts.folder.glob("disks/*/cache/*/train.pixels.npy"))) == 3  # each host has a cache of its own
    assert_same_weights(job.folder, undisturbed(hosts, "one", job))

    patients = {shards.keyed_id(bytes.fromhex(secrets["patient key"]), "phantom_cxr", name) for name in drawn(60)}
    assert set(shards.column(hosts.shared / "keyed", "train", "patient")) <= patients
    assert server.keys == {secrets["W&B key"]}
    assert [row["images_seen"] for rows in server.history.values() for row in rows][-1] == 480
    assert any(b"RayTrainWorker" in line for line in seen)
    written = [*job.out.rglob("*"), *hosts.folder.glob("disks/*/ray/**/*"), *(hosts.shared / "keyed").rglob("*")]
    written = [path for path in written if path.is_file()]
    assert len(written) > 50
    assert any("wandb" in path.parts for path in written)
    for name, secret in secrets.items():
        for form in (secret, b64encode(f"api:{secret}".encode()).decode()):
            assert not [path for path in written if form.encode() in path.read_bytes()], name
            assert form not in printed
            assert not [line for line in seen if form.encode() in line], name


def test_an_elastic_run_outlives_a_worker_and_a_host_takes_up_one_that_joins_and_is_not_split_by_one_cut_off(
    hosts, submit
):
    job = submit("elastic", "1-3", total_images=ENDLESS)
    job.line("^480/")
    started = time.monotonic()
    hosts.exec("host2", ["kill", "-9", job.worker("host2")])
    moment, row = job.restarted(0)
    print(f"a worker was killed: training again after {moment - started:.0f} s")
    assert row["resume/workers"] == 3
    assert moment - started < 60

    time.sleep(5)
    started = time.monotonic()
    hosts.kill("host3")
    moment, row = job.restarted(1)
    print(f"a host was killed: training again after {moment - started:.0f} s")
    assert row["resume/workers"] == 2
    assert moment - started < 90

    started = time.monotonic()
    hosts.up(3)
    moment, row = job.restarted(2, timeout=120)
    print(f"a host joined: taken up after {moment - started:.0f} s")
    assert row["resume/workers"] == 3
    job.line(r"3 workers now; \d+ s and \d+ images lost", started)

    victim = job.holder() if job.holder() != tool.HEAD else "host2"  # if possible the one that writes
    started = time.monotonic()
    hosts.cut(victim)
    assert hosts.state(victim) == "cut"
    moment, row = job.restarted(3, timeout=90)
    print(f"{victim} was cut off: training again after {moment - started:.0f} s")
    assert row["resume/workers"] == 2
    assert job.holder() != victim
    hosts.heal(victim)
    job.restarted(4, timeout=120)

    job.stop()
    assert not list((job.out / "checkpoints").glob("*.damaged"))
    assert {2, 3} <= set(assert_every_image_once_per_epoch(job))
    rows = [row for row in read_rows(job.out / "metrics.jsonl") if "resume/lost_s" in row]
    assert [row["resume/workers"] for row in rows] == [3, 2, 3, 2, 3]
    assert all(0 <= row["resume/lost_images"] <= 240 + 48 for row in rows)
    # Where a run is stopped nothing is evaluated, which calibrates the averaged generator; so the one before.
    assert_same_weights(job.folder, undisturbed(hosts, "elastic-one", job), at=-2)


def test_a_worker_that_hangs_is_named_and_replaced_and_a_stopped_job_goes_on_without_its_newest_checkpoint(
    hosts, submit
):
    job = submit("hang", "3", "--timeout", "20", total_images=ENDLESS)
    job.line("^480/")
    started = time.monotonic()
    hosts.exec("host2", ["kill", "-STOP", job.worker("host2")])
    moment, matched = job.line(r"worker \d on (\S+) did not answer for 20 s; starting anew", started)
    assert matched.group(1) == hosts.address("host2")
    assert moment - started < 20 + 40
    resumed, _ = job.line("going on from the checkpoint", moment)
    job.progress(resumed)

    newest = job.stop()
    logs = ray_command(hosts, "job", "logs", "--address", hosts.dashboard, job.id).stdout
    told = re.search(r"stopped at ([\d,]+) images; to go on: (.*)", logs)
    assert told, logs[-2000:]
    assert int(told.group(1).replace(",", "")) == newest
    assert 0 <= newest - read_rows(job.out / "metrics.jsonl")[-1]["images_seen"] < 48  # saved where it stopped
    assert told.group(2).startswith("ray job submit --working-dir . -- python jobs/train.py --preset cgan --data ")
    before = job.folder.checkpoints()[-2]
    file = job.out / checkpoint_name(newest)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    again = job.again()
    assert f"the checkpoint at {newest:,} images is damaged and set aside" in again.text
    assert f"going on from the checkpoint at {before:,} images" in again.text
    assert file.with_name(f"{file.name}.damaged").read_bytes() == content


def test_a_notice_that_a_host_will_be_taken_away_saves_a_checkpoint_at_once(hosts, submit):
    job = submit("notice", "1-3", total_images=ENDLESS, checkpoint__interval_kimg=1000)
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


@pytest.mark.slow  # what every killed run shows, by another way to end
def test_a_job_that_is_given_no_time_to_save_loses_at_most_one_interval(hosts, submit):
    job = submit("hasty", "3", variables={"RAY_JOB_STOP_WAIT_TIME_S": "0"}, total_images=ENDLESS)
    job.line("^960/")
    saved = job.stop()
    assert "to go on: " not in job.text
    trained = read_rows(job.out / "metrics.jsonl")[-1]["images_seen"]
    assert 0 <= trained - saved <= 240 + 48  # what is trained beside the writing of a checkpoint, too
    assert open_checkpoint(job.folder.read_checkpoint(saved))["images_seen"] == saved


@pytest.mark.slow  # on one host, test_run.py fills disks in every `make test`
def test_a_disk_that_fills_ends_the_run_with_one_line_and_leaves_a_checkpoint_to_go_on_from(hosts, submit):
    job = submit("small/full", "3", total_images=ENDLESS)
    job.line("^480/")
    fill_up(job.out.parent)
    code, output = job.wait(120)
    assert code == 1, output
    saved = job.folder.checkpoints()[-1]
    (told,) = {line for line in output.splitlines() if line.startswith("train.py: ")}  # Ray repeats a log's end
    assert "/full cannot be written: No space left on device; " in told
    assert told.endswith(f"the last good checkpoint is at {saved:,} images")
    (job.out.parent / "others").unlink()
    assert f"going on from the checkpoint at {saved:,} images" in job.again().text


def test_a_second_command_is_refused_and_the_same_goes_on_after_its_driver_and_then_the_head_were_killed(hosts, submit):
    first = submit("twice", "2", total_images=ENDLESS)
    first.line("^480/")
    second = submit("twice", "2", total_images=ENDLESS)
    code, output = second.wait(90)
    assert code == 1, output
    assert re.search(r"train.py: .*/twice: another command, on host\d, writes this run: stop it first", output)
    driver = hosts.exec("host1", ["pgrep", "-f", "^python jobs/train.py"], capture_output=True).stdout.split()
    hosts.exec("host1", ["kill", "-9", *driver])
    assert first.wait(60)[0] == 1
    saved = first.folder.checkpoints()[-1]
    third = submit("twice", "2", total_images=ENDLESS)
    moment, _ = third.line("is silent: waiting 30 s in all")
    moment, _ = third.line(f"going on from the checkpoint at {saved:,} images", moment)
    third.progress(moment)
    hosts.kill("host1")
    third.process.kill()
    hosts.up(3)
    until(lambda: alive(hosts) == 3, 60, "three hosts")
    assert "going on from the checkpoint at" in third.again().text


@pytest.mark.slow  # a whole search, twice
def test_a_search_over_the_hosts_goes_on_after_its_head_was_killed_and_trains_nothing_twice(hosts):
    folder = SearchFolder(str(hosts.shared / "search"))
    length = {"total_images": 6400, "evaluate.interval_kimg": 3.2, "checkpoint.interval_kimg": 0.64}
    fixed = [word for key, value in {**TINY, **length}.items() for word in ("--set", f"{key}={value}")]
    words = ["--data", str(hosts.shared / "data"), "--out", folder.location, "--trials", "3", "--algorithm", "random"]
    words += ["--space", "model.name=dcgan,cgan", "--scheduler", "none", "--finalists", "0", *fixed]

    def submitted():
        return job_of(hosts, "jobs/search.py", *words)

    def trials_on(name):
        return hosts.exec(name, ["pgrep", "-f", "Trainable.train"], capture_output=True).stdout.split()

    job = submitted()
    try:
        saved = lambda: [path.parts[-3] for path in hosts.shared.glob("search/trials/*/checkpoints/*.pt")]
        until(lambda: len(set(saved())) == 3 or job.poll() is not None, 180, "a checkpoint of every trial")
        assert [len(trials_on(name)) for name in hosts.names()] == [1, 1, 1]
        hosts.kill("host1")
    finally:
        job.kill()
        job.communicate()
    assert {record["status"] for record in folder.trials()} == {"running"}
    hosts.up(3)
    until(lambda: alive(hosts) == 3, 60, "three hosts")
    again = submitted()
    try:
        output, _ = again.communicate(timeout=300)
    finally:
        again.kill()
    assert again.returncode == 0, output[-3000:]
    assert "is silent: waiting 30 s in all" in output
    assert "winner: trial" in output
    for record in folder.trials():
        assert (record["status"], record["images_seen"]) == ("done", 6400)
        rows = read_rows(Path(folder.run(record).location) / "metrics.jsonl")
        assert [row["images_seen"] for row in rows if "loss/D" in row] == list(range(32, 6401, 32))


SRUN = """
import os, subprocess, sys
from pathlib import Path
from cluster.hosts import Hosts
hosts, words, only = Hosts(Path(sys.argv[1])), sys.argv[2:], None
while words[0].startswith("--"):
    only = words[0].removeprefix("--nodelist=") if words[0].startswith("--nodelist=") else only
    words.pop(0)
taken = ("RAY_", "MEDGAN_", "PYTHONPATH", "PATH")
given = [f"{key}={value}" for key, value in os.environ.items() if key.startswith(taken)]
shell = ["env", *given, "sh", "-c", 'cd "$0" && exec "$@"', os.getcwd(), *words]
steps = [subprocess.Popen(hosts.on(name, shell)) for name in ([only] if only else hosts.names())]
sys.exit(max(step.wait() for step in steps))
"""


@pytest.mark.slow  # a whole run, twice
def test_the_slurm_script_trains_on_three_nodes_and_saves_and_queues_again_before_its_time_is_up(tmp_path):
    """Slurm's two commands are stood in for: srun runs on every host, scontrol knows their names."""
    needs_hosts()
    bare, shims = tool.Hosts(Path(f"/tmp/ms-{os.getpid()}")), tmp_path / "bin"
    shims.mkdir()
    (shims / "srun.py").write_text(SRUN)
    (shims / "srun").write_text(f'#!/bin/sh\nexec {sys.executable} {shims}/srun.py {bare.folder} "$@"\n')
    (shims / "scontrol").write_text(
        f'#!/bin/sh\n[ "$1" = requeue ] && echo "$2" >> {tmp_path}/queued || printf "host1\\nhost2\\nhost3\\n"\n'
    )
    for shim in ("srun", "scontrol"):
        (shims / shim).chmod(0o755)
    try:
        bare.up(3, ray=False)
        data, out = write_phantoms(bare.shared / "data"), bare.shared / "run"
        settings = [f for key, value in SETTINGS.items() for f in ("--set", f"{key}={value}")]
        settings += ["--set", "total_images=1000000", "--set", "checkpoint.interval_kimg=1000"]
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
            **{"PATH": f"{shims}:{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
            **{"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "host[1-3]", "SLURM_SUBMIT_DIR": str(ROOT)},
            **{"SLURM_CPUS_PER_TASK": "1"},
            **{"RAY_AUTH_TOKEN_PATH": str(bare.token), "TMPDIR": str(bare.folder / "local")},
        }
        train = ["--preset", "cgan", "--data", data, "--out", out, "--workers", "3", *settings]
        with open(tmp_path / "log", "w") as log:
            batch = subprocess.Popen(
                [ROOT / "cluster/slurm.sh", *map(str, train)], env=environment, stdout=log, stderr=log, cwd=tmp_path
            )
        said = lambda: (tmp_path / "log").read_text()
        until(lambda: re.search(r"^480/", said(), re.MULTILINE) or batch.poll() is not None, 150, "training")
        batch.terminate()
        assert batch.wait(60) == 0, said()[-3000:]
        stopped = re.search(r"stopped at ([\d,]+) images; to go on: python jobs/train.py", said())
        assert stopped, said()[-3000:]
        assert (out / f"checkpoints/{int(stopped.group(1).replace(',', '')):012d}.pt").exists()
        assert (tmp_path / "queued").read_text() == "42\n"
        assert {line["workers"] for line in read_rows(out / "order.jsonl")} == {3}
    finally:
        bare.down()
    assert leftovers(bare.folder) == []
