"""The cache of a host: what was derived from data, on the host's own disk.

    $MEDGAN_CACHE/
      0123...cdef/   arrays of one DATA, by its manifest: pixels and labels of a split, features of real images
      runs/          what grows while a run writes to a URI
      raw/           unpacked archives
      medmnist/      downloads

It holds patients' images, so that it is closed to others (700, files 600), goes away when nobody has used it for
MEDGAN_CACHE_DAYS, and is believed only while it is what was written.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from medgan.config import Refused
from medgan.host import told_home, writable

OF_DATA = re.compile("[0-9a-f]{32}")
DAYS = "MEDGAN_CACHE_DAYS"
GIGABYTES = "MEDGAN_CACHE_GB"
DEFAULT_DAYS = 30.0
DIGEST = 32
"""Bytes of the SHA-256 at a file's end."""
CHUNK = 2**22


def cache_folder() -> Path:
    """$MEDGAN_CACHE or ~/.cache/medgan, made where it is not there: a folder of this user's with mode 700.

    A folder that root made for all, as containers have it, gets one for this user in it. Raises Refused where there is
    none that can be written, or where it is somebody else's, who could read and change what is put there.
    """
    named = os.environ.get("MEDGAN_CACHE")
    folder = Path(os.path.abspath(os.path.expanduser(named or "~/.cache/medgan")))
    called = f"MEDGAN_CACHE={named}" if named else f"the cache {folder}"
    if not writable(folder):
        why = f"{called}: cannot be written" if named else told_home()
        raise Refused(f"{why}; set MEDGAN_CACHE to a folder that can be, on this host's own disk")
    found = _closed(folder)
    if found.st_uid == 0 != os.getuid():
        folder = folder / f"user-{os.getuid()}"
        found = _closed(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        whose = f"is not this user's (uid {os.getuid()}) but of uid {found.st_uid}"
        raise Refused(f"{called}: {folder} {whose}; set MEDGAN_CACHE to a folder of your own")
    return folder


def _closed(folder: Path) -> os.stat_result:
    """What a folder is, made and closed to others where that is this user's to do. A link that is somebody else's is
    not followed."""
    with suppress(FileExistsError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    link = folder.lstat()
    found = folder.stat() if link.st_uid in (os.getuid(), 0) else link
    if found.st_uid == os.getuid() and stat.S_ISDIR(found.st_mode) and found.st_mode & 0o077:
        folder.chmod(0o700)
    return found


def place(*names: str) -> Path:
    """A folder in the cache, made where it is not there and marked as used now."""
    folder = cache_folder()
    for name in names:
        folder = folder / name
        folder.mkdir(mode=0o700, exist_ok=True)
    os.utime(folder)
    return folder


def closed(path: str, flags: int) -> int:
    """An opener for files that only this user can read."""
    return os.open(path, flags, 0o600)


# -- files -----------------------------------------------------------------------------------------------------------


def keep(file: Path, content: Iterable[Any]) -> None:
    """A file of the cache from pieces of bytes: complete, with its own SHA-256 at the end, or not there.

    Written as a plain file, where a full disk is an error; through a memory map it would end the process.
    """
    handle, unfinished = tempfile.mkstemp(prefix=f"{file.name}.", suffix=".tmp", dir=file.parent)  # of mode 600
    try:
        digest = hashlib.sha256()
        with open(handle, "wb") as target:
            for piece in content:
                digest.update(piece)
                target.write(piece)
            target.write(digest.digest())
            target.flush()
            os.fsync(target.fileno())
        Path(unfinished).replace(file)
    finally:
        Path(unfinished).unlink(missing_ok=True)


def keep_array(file: Path, array: np.ndarray) -> None:
    """An array as such a file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    keep(file, [buffer.getbuffer()])


def whole(file: Path) -> bool:
    """Whether a file is there and what was written."""
    try:
        with open(file, "rb") as opened:
            left = os.fstat(opened.fileno()).st_size - DIGEST
            digest = hashlib.sha256()
            while left > 0 and (piece := opened.read(min(CHUNK, left))):
                digest.update(piece)
                left -= len(piece)
            return left == 0 and opened.read() == digest.digest()
    except FileNotFoundError:
        return False


def load_array(file: Path) -> np.ndarray | None:
    """An array that was kept; None where there is none, or one that is not what was written."""
    return np.load(file) if whole(file) else None


# -- what goes -------------------------------------------------------------------------------------------------------


def sweep() -> None:
    """Remove what nobody has used for MEDGAN_CACHE_DAYS (30), and the longest unused beyond MEDGAN_CACHE_GB (any
    number) in all, but for what is being written. Who has opened a file that goes keeps it."""
    folder, now = cache_folder(), time.time()
    entries = sorted(_entries(folder), key=lambda entry: entry.stat().st_mtime, reverse=True)
    sizes, most = 0, _number(GIGABYTES, float("inf")) * 1e9
    for number, entry in enumerate(entries):
        sizes += sum(file.lstat().st_size for file in entry.rglob("*") if file.is_file())
        old = now - entry.stat().st_mtime > _number(DAYS, DEFAULT_DAYS) * 86400
        if number and (old or sizes > most):  # the first is in use
            _remove(entry)


@contextmanager
def closing_cache() -> Iterator[None]:
    """Where MEDGAN_CACHE_DAYS is 0: at the end, remove all of the cache that is derived from data."""
    try:
        yield
    finally:
        if not _number(DAYS, DEFAULT_DAYS):
            for entry in _entries(cache_folder()):
                _remove(entry)


def _entries(folder: Path) -> list[Path]:
    runs = folder / "runs"
    found = [entry for entry in folder.iterdir() if OF_DATA.fullmatch(entry.name)]
    return [entry for entry in (*found, *(runs.iterdir() if runs.is_dir() else ())) if entry.is_dir()]


def _remove(entry: Path) -> None:
    # Where a lock is held, somebody fills the entry now.
    with ExitStack() as held, suppress(BlockingIOError):
        for lock in entry.glob("*.lock"):
            fcntl.flock(held.enter_context(open(lock)), fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(entry, ignore_errors=True)


def _number(name: str, otherwise: float) -> float:
    text = os.environ.get(name) or str(otherwise)
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not number >= 0:
        raise Refused(f"{name}={text}: give a number, at least 0")
    return number
