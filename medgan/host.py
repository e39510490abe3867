"""What a process finds on its host: a home, folders that can be written, and what it may import."""

from __future__ import annotations

import os
import pwd
import resource
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The folder that medgan is imported from."""
MANY_FILES, LEAST_FILES = 65536, 256
"""Open files that Ray should have, and the fewest with which its daemons start."""
LEAST_SPACE = 8_000_000 * 1024
"""Bytes of address space; with half of it torch cannot be loaded, or Ray's daemons cannot start threads."""
NOWHERE = "/dev/null"
"""The home of who has none: nobody, root neither, can make anything below it."""


def settle_home() -> None:
    """HOME and USER, where they are missing. Containers run as users that they do not know: Ray, torch and W&B ask who
    and where they are at home, and end where there is no answer."""
    try:
        home = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        home = NOWHERE
        os.environ.setdefault("USER", f"uid{os.getuid()}")
    if not os.environ.get("HOME"):
        os.environ["HOME"] = home


def settle_imports() -> None:
    """Take the current directory off the module path, where only an empty or relative entry of PYTHONPATH put it, for
    this process and those that it starts: `dl` or `random` there is no module. Where medgan itself lies in it, it
    stays. Relative entries become absolute, since other processes have other directories.
    """
    if not os.environ.get("PYTHONPATH"):
        return
    try:
        here = str(Path.cwd())
    except FileNotFoundError:  # it was deleted, and nothing can be below it
        here = ""
    given = os.environ["PYTHONPATH"].split(os.pathsep)
    kept = [entry for entry in given if os.path.isabs(entry)]
    if here:
        kept = [os.path.abspath(entry) for entry in given]
        if here != str(ROOT) and here not in given:
            kept = [entry for entry in kept if entry != here]
            first = 0 if sys.flags.safe_path else 1  # the script's own folder
            sys.path[first:] = [entry for entry in sys.path[first:] if entry != here]
    os.environ["PYTHONPATH"] = os.pathsep.join(kept)


def settle_limits() -> str | None:
    """Raise the limit of open files as far as the host allows. Returns which limit of this process (ulimit) is too low
    for Ray and torch, and what to set; None where none is."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < MANY_FILES and files < most:
        files = min(most, MANY_FILES) if most != resource.RLIM_INFINITY else MANY_FILES
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    if files < LEAST_FILES:
        return f"ulimit -n {files}: too few open files for Ray; ulimit -n {MANY_FILES} (or the host's limits.conf)"
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if space != resource.RLIM_INFINITY and space < LEAST_SPACE:
        return (
            f"ulimit -v {space // 1024}: torch and Ray map more memory than they use, 8 GB at least; ulimit -v "
            "unlimited, and let a container or cgroup limit what is used"
        )
    return None


def writable(folder: str | Path) -> bool:
    """Whether a folder, by its absolute path, can be written, or be made where it is not there yet."""
    place = Path(folder)
    while not os.access(place, os.F_OK):
        place = place.parent
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)


def told_home(why: str = "cannot be written") -> str:
    """What is the matter with HOME, where something is."""
    home = os.environ["HOME"]
    return "HOME is not set" if home == NOWHERE else f"HOME={home}: {why}"
