"""A function in a process of its own: where somebody's file makes a decoder crash or hang, nothing else ends.

The process is started when it is first needed, lives as long as the one that started it, and is replaced when it dies.
It writes no core dump, which would hold images, and its output, which may quote files, is discarded.
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
"""The first crash may be due to an earlier file; the second, in a new process, is due to this one."""
PATIENCE_S = 300
"""Seconds that a file may take; most films take less than one."""
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""Decoders need no more, and on hosts of many CPUs the threads of numpy alone would use up the address space."""
SPACE = 8 * 2**30
"""Bytes of address space: a decoder that asks for more, whatever the header said, fails or crashes."""


class Isolated:
    """A function that runs in a process of its own. Not thread-safe."""

    def __init__(self, function: str) -> None:
        """function: `module:name`; its arguments and results can be pickled."""
        self.function = function
        self._process: subprocess.Popen[bytes] | None = None
        self._link: Connection | None = None

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns. Raises ValueError and OSError as it does, ValueError also where its process
        crashed or hung, and RuntimeError with the traceback of any other exception."""
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
        """End the process; returns how it ended."""
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
    """Answer calls until the caller has gone: (None, result), or the class and message of an exception."""
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
