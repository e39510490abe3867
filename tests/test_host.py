"""What a process finds on its host: a home or none, folders of Ray's, PYTHONPATH, a current directory that has gone."""

import getpass
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import ray
from ray._private.utils import validate_socket_filepath

from medgan import host, ray_connect
from medgan.config import Refused
from medgan.data.cache import cache_folder
from medgan.keys import patient_key
from medgan.ray_connect import cluster_address
from medgan.terminal import absolute
from medgan.tracking import has_wandb_key

ROOT = Path(__file__).parent.parent


@pytest.fixture
def short():
    """A folder with a path that is short enough for sockets below it."""
    folder = tempfile.mkdtemp(prefix="mg-", dir="/tmp")
    yield Path(folder)
    shutil.rmtree(folder)


# -- where Ray is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_head_is_found_wherever_ray_notes_it_and_only_where_it_answers(monkeypatch, short, variable):
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(short))
    (short / "ray").mkdir()
    assert cluster_address() == "local"
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        ray._private.utils.write_ray_address(address)
        assert cluster_address() == address
        monkeypatch.setenv("RAY_ADDRESS", "local")
        assert cluster_address() == "local"
        monkeypatch.setenv("RAY_ADDRESS", address)
        (short / "ray/ray_current_cluster").unlink()
        assert cluster_address() == address
    with pytest.raises(Refused, match=f"RAY_ADDRESS={address}: nobody answers"):
        cluster_address()
    monkeypatch.delenv("RAY_ADDRESS")
    ray._private.utils.write_ray_address(address)
    assert cluster_address() == "local"  # the head died and left its note


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"somewhere", b"127.0.0.1:port", None])
def test_a_note_that_names_no_head_or_cannot_be_read_is_none(monkeypatch, short, content):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    note = short / "ray/ray_current_cluster"
    note.parent.mkdir()
    if content is None:
        note.mkdir()
    else:
        note.write_bytes(content)
    assert cluster_address() == "local"


def test_an_address_may_be_of_ipv6(monkeypatch):
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with server:
        monkeypatch.setenv("RAY_ADDRESS", f"[::1]:{server.getsockname()[1]}")
        assert cluster_address() == os.environ["RAY_ADDRESS"]


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_folder_too_long_for_sockets_is_refused_in_one_line_that_says_what_to_set(monkeypatch, short, variable):
    """The limit is that of Ray's own check, for the path that Ray makes."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_TMPDIR")
    refused = []
    for length in range(len(os.fsencode(short)) + 3, 60):
        folder = f"{short}/" + "x" * (length - len(f"{short}/"))
        monkeypatch.setenv(variable, folder)
        session = f"session_2026-12-31_23-59-59_999999_{os.getpid()}"
        try:
            validate_socket_filepath(f"{folder}/mg-abcd1234/ray/{session}/sockets/plasma_store")
        except OSError:
            with pytest.raises(Refused, match=rf"^{variable}={folder}: {length} bytes are too many .*; set RAY_TMPDIR"):
                cluster_address()
            refused.append(length)
        else:
            assert cluster_address() == "local"
    assert refused == list(range(refused[0], 60))
    monkeypatch.setenv(variable, f"{short}/{'ü' * 20}")  # bytes count, not characters
    with pytest.raises(Refused, match="bytes are too many"):
        cluster_address()


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("", "RAY_TMPDIR=: no absolute path; set RAY_TMPDIR"),
        ("r", "RAY_TMPDIR=r: no absolute path; set RAY_TMPDIR"),
        ("/dev/null/r", "RAY_TMPDIR=/dev/null/r: cannot be written; set RAY_TMPDIR"),
        ("/dev/null", "RAY_TMPDIR=/dev/null: cannot be written"),
        ("/tmp/\udcff", "no name in UTF-8; set RAY_TMPDIR"),
    ],
)
def test_a_folder_in_which_ray_cannot_start_is_refused(monkeypatch, folder, words):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", folder)
    with pytest.raises(Refused, match=words):
        cluster_address()


def test_a_folder_that_is_not_there_yet_is_one_that_ray_makes(monkeypatch, short):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", f"{short}/a/b")
    assert cluster_address() == "local"
    assert list(short.iterdir()) == []


# -- a home ------------------------------------------------------------------------------------------------------


@pytest.fixture
def unknown(monkeypatch):
    """This process as that of a user whom no passwd names."""

    def nobody(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "MEDGAN_CACHE", "WANDB_MODE", "NETRC"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    host.settle_home()


def test_a_user_whom_nobody_knows_has_a_name_and_a_home_in_which_nothing_can_be_made(unknown, tmp_path, monkeypatch):
    assert getpass.getuser() == f"uid{os.getuid()}"
    home = Path.home()
    with pytest.raises(OSError, match="Not a directory"):
        (home / ".ray").mkdir(parents=True)
    assert not has_wandb_key()
    with pytest.raises(Refused, match="^HOME is not set; ~/.config/medgan/patient.key .* --patient-key-file$"):
        patient_key(None)
    with pytest.raises(Refused, match="^HOME is not set; set MEDGAN_CACHE"):
        cache_folder()
    with pytest.raises(Refused, match="^--out ~/x: HOME is not set; give an absolute path$"):
        absolute("--out", "~/x")
    monkeypatch.setenv("MEDGAN_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"


@pytest.mark.parametrize("home", [None, ""])
def test_without_home_a_known_user_has_that_of_passwd(monkeypatch, home):
    monkeypatch.setenv("HOME", home or "")
    if home is None:
        monkeypatch.delenv("HOME")
    host.settle_home()
    assert os.environ["HOME"] == pwd.getpwuid(os.getuid()).pw_dir


def test_a_home_that_is_set_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    host.settle_home()
    assert os.environ["HOME"] == str(tmp_path)


@pytest.mark.parametrize("cache", ["/dev/null/cache", "/proc/version"])
def test_a_cache_that_cannot_be_written_is_named(monkeypatch, cache):
    monkeypatch.setenv("MEDGAN_CACHE", cache)
    with pytest.raises(Refused, match=f"^MEDGAN_CACHE={cache}: cannot be written; set MEDGAN_CACHE"):
        cache_folder()


@pytest.mark.parametrize("before", ["", "of a cluster"])
def test_ray_on_this_host_has_a_token_of_its_own_that_is_never_in_a_file(monkeypatch, tmp_path, before):
    """Ray would make one at home, for all to read, and not start where it cannot be kept."""
    started = []
    monkeypatch.setattr(ray, "init", lambda **options: started.append((os.environ["RAY_AUTH_TOKEN"], options)))
    monkeypatch.setattr(ray_connect, "own_folder", lambda: str(tmp_path / "ray"))
    monkeypatch.setattr(ray_connect.ray_constants, "ENABLE_RAY_CLUSTER", True)
    for name in ("RAY_AUTH_MODE", ray_connect.ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR):
        monkeypatch.setenv(name, "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", before)
    for _ in range(2):
        ray_connect._start_here({})
    (one, options), (other, _) = started
    assert len({one, other, before}) == 3
    assert len(one) == 64
    assert options["_temp_dir"] == str(tmp_path / "ray")
    assert "RAY_AUTH_MODE" not in os.environ


# -- what is imported --------------------------------------------------------------------------------------------

SHADOWS = ("dl", "torch", "random", "wandb", "json", "ray")


@pytest.fixture
def shadows(tmp_path, monkeypatch):
    """The current directory, with folders that are named as modules are."""
    for name in SHADOWS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('from the current directory')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (":", ""),
        (":/a", "/a"),
        ("/a::/b:", "/a:/b"),
        (".:/a", "/a"),
        ("sub:/a", "{here}/sub:/a"),
        ("/a:{here}", "/a:{here}"),  # somebody wants it
        ("{here}::/a", "{here}:{here}:/a"),
    ],
)
def test_of_pythonpath_the_current_directory_is_left_out_unless_it_is_named(shadows, monkeypatch, given, left):
    here = str(shadows)
    monkeypatch.setenv("PYTHONPATH", given.format(here=here))
    monkeypatch.setattr(
        sys, "path", ["/script", *(os.path.abspath(part) for part in given.format(here=here).split(":"))]
    )
    host.settle_imports()
    assert os.environ["PYTHONPATH"] == left.format(here=here)
    assert (here in sys.path) == ("{here}" in given)
    assert sys.path[0] == "/script"


def test_pythonpath_may_lead_to_medgan_from_its_own_folder(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", ".")
    monkeypatch.setattr(sys, "path", ["/script", str(ROOT)])
    host.settle_imports()
    assert (os.environ["PYTHONPATH"], sys.path[1]) == (str(ROOT), str(ROOT))


def test_a_script_starts_beside_folders_that_are_named_as_modules_are(shadows):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:"}
    words = [sys.executable, ROOT / "jobs/prepare.py", "--source", "phantom_cxr", "--out", "data", "--resolution", "3"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("prepare.py: --resolution 3: must be a power of two")


@pytest.mark.parametrize("address", ["local", "10.0.0.1:6379"])
def test_rays_workers_do_not_import_from_the_drivers_current_directory(shadows, monkeypatch, address):
    """Ray takes it from `os.path.abspath(os.path.curdir)` when it is started or joined."""
    seen = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: seen.append(os.path.abspath(os.path.curdir)))
    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr(ray_connect, "cluster_address", lambda: address)
    monkeypatch.setattr(ray_connect, "own_folder", lambda: "/tmp/mg/ray")
    monkeypatch.setattr(ray_connect.ray_constants, "ENABLE_RAY_CLUSTER", True)
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", ray_connect.ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR):
        monkeypatch.setenv(name, "1")
    ray_connect.connect()
    assert seen == [str(ROOT)]
    assert Path.cwd() == shadows


# -- the current directory ---------------------------------------------------------------------------------------


def test_a_current_directory_that_was_deleted_is_named_where_it_is_needed(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setenv("PYTHONPATH", f":{ROOT}:sub")
    host.settle_imports()
    assert os.environ["PYTHONPATH"] == str(ROOT)
    assert absolute("--out", "/x") == "/x"
    with pytest.raises(Refused, match="^--out x: the current directory was deleted; change to another one$"):
        absolute("--out", "x")
    with ray_connect._at_root():
        assert Path.cwd() == ROOT


def test_a_path_that_is_no_text_is_refused(tmp_path, monkeypatch):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    Path(folder).mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(Refused, match=r"^--out '.*/caf\\udce9/x': is not UTF-8"):
        absolute("--out", "x")
