"""What a person at a terminal sees: refusals in one line, exit codes, and a progress line."""

from __future__ import annotations

import argparse
import errno
import io
import os
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from medgan.config import Refused
from medgan.data.cache import closing_cache
from medgan.host import NOWHERE, settle_limits, told_home
from medgan.locations import check_secrets
from medgan.names import one_line


class Failed(RuntimeError):
    """Something went wrong while running. One line: what, and what to do."""


class Stopped(RuntimeError):
    """The user ended it. One line: how to go on."""


class Parser(argparse.ArgumentParser):
    """Arguments whose mistakes are refused in one line, like any other; `description` is the script's docstring."""

    def __init__(self, description: str | None) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        raise Refused(f"{message}; --help shows what there is")

    def add_use(self, what: str) -> None:
        """--use, as every command has it that takes GPUs or CPUs of a cluster."""
        help = f"what {what} takes (auto, the default: GPUs if the cluster has any now)"
        self.add_argument("--use", choices=("auto", "gpu", "cpu"), default="auto", help=help)

    def add_patient_key(self, what: str) -> None:
        """--patient-key-file, as every command has it that needs a secret."""
        help = f"key of {what} (default ~/.config/medgan/patient.key, made if need be)"
        self.add_argument("--patient-key-file", metavar="FILE", help=help)


def command(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a script's main; returns its exit code: 0 done, 1 failed while running, 2 refused, 130 interrupted.

    With `--verbose` among the arguments tracebacks are shown.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # which may take ASCII only; stderr is like this by itself
        sys.stdout.reconfigure(errors="backslashreplace")
    _keep_talking()
    try:
        if too_low := settle_limits():
            raise Refused(too_low)
        with closing_cache():
            main(arguments)
    except Refused as error:
        return _say(error, 2, arguments)
    except Failed as error:
        return _say(error, 1, arguments)
    except (Stopped, KeyboardInterrupt) as error:
        return _say(str(error) or f"stopped; {again()}", 130, arguments)
    except OSError as error:
        if error.errno is None:  # not of the system: what storage says that is no file system
            return _say(" ".join(str(error).split())[:500], 1, arguments, hint="; --verbose shows more")
        return _say(_trouble(error), 1, arguments)
    except MemoryError:
        return _say("out of memory: give this host more, or the command less to do at once", 1, arguments)
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return _say(text if len(text) < 500 else text[:500] + "...", 1, arguments, hint="; --verbose shows more")
    return 0


ADVICE = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there, or ask for a larger quota",
    errno.EFBIG: "ulimit -f unlimited, or another folder",
    errno.EROFS: "name another folder",
    errno.EACCES: "name another folder, or change its mode",
    errno.EMFILE: "ulimit -n 65536",
    errno.ENOMEM: "give this host more memory",
}


def _trouble(error: OSError) -> str:
    """What the system did not do, where, and what to do about it."""
    where = f"{error.filename}: " if error.filename else ""
    advice = f"; {ADVICE[error.errno]}, and {again()}" if error.errno in ADVICE else "; --verbose shows more"
    return f"{where}{error.strerror}{advice}"


class Listener(io.FileIO):
    """A file that somebody reads or not: where they have gone (`| head`, a terminal that was closed) the work goes on,
    and what is said is lost."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content) or 0
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            return len(content)


def _keep_talking() -> None:
    """Make this process's stdout and stderr outlive whoever reads them."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and stream is getattr(sys, f"__{name}__"):
            kept = Listener(stream.fileno(), "w", closefd=False)
            how = {"encoding": stream.encoding, "errors": stream.errors, "line_buffering": stream.line_buffering}
            setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(kept), **how))


def _say(error: object, code: int, arguments: list[str], hint: str = "") -> int:
    if "--verbose" in arguments and code != 130:
        traceback.print_exc()
    name = Path(sys.argv[0]).name
    print(one_line(f"{name}: {error}{hint}"), file=sys.stderr)
    return code


def absolute(flag: str, location: str) -> str:
    """A path made absolute, a URI as it is. A relative path in a submitted job is refused.

    A job's working directory is Ray's copy of the uploaded files, which is deleted when the job ends.
    """
    if "://" in location:
        check_secrets(location)
        return location
    expanded = os.path.expanduser(location)
    if expanded.startswith(f"{NOWHERE}/"):
        raise Refused(f"{flag} {location}: {told_home()}; give an absolute path")
    if submitted() and not os.path.isabs(expanded):
        raise Refused(
            f"{flag} {location}: a relative path in a submitted job lies in Ray's throw-away copy; make it absolute"
        )
    try:
        path = os.path.abspath(expanded)
        path.encode()
    except FileNotFoundError:
        raise Refused(f"{flag} {location}: the current directory was deleted; change to another one") from None
    except UnicodeEncodeError:
        raise Refused(f"{flag} {path!a}: is not UTF-8, as names of folders have to be") from None
    return path


def submitted() -> bool:
    """Whether this process is a job that was submitted to a cluster."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


class Progress:
    """One line, rewritten on a terminal; elsewhere, such as in a log file, a line of its own for each report."""

    def __init__(self, every_s: float = 0.0) -> None:
        """every_s: outside of a terminal, at most one line in so many seconds."""
        self.live = sys.stdout.isatty()
        self.every_s = 0.2 if self.live else every_s
        self.start = time.monotonic()
        self.last = -self.every_s
        self.open = False
        self.before = 0

    def skip(self, done: int) -> None:
        """So many were done before; speed and time left do not count them."""
        self.before, self.start = done, time.monotonic()

    def images(self, verb: str, done: int, total: int, *more: str) -> None:
        """How many of the images are done, the time left, how fast since the line was made, and more."""
        rate = (done - self.before) / (time.monotonic() - self.start)
        left = duration((total - done) / rate) if rate else "?"
        fields = (f"{verb} {done:,}/{total:,} images", f"{left} left", f"{rate:.0f} img/s", *more)
        self.update(*fields, force=done == total)

    def update(self, *fields: str, force: bool = False) -> None:
        """Show fields, the most important first: a terminal too narrow for all shows as many as fit."""
        now = time.monotonic()
        if not force and now - self.last < self.every_s:
            return
        self.last = now
        fields = tuple(filter(None, fields))
        if not self.live:
            print("  ".join(fields), flush=True)
            return
        columns = shutil.get_terminal_size().columns - 1
        while len(fields) > 1 and len("  ".join(fields)) > columns:
            fields = fields[:-1]
        print("\r\x1b[K" + "  ".join(fields)[:columns], end="", flush=True)
        self.open = True

    def say(self, text: str) -> None:
        """A line that stays."""
        self.close()
        print(text, flush=True)

    def close(self) -> None:
        """End the rewritten line, so that what follows starts on its own."""
        if self.open:
            print(flush=True)
            self.open = False


def again() -> str:
    """How to give the present command again."""
    submit = "ray job submit --working-dir . -- " if submitted() else ""
    return f"to go on: {submit}python {shlex.join(sys.argv)}"


def duration(seconds: float) -> str:
    """95 -> "1:35", 3700 -> "1:01:40"."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
