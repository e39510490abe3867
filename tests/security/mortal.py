"""Stands for decoders: it does over some files what they did over others. Light to import."""

import os
import signal
import time

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
