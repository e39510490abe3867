"""Several hosts on one Linux machine: a Ray cluster to try what happens when hosts die, vanish and come back.

    python cluster/hosts.py up 3              # start them, or those that are missing (a killed one comes back)
    python cluster/hosts.py status            # addresses, the head first, and how to submit a job
    python cluster/hosts.py exec host2 -- CMD
    python cluster/hosts.py kill host2        # all its processes at once, as if the power went
    python cluster/hosts.py cut host2         # pull its network cable; `heal host2` puts it back
    python cluster/hosts.py down

Each host is a set of namespaces (network, processes, mounts, name) with an address on a bridge, a disk of its own at
`local` and Ray with token authentication on; `shared` stands in for NFS. All of it lies in $MEDGAN_HOSTS (default
/tmp/medgan-hosts), and `down`, or Ctrl-C while they start, leaves nothing behind. Needs root and iproute2.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from medgan.config import Refused
from medgan.terminal import Failed, Parser, command

HEAD = "host1"
CLUSTER = Path(__file__).parent
# What a host takes over from the environment of whoever starts it.
INHERITED = ("OMP_NUM_THREADS", "WANDB_MODE", "LANG", "TERM")
# The first process of a host: gives it its name and its own disk, then waits and buries orphans. Like Debian, it says
# that the host's name is a loopback address: training must find its interface by itself. There is no name server.
INIT = """
hostname "$1"
mount --bind "$2/disks/$1" "$2/local"
printf '127.0.0.1 localhost\\n127.0.1.1 %s\\n' "$1" > "$2/local/hosts"
mount --bind "$2/local/hosts" /etc/hosts
: > "$2/local/resolv.conf"
mount --bind "$2/local/resolv.conf" /etc/resolv.conf
mount -t tmpfs tmpfs /dev/shm
ip link set lo up
touch "$2/local/ready"
while :; do sleep 3600; done
"""


# Starts Ray whenever it is not there, as systemd or Kubernetes would: a raylet that was given up for dead ends itself.
KEEP_RAY = "while :; do ray start --block --disable-usage-stats {}; sleep 1; done > {}/ray.log 2>&1 &"


def why_not() -> str | None:
    """Why hosts cannot be started on this machine, or None."""
    for tool in ("ip", "unshare", "nsenter", "setsid"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (iproute2 and util-linux have it)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    tried = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "ip", "link", "add", "mg0", "type", "veth"],
        capture_output=True,
        text=True,
        check=False,
    )
    return " ".join(tried.stderr.split()) if tried.returncode else None


@dataclass(frozen=True)
class Hosts:
    """The hosts of one folder. Nothing is kept in memory: every call reads what is there."""

    folder: Path

    @property
    def bridge(self) -> str:
        return "mg" + hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]

    @property
    def shared(self) -> Path:
        return self.folder / "shared"

    @property
    def token(self) -> Path:
        return self.folder / "token"

    @property
    def dashboard(self) -> str:
        return f"http://{self.address(HEAD)}:8265"

    def check(self) -> None:
        """Refuse a folder that somebody else made or may write to: root would follow where it leads."""
        if not os.path.lexists(self.folder):
            return
        found = self.folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise Refused(f"{self.folder}: is not yours alone; name another folder with MEDGAN_HOSTS")

    def names(self) -> list[str]:
        """Every host that was started and not taken down, the head first; killed ones too."""
        return sorted((path.name for path in (self.folder / "disks").glob("host*")), key=_number)

    def address(self, name: str) -> str:
        """The address of a host; of the machine itself for an empty name."""
        subnet = json.loads((self.folder / "network.json").read_text())["subnet"]
        return f"{subnet}.{10 + _number(name) if name else 1}"

    def pid(self, name: str) -> int | None:
        """The host's first process as the machine sees it, or None where the host is not up."""
        return next((pid for pid in self._processes(name) if _is_first(pid)), None)

    def _processes(self, name: str) -> list[int]:
        """What holds a host: its first process, and the one outside that made its namespaces."""
        marks = b"\0".join(part.encode() for part in ("host", name, str(self.folder))) + b"\0"
        return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _words(entry).endswith(marks)]

    def state(self, name: str) -> str:
        """up, cut or dead."""
        if self.pid(name) is None:
            return "dead"
        link = json.loads(_run("ip", "-j", "link", "show", self._link(name)))[0]
        return "up" if "UP" in link["flags"] else "cut"

    def _link(self, name: str) -> str:
        """The machine's end of the host's cable."""
        return f"{self.bridge}-{_number(name)}"

    # -- up and down -----------------------------------------------------------------------------------------------

    def up(self, count: int, cpus: int = 1, ray: bool = True) -> None:
        """Start host1 (the head) to host<count>, those of them that are not up, with Ray or bare.

        Where the head is started anew the others are too: their Ray belonged to the old one.
        """
        reason = why_not()
        if reason:
            raise Refused(f"hosts cannot be started here: {reason}")
        if not (self.folder / "network.json").exists():
            self._network()
        wanted = [f"host{number}" for number in range(1, count + 1)]
        missing = [name for name in wanted if self.pid(name) is None]
        if HEAD in missing:
            missing = wanted
            for name in self.names():
                self.kill(name)
        for name in missing:
            self._boot(name)
        if not ray:
            return
        if HEAD in missing:
            self._ray(HEAD, cpus)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda name: self._ray(name, cpus), (name for name in missing if name != HEAD)))

    def down(self) -> None:
        """End every process, take the network down and remove the folder."""
        for name in self.names():
            self.kill(name)
        if Path(f"/sys/class/net/{self.bridge}").exists():
            _run("ip", "link", "del", self.bridge)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _network(self) -> None:
        taken = _run("ip", "-o", "-4", "addr")
        subnet = next(s for s in (f"10.77.{n}" for n in range(256)) if f" {s}." not in taken)
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.check()
        for name in ("shared", "local", "disks"):
            (self.folder / name).mkdir(exist_ok=True)
        _secret(self.token, secrets.token_hex(32))
        _run("ip", "link", "add", self.bridge, "type", "bridge")
        _run("ip", "addr", "add", f"{subnet}.1/24", "dev", self.bridge)
        _run("ip", "link", "set", self.bridge, "up")
        (self.folder / "network.json").write_text(json.dumps({"subnet": subnet}))

    def _boot(self, name: str) -> None:
        """The host's namespaces, its disk and its cable."""
        disk = self.folder / "disks" / name
        for part in ("home/.ray", "cache", "ray", "tmp"):
            (disk / part).mkdir(parents=True, exist_ok=True)
        (disk / "ready").unlink(missing_ok=True)
        _secret(disk / "home/.ray/auth_token", self.token.read_text())
        with open(disk / "init.log", "w") as log:
            subprocess.run(
                [
                    *(
                        "setsid",
                        "--fork",
                        "unshare",
                        "--net",
                        "--uts",
                        "--mount",
                        "--pid",
                        "--mount-proc",
                        "--fork",
                        "--kill-child",
                    ),
                    *("sh", "-ec", INIT, "host", name, str(self.folder)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"]},
                cwd="/",
                check=True,
            )
        _until((disk / "ready").exists, f"{name} to start: {disk}/init.log")
        link, pid = self._link(name), self.pid(name)
        _run("ip", "link", "add", link, "type", "veth", "peer", "name", "mg0", "netns", str(pid))
        _run("ip", "link", "set", link, "master", self.bridge, "up")
        inside = ("nsenter", "-t", str(pid), "-n", "ip")
        _run(*inside, "addr", "add", f"{self.address(name)}/24", "dev", "mg0")
        _run(*inside, "link", "set", "mg0", "up")
        _run(*inside, "route", "add", "default", "via", self.address(""))

    def _ray(self, name: str, cpus: int) -> None:
        head = self.address(HEAD)
        role = (
            f"--head --port 6379 --dashboard-host {head} --dashboard-port 8265 --temp-dir {self.folder}/local/ray"
            if name == HEAD
            else f"--address {head}:6379"
        )
        common = f"--node-ip-address {self.address(name)} --num-cpus {cpus} --object-store-memory {100 * 2**20}"
        self.exec(name, ["sh", "-c", KEEP_RAY.format(f"{role} {common}", self.folder / "local")])
        log = self.folder / "disks" / name / "ray.log"
        _until(
            lambda: log.exists() and "Ray runtime started" in log.read_text(),
            f"Ray to start on {name}: {log}",
            timeout=60,
        )

    # -- what happens to hosts -------------------------------------------------------------------------------------

    def exec(self, name: str, argv: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
        """Run a command on a host."""
        return subprocess.run(self.on(name, argv), text=True, check=False, **options)  # type: ignore[call-overload]

    def on(self, name: str, argv: Sequence[str]) -> list[str]:
        """The command that runs a command on a host."""
        pid = self.pid(self.known(name))
        if pid is None:
            raise Refused(f"{name}: is dead; `up` starts it again")
        local = self.folder / "local"
        settings = {
            **{key: os.environ[key] for key in INHERITED if key in os.environ},
            **dict(line.split("=", 1) for line in (CLUSTER / "ray.env").read_text().splitlines() if "=" in line[:60]),
            "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": f"{local}/home",
            "MEDGAN_CACHE": f"{local}/cache",
            "RAY_TMPDIR": f"{local}/ray",
            "TMPDIR": f"{local}/tmp",
        }
        enter = ["nsenter", "-t", str(pid), "-m", "-u", "-n", "-p", f"--wdns={local}"]
        return [*enter, "env", "-i", *(f"{key}={value}" for key, value in settings.items()), *argv]

    def kill(self, name: str) -> None:
        """End all processes of a host at once; its disk stays."""
        self.known(name)

        def ended() -> bool:
            """Killing the first process of a process namespace ends all others in it. Again, for one just forked, and
            once more after a while, since one that changes its program has no words for a moment."""
            found = self._processes(name)
            if not found:
                time.sleep(0.1)
                found = self._processes(name)
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not found

        _until(ended, f"{name} to end")
        # The kernel takes the cable away with the namespace, when it finds the time.
        subprocess.run(["ip", "link", "del", self._link(name)], capture_output=True, check=False)

    def cut(self, name: str) -> None:
        """Nothing reaches the host, nor the host anything; its processes go on."""
        self._set_link(name, "down")

    def heal(self, name: str) -> None:
        self._set_link(name, "up")

    def _set_link(self, name: str, state: str) -> None:
        if self.pid(self.known(name)) is None:
            raise Refused(f"{name}: is dead; `up` starts it again")
        _run("ip", "link", "set", self._link(name), state)

    def known(self, name: str) -> str:
        if name not in self.names():
            raise Refused(f"{name}: no such host; there are {', '.join(self.names()) or 'none, `up 3` starts three'}")
        return name

    def status(self) -> str:
        """A line per host, the head first, and how to reach them."""
        if not self.names():
            return "no hosts; `up 3` starts three"
        lines = [
            f"{name:<8} {self.address(name):<14} {self.state(name):<5}{' head' if name == HEAD else ''}"
            for name in self.names()
        ]
        return "\n".join(
            [
                *lines,
                f"shared folder: {self.shared}",
                f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={self.token}",
                f"ray job submit --address {self.dashboard} --working-dir . -- python jobs/train.py ...",
            ]
        )


def _number(name: str) -> int:
    matched = re.fullmatch(r"host([1-9][0-9]?)", name)
    if matched is None:
        raise Refused(f"{name}: hosts are called host1, host2 and so on")
    return int(matched.group(1))


def _words(process: Path) -> bytes:
    """A process's command line; empty where it is gone."""
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def _is_first(pid: int) -> bool:
    """Whether it is the first process of a namespace inside of ours."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
    return len(numbers) > 1 and numbers[-1] == "1"


def _until(condition: Callable[[], object], what: str, timeout: float = 20.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise Failed(f"waited in vain for {what}")
        time.sleep(0.02)


def _secret(file: Path, content: str) -> None:
    """A file that nobody but its owner can read, from its first moment on."""
    file.unlink(missing_ok=True)
    with open(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as opened:
        opened.write(content)


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(argv)}: {' '.join(done.stderr.split())}")
    return done.stdout


def main(argv: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("action", choices=("up", "down", "status", "exec", "kill", "cut", "heal"))
    parser.add_argument("what", nargs="?", help="up: how many; exec, kill, cut, heal: which host")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs that Ray counts on each host (default 1)")
    argv, inner = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    args: argparse.Namespace = parser.parse_args(argv)
    hosts = Hosts(Path(os.environ.get("MEDGAN_HOSTS") or "/tmp/medgan-hosts").absolute())
    hosts.check()
    if args.action not in ("down", "status") and args.what is None:
        raise Refused(
            f"{args.action}: {'how many' if args.action == 'up' else 'which'} host{'s'[: args.action == 'up']}?"
        )
    if args.action == "up":
        if not args.what.isdigit() or not 1 <= int(args.what) <= 50:
            raise Refused(f"up {args.what}: give a number of hosts from 1 to 50")
        new = not hosts.names()
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            hosts.up(int(args.what), args.cpus)
        except BaseException:
            if new:
                hosts.down()
            raise
        print(hosts.status())
    elif args.action == "down":
        hosts.down()
    elif args.action == "status":
        print(hosts.status())
    elif args.action == "exec":
        if not inner:
            raise Refused(f"exec {args.what}: give the command after --")
        sys.exit(hosts.exec(args.what, inner).returncode)
    else:
        getattr(hosts, args.action)(args.what)


if __name__ == "__main__":
    sys.exit(command(main))
