"""Which cluster a command uses, and how far it is to be trusted: one that is there, or Ray on this host alone.

Ray believes whatever note lies in /tmp/ray, listens on every interface and keeps its token readable for all. Here a
note counts only if oneself or root left it and answers at its address, the token of a cluster is closed to others, and
what is started here is closed to everybody: a token of its own in memory, a folder of mode 700, loopback.
"""

from __future__ import annotations

import atexit
import fcntl
import logging
import os
import secrets
import shutil
import socket
import stat
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray._common.utils import get_default_system_temp_dir, get_ray_address_file
from ray._private import ray_constants, services
from ray._private.authentication.authentication_token_setup import AuthenticationTokenLoader

from medgan.config import Refused
from medgan.host import ROOT, writable
from medgan.keys import exposed
from medgan.terminal import Failed

SIOCGIFADDR = 0x8915  # linux/sockios.h
SOCKET_PATH = 107
"""The most bytes of a socket's path: sun_path in unix(7), with the zero that ends it."""
STARTS = 2
"""How often Ray is started on this host before it is given up."""
PATIENCE_S = 90
"""How long a start may take. Ray gives it 30 s, too few where others keep all cores busy or files are read first."""
TOO_SLOW = "timed out during startup"
"""What Ray says where the time for a start is over."""
GET_NODE = services.get_node
OWN = "mg-"
"""How the folder of a Ray begins that was started here, in the folder for temporary files."""
LOCK = "lock"
"""In such a folder: held by the process that it belongs to."""
LISTENING = "0A"
"""The state of a listening socket in proc_pid_net(5)."""


def connect(verbose: bool = False) -> dict[str, float]:
    """Join the cluster that `cluster_address` finds, or start one here; says which, and returns its resources.

    Ray's own messages stay quiet unless verbose. Raises Refused.
    """
    if not ray.is_initialized():
        level = logging.INFO if verbose else logging.ERROR
        common: dict[str, Any] = {"log_to_driver": verbose, "logging_level": level}
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        for name in ("ray.data", "ray.train"):
            logging.getLogger(name).setLevel(level)
        address = cluster_address()
        if address == "local":
            _start_here(common)
        else:
            close_token()
            print(f"joining the Ray cluster at {address} ...", flush=True)
            with _at_root():
                ray.init(address=address, **common)
    return dict(ray.cluster_resources())


@contextmanager
def _at_root() -> Iterator[None]:
    """Be where medgan lies: Ray puts the driver's current directory before all that its workers import, where a folder
    `dl` of a user's would be taken for a module. The directory may have been deleted meanwhile."""
    here = os.open(".", os.O_PATH)
    os.chdir(ROOT)
    try:
        yield
    finally:
        os.fchdir(here)
        os.close(here)


# -- Ray on this host ----------------------------------------------------------------------------------------------


def _start_here(common: Mapping[str, Any]) -> None:
    """Start Ray on this host, closed to everybody else. Where it takes longer than PATIENCE_S what was read stays in
    memory, so that trying again helps."""
    print("starting Ray on this host ...", flush=True)
    # A token of this instance's own, in the environment: Ray would make one at home, which all can read.
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ.pop("RAY_AUTH_MODE", None)  # `disabled` is for clusters; what Ray starts by itself asks for tokens
    AuthenticationTokenLoader.instance().reset_cache()
    # Loopback alone, by the switch that Ray has for the sake of firewalls on other systems.
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    # In groups of their own: what ends this command's group (`timeout`, a terminal that closes) must not end Ray first.
    # They end with this process by themselves.
    services.ConsolePopen = partial(subprocess.Popen, process_group=0)
    services.get_node = _node_when_there
    options = {**common, "include_dashboard": False, "object_store_memory": 256 * 2**20, "_temp_dir": own_folder()}
    for left in range(STARTS - 1, -1, -1):
        try:
            with _at_root():
                ray.init(address="local", **options)
            return
        except Exception as error:
            if TOO_SLOW not in str(error):
                raise
        if left:
            print(
                f"Ray has not started in {PATIENCE_S} s, perhaps since this host is busy: trying again ...", flush=True
            )
    raise Failed(
        f"Ray did not start in {STARTS} times {PATIENCE_S} s: this host is too busy or short of memory; "
        "try again when it is less"
    )


def _node_when_there(address: str, node_id: str) -> Any:
    """As Ray's own, which raises RuntimeError until the node has said that it is there, but for longer."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return GET_NODE(address, node_id)
        except RuntimeError:
            if time.monotonic() > end:
                raise
        time.sleep(0.2)


def own_folder() -> str:
    """A new folder for a Ray of this process, which ends with it: nobody else can read or guess it.

    Folders of processes that were killed go first.
    """
    place = Path(get_default_system_temp_dir())
    place.mkdir(parents=True, exist_ok=True)
    for folder in place.glob(f"{OWN}*"):
        _remove_stale(folder)
    folder = Path(tempfile.mkdtemp(prefix=OWN, dir=place))  # of mode 700; what Ray makes below is open to all
    held = _locked(folder, os.O_CREAT)
    assert held is not None

    def end() -> None:
        ray.shutdown()
        os.close(held)
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return str(folder / "ray")


def _remove_stale(folder: Path) -> None:
    """Remove such a folder of one's own whose process has ended."""
    with suppress(OSError):
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
            held = _locked(folder)
            if held is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(held)


def _locked(folder: Path, flags: int = 0) -> int | None:
    """The folder's lock, held; None where another process holds it. Raises OSError where there is none."""
    held = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return None
    return held


def _check_folder() -> None:
    """Raises Refused where Ray has no folder for its sessions here, or one whose path is too long for its sockets."""
    session = f"{OWN}abcd1234/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    most = SOCKET_PATH - len(f"/{session}")
    folder = get_default_system_temp_dir()
    named = next((f"{name}={folder}" for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), folder)
    if not os.path.isabs(folder):
        why = "no absolute path"
    elif folder.encode(errors="ignore") != os.fsencode(folder):
        why = "no name in UTF-8"
    elif (length := len(os.fsencode(folder))) > most:
        why = f"{length} bytes are too many for the paths of Ray's sockets, which leave it {most}"
    elif not writable(folder):
        why = "cannot be written"
    else:
        return
    raise Refused(f"{named}: {why}; set RAY_TMPDIR to a short path of a folder of yours on this host, such as /tmp/me")


# -- a cluster that is there ---------------------------------------------------------------------------------------


def cluster_address() -> str:
    """RAY_ADDRESS, or the head that `ray start` noted on this host if it is to be trusted and answers, or `local`.

    The note is where Ray puts it, below RAY_TMPDIR, TMPDIR or /tmp, whichever is set first. Ray's own `auto` also joins
    another user's private instance, and waits for minutes where a head died and left its note behind. Raises Refused
    where nobody answers at RAY_ADDRESS, and where Ray cannot start on this host.
    """
    named = os.environ.get("RAY_ADDRESS", "")
    if named and named not in ("auto", "local"):
        if "://" not in named and not _answers(named):
            raise Refused(f"RAY_ADDRESS={named}: nobody answers there; start the head, or unset it to run here")
        return named
    noted = _noted() if named != "local" else ""
    if noted and _answers(noted) and _ours(noted):
        return noted
    _check_folder()
    return "local"


def _noted() -> str:
    """The address in the note of `ray start`; nothing where there is none that this user or root wrote."""
    note = get_ray_address_file(None)
    try:
        with open(os.open(note, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            found = os.fstat(file.fileno())
            if found.st_uid not in (os.getuid(), 0):
                print(f"note: {note} is another user's (uid {found.st_uid}): not followed", flush=True)
                return ""
            return file.read(1000).strip() if stat.S_ISREG(found.st_mode) else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _answers(address: str) -> bool:
    try:
        with socket.create_connection(_parts(address), timeout=5):
            return True
    except (OSError, ValueError):
        return False


def _parts(address: str) -> tuple[str, int]:
    """Host and port of `host:port`. Raises ValueError."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _ours(address: str) -> bool:
    """Whether none but this user and root listens there, if it is on this host: the head may have ended, and a stranger
    have taken its port, to whom Ray would send the token."""
    host, port = _parts(address)
    here = host.startswith("127.") or host in ("::1", "localhost") or interface_of(host) is not None
    strangers = listeners(port) - {os.getuid(), 0} if here else set()
    for uid in strangers:
        print(f"note: another user (uid {uid}) listens at {address}, where a head was noted: not joined", flush=True)
    return not strangers


def listeners(port: int) -> set[int]:
    """The users whose sockets listen at a TCP port of this host."""
    found = set()
    for table in ("tcp", "tcp6"):
        with suppress(FileNotFoundError):  # a kernel without IPv6
            for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, _, _, _, uid, *_ = line.split()
                if state == LISTENING and int(local.rpartition(":")[2], 16) == port:
                    found.add(int(uid))
    return found


def interface_of(address: str) -> str | None:
    """The network interface of this host that has an address, IPv4 or IPv6; None where there is none."""
    if ":" in address:
        packed = socket.inet_pton(socket.AF_INET6, address).hex()
        lines = (line.split() for line in Path("/proc/net/if_inet6").read_text().splitlines())
        return next((fields[5] for fields in lines if fields[0] == packed), None)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has no IPv4 address
                continue
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    return None


def close_token() -> None:
    """Take from others the right to read Ray's token, which Ray itself writes with mode 644. Raises Refused where the
    file is not ours to change: who reads it runs code on the cluster."""
    if "RAY_AUTH_TOKEN" in os.environ:
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray/auth_token")
    try:
        found = path.stat()
    except OSError:  # Ray says what it misses
        return
    if not exposed(found):
        return
    if found.st_uid == os.getuid():
        path.chmod(0o600)
        print(
            f"note: others could read the cluster's token, {path}: it has mode 600 now; make a new one if this host "
            "has other users",
            flush=True,
        )
    else:
        raise Refused(f"{path}: others can read this token, and run code on the cluster by it: give it mode 600")


def cpus_by_host() -> list[int]:
    """The CPUs of each host of the cluster that this process joined."""
    return [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]


def hosts() -> int:
    """How many hosts the cluster has that this process joined."""
    return sum(node["Alive"] for node in ray.nodes())
