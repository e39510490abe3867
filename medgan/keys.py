"""Files that hold a secret: read as ssh reads keys, and made whole or not at all."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from pathlib import Path

from medgan.config import Refused
from medgan.host import told_home

DEFAULT_KEY_FILE = Path("~/.config/medgan/patient.key")


def exposed(found: os.stat_result) -> bool:
    """Whether more people than its owner can read or change a file, or, where it is somebody else's, more than they and
    their group: a secret that is given to a container is mounted like that."""
    closed_to = 0o077 if found.st_uid == os.getuid() else 0o007
    return bool(found.st_mode & closed_to)


def patient_key(path: str | Path | None) -> bytes:
    """The key of the patients' ids, 16 bytes or more; made, with mode 600, where the default file is not there yet.

    One of this user's that others can read is closed to them, with a line. Raises Refused where a file that was named
    is missing, where others can change it or it is somebody else's and open, and where it is not a key.
    """
    file = Path(path or DEFAULT_KEY_FILE).expanduser()
    named = f"--patient-key-file {file}"
    if path is None:
        try:
            _make_once(file)
        except OSError as error:
            raise Refused(
                f"{told_home(os.strerror(error.errno or 0))}; {DEFAULT_KEY_FILE} cannot be made: set HOME to a folder "
                "that lasts, or name a key with --patient-key-file"
            ) from None
    try:
        with open(file) as opened:
            found, content = os.fstat(opened.fileno()), opened.read()
    except FileNotFoundError:
        raise Refused(f"{named}: no such file; leave the option out to have a key made") from None
    except (OSError, UnicodeDecodeError) as error:
        why = os.strerror(error.errno or 0) if isinstance(error, OSError) else "not text"
        raise Refused(f"{named}: cannot be read ({why})") from None
    if exposed(found):
        mode = f"mode {stat.S_IMODE(found.st_mode):o}"
        if found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise Refused(
                f"{named}: others can read or change this key ({mode}); give it mode 600, or 440 where it is mounted "
                "for a group, and make a new one if it may have been changed"
            )
        file.chmod(0o600)
        print(f"note: others could read the patients' key, {file} ({mode}): it has mode 600 now", flush=True)
    try:
        key = bytes.fromhex(content.strip())
    except ValueError:
        key = b""
    if len(key) < 16:
        raise Refused(f"{named}: not a key (at least 32 hexadecimal digits)")
    return key


def _make_once(file: Path) -> None:
    """Make the key unless there is one, whoever else does so now. An empty file is what a full disk left. Raises
    OSError."""
    if file.exists() and file.stat().st_size:
        return
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if file.exists() and file.stat().st_size:
            return
        unfinished = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
        try:
            with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
                out.write(secrets.token_hex(32) + "\n")
                out.flush()
                os.fsync(out.fileno())
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)
    finally:
        os.close(folder)
