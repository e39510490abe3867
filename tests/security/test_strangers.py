"""Another user of the host: notes, ports, tokens and folders that are not one's own."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from ray._private.ray_constants import ENABLE_RAY_CLUSTERS_ENV_VAR

from medgan import ray_connect
from medgan.config import Refused

from ..test_ray import Job, settings, until

STRANGER = 54321
"""A user of whom this host knows nothing."""


@pytest.fixture
def place(monkeypatch):
    """Where Ray looks for notes and puts what it starts: short, and no user's in particular."""
    for name in ("RAY_ADDRESS", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    folder = Path(tempfile.mkdtemp(prefix="mg-", dir="/tmp"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    (folder / "ray").mkdir()
    yield folder
    shutil.rmtree(folder)


def needs_root():
    if os.geteuid():
        pytest.skip("only root can make files and sockets of another user")


def note(folder: Path, address: str) -> Path:
    file = folder / "ray/ray_current_cluster"
    file.write_text(address)
    return file


# -- notes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["file", "link", "pipe"])
def test_a_note_that_another_user_left_is_not_followed(place, capsys, way):
    needs_root()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        file = note(place, address)
        assert ray_connect.cluster_address() == address
        if way == "link":
            file.rename(place / "elsewhere")
            file.symlink_to(place / "elsewhere")
        elif way == "pipe":  # which would be waited for
            file.unlink()
            os.mkfifo(file)
        os.chown(file, STRANGER, STRANGER, follow_symlinks=False)
        assert ray_connect.cluster_address() == "local"
    told = capsys.readouterr().out
    assert (f"{file} is another user's (uid {STRANGER}): not followed" in told) == (way != "link")


def test_a_port_that_another_user_took_after_the_head_had_ended_is_not_joined(place, capsys):
    """It would be sent the token of the cluster."""
    needs_root()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        os.fchown(server.fileno(), STRANGER, STRANGER)  # as if a process of theirs had made it
        for host in ("127.0.0.1", "localhost"):
            note(place, f"{host}:{port}")
            assert ray_connect.cluster_address() == "local"
            told = f"note: another user (uid {STRANGER}) listens at {host}:{port}, where a head was noted: not joined\n"
            assert capsys.readouterr().out == told


# -- the token -------------------------------------------------------------------------------------------------------


@pytest.fixture
def token(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text("0" * 64)
    return tmp_path / "token"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_token_that_others_can_read_is_closed_with_a_line(token, capsys, mode):
    token.chmod(mode)
    ray_connect.close_token()
    assert token.stat().st_mode & 0o777 == 0o600
    assert f"note: others could read the cluster's token, {token}: it has mode 600 now" in capsys.readouterr().out
    ray_connect.close_token()
    assert capsys.readouterr().out == ""


def test_a_token_of_another_user_is_refused_where_others_can_read_it(token, capsys):
    needs_root()
    os.chown(token, STRANGER, STRANGER)
    token.chmod(0o644)
    with pytest.raises(Refused, match=f"^{token}: others can read this token, and run code on the cluster by it"):
        ray_connect.close_token()
    token.chmod(0o440)  # as Kubernetes mounts one for a group
    ray_connect.close_token()
    assert capsys.readouterr().out == ""


def test_a_token_in_the_environment_and_none_at_all_are_left_alone(token, monkeypatch, capsys):
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    ray_connect.close_token()
    assert token.stat().st_mode & 0o777 == 0o644
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    token.unlink()
    ray_connect.close_token()
    assert capsys.readouterr().out == ""


# -- the folder of a Ray that is started here ------------------------------------------------------------------------


def test_the_folder_of_an_own_ray_is_closed_to_others_and_goes_with_its_process(place):
    script = "from medgan.ray_connect import own_folder; print(own_folder(), flush=True); input()"
    words = [sys.executable, "-c", script]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        folder = Path(process.stdout.readline().strip()).parent
        assert (folder.parent, folder.stat().st_mode & 0o777) == (place, 0o700)
        process.communicate("\n")
    assert not folder.exists()


def test_folders_of_processes_that_were_killed_are_removed_and_no_others(place):
    script = "from medgan.ray_connect import own_folder; print(own_folder(), flush=True); input()"
    words = [sys.executable, "-c", script]
    kept = {place / "mg-film", place / "mg-other", place / "mg-link", place / "ray"}
    (place / "mg-film").mkdir()  # without a lock: of something else
    (place / "mg-other").mkdir()
    (place / "mg-other/lock").symlink_to("/etc/passwd")
    (place / "mg-link").symlink_to(place / "ray")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as living:
        alive = Path(living.stdout.readline().strip()).parent
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as killed:
            dead = Path(killed.stdout.readline().strip()).parent
            killed.kill()
        assert dead.exists()
        assert subprocess.run(words, input="\n", text=True, stdout=subprocess.DEVNULL, check=True)
        assert set(place.iterdir()) == kept | {alive}
        living.communicate("\n")


# -- a whole training ------------------------------------------------------------------------------------------------


def listening(pids):
    """(address, program) of every TCP socket at which these processes listen."""
    found = set()
    for pid in pids:
        try:
            process = psutil.Process(pid)
            sockets = process.net_connections(kind="tcp")
            found |= {(s.laddr.ip, process.name()) for s in sockets if s.status == psutil.CONN_LISTEN}
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.ray
def test_a_training_on_one_host_listens_at_loopback_alone_and_leaves_nothing_that_others_can_read(
    phantoms, tmp_path, monkeypatch
):
    temporary = Path(tempfile.mkdtemp(prefix="mg-", dir="/tmp"))
    home = tmp_path / "home"
    home.mkdir()
    env = {"HOME": str(home), "RAY_TMPDIR": str(temporary), "TMPDIR": str(temporary), "RAY_AUTH_MODE": "disabled"}
    length = settings(total_images=64000)
    words = ["--preset", "cgan", "--data", phantoms, "--out", tmp_path / "run", "--workers", 2, *length]
    job = Job("train", *words, env=env, without=["RAY_AUTH_TOKEN"])
    try:
        until(lambda: (tmp_path / "run/metrics.jsonl").exists(), what="training")
        found = listening(job.pids())
        assert {"gcs_server", "raylet"} <= {program for _, program in found}
        assert {address for address, _ in found} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
        assert {folder.stat().st_mode & 0o777 for folder in temporary.glob("mg-*")} == {0o700}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
        at_loopback = {ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}  # as medgan sets it: else Ray looks at the host's own address
        stranger = {**os.environ, **env, **token, **at_loopback}
        (port,) = (s.laddr.port for s in ports(job, "gcs_server"))
        script = f"import ray; ray.init('127.0.0.1:{port}', logging_level='ERROR')"
        refused = subprocess.run(
            [sys.executable, "-c", script], env=stranger, capture_output=True, text=True, timeout=90
        )
        assert refused.returncode != 0
        assert "token" in refused.stderr
        os.killpg(job.process.pid, signal.SIGINT)
        code, output = job.wait()
        assert code == 130, output
    finally:
        job.end()
    assert not list(home.rglob("auth_token"))
    assert not list(temporary.glob("mg-*"))
    shutil.rmtree(temporary)


def ports(job, name):
    for pid in job.pids(name):
        process = psutil.Process(pid)
        if process.name() == name:
            yield from (s for s in process.net_connections(kind="tcp") if s.status == psutil.CONN_LISTEN)
