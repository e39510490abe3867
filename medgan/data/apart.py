"""Work on files of other people, in a process of its own: a decoder that such a file ends, or hangs, ends nothing else.

The process is started when it is first needed, lives as long as the one that started it, and is replaced when it dies.
It writes no core dump, for that would hold images, and what decoders print, which quotes files, goes nowhere.
"""

from __future__ import annotations

import atexit
import importlib
import os
import resource
import signal
import socket
import subprocess
import sys
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

ATTEMPTS = 2
"""The first death may be the work of an earlier file; the second, in a new process, is this one's."""
PATIENCE_S = 300
"""So long a file may take: a film takes a hundredth of a second to a few."""


ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""Decoders take no more, and each thread of numpy's takes addresses, on hosts of many CPUs more than there are."""
SPACE = 8 * 2**30
"""Bytes of addresses that it has: what wants more, whatever its header said, ends in an error or ends its process."""


class Apart:
    """A function, called in a process of its own. Not to be shared between threads."""

    def __init__(self, function: str) -> None:
        """function: `module:name`; its arguments and results can be pickled."""
        self.function = function
        self._process: subprocess.Popen[bytes] | None = None
        self._link: Connection | None = None

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns. Raises ValueError, which it may raise itself, where its process died or hung over
        these arguments; OSError as it does; and RuntimeError with the traceback of whatever else it raised."""
        for attempt in range(1, ATTEMPTS + 1):
            if self._process is None:
                self._start()
            assert self._link is not None
            try:
                self._link.send(arguments)
                if not self._link.poll(PATIENCE_S):
                    raise ValueError(f"took longer than {PATIENCE_S} s to decode")
                kind, value = self._link.recv()
            except (EOFError, ConnectionError):
                ended = self._end()
                if attempt == ATTEMPTS:
                    raise ValueError(f"ended the process that decodes it ({ended})") from None
                continue
            except BaseException:  # an interrupt: the answer that would come is not one to the next question
                self._end()
                raise
            if kind is None:
                return value
            raise kind(value)
        raise AssertionError("unreachable")

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            code = f"from {__name__} import serve; serve({theirs.fileno()}, {self.function!r})"
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for whoever waits for the answer
            )
        self._link = Connection(ours.detach())
        atexit.register(self._end)

    def _end(self) -> str:
        """How the process ended; one that lives is killed."""
        atexit.unregister(self._end)
        assert self._process is not None
        assert self._link is not None
        self._link.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._process.kill()
        code = self._process.wait()
        self._process = self._link = None
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def serve(handle: int, function: str) -> None:
    """Answer until whoever asks has gone: (None, result), or the kind of an error and what it says."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    space = SPACE if most == resource.RLIM_INFINITY else min(SPACE, most)
    resource.setrlimit(resource.RLIMIT_AS, (space, most))
    module, _, name = function.partition(":")
    call = getattr(importlib.import_module(module), name)
    with Connection(handle) as link:
        while True:
            try:
                arguments = link.recv()
            except EOFError:
                return
            try:
                link.send((None, call(*arguments)))
            except ValueError as error:
                link.send((ValueError, str(error)))
            except OSError as error:
                link.send((OSError, str(error)))
            except Exception:
                link.send((RuntimeError, traceback.format_exc()))
