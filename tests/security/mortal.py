"""Stands for decoders: it does over some files what they did over others. Light to import."""

import os
import resource
import signal
import time
import zlib
from pathlib import Path

from medgan.data.sources import fitted

FATAL, HANGING, POISONOUS, WRONG = b"fatal", b"hanging", b"poisonous", b"wrong"
poisoned = False


def mortal(source, content, *asked):
    """As medgan.data.sources.fitted, but for content that starts with one of these words."""
    global poisoned
    if content.startswith(FATAL) or poisoned:
        os.kill(os.getpid(), signal.SIGSEGV)
    if content.startswith(HANGING):
        time.sleep(60)
    if content.startswith(WRONG):
        raise KeyError("a mistake of ours")
    poisoned = content.startswith(POISONOUS)
    return fitted(source, content if not poisoned else content[len(POISONOUS) :], *asked)


def inflated(content):
    """What a decoder does that looks at no size, with little of the space that it has left."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    space, most = resource.getrlimit(resource.RLIMIT_AS)
    assert space <= 8 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, most))
    try:
        return len(zlib.decompress(content))
    except MemoryError:
        raise ValueError("no room") from None
