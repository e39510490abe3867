"""Locations, as paths and URIs that people give, and what of them may be written where others read.

Pages, W&B, cards and records of searches get `published` text: where a folder lay says who works where, and on what.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from urllib.parse import parse_qsl, urlsplit

from medgan.config import Refused

SECRETS = re.compile(r"(access|secret|account)_?key|.*(token|password|signature)|sas|sig", re.I)
"""Parameters of URIs that are, or go with, a password."""
PLACE = re.compile(r"(?:[\w.+-]+:/|(?<![\w.]))/[^\s'\"]*[^\s'\"/.,:;)\]]")
"""A URI or an absolute path in a text; marks that end a sentence are not of it."""


def check_secrets(location: str) -> None:
    """Raises Refused for a URI with a password in it: it would be written down and shown wherever the location is."""
    try:
        parts = urlsplit(location)
        keys = parts.password is not None or any(SECRETS.fullmatch(key) for key, _ in parse_qsl(parts.query))
    except ValueError:  # whoever opens it says why
        return
    if keys:
        raise Refused(
            f"{parts.scheme}://{parts.hostname}: a key in a location is written into files and shown: leave it out, "
            "and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or what else the storage takes, on every host"
        )


def published(text: str) -> str:
    """Text with the last part alone of every absolute path and URI in it."""
    return PLACE.sub(lambda found: found[0].split("?")[0].rstrip("/").rpartition("/")[2], text)


def published_command(arguments: Sequence[str]) -> str:
    """A command as others may read it: of every path the last part, relative ones included."""
    words = []
    for word in arguments:
        flag, given, value = word.partition("=")
        words.append(f"{flag}={_last(value)}" if given and "/" not in flag else _last(word))
    return shlex.join(words)


def _last(word: str) -> str:
    path = word.split("?")[0] if "://" in word else word
    return path.rstrip("/").rpartition("/")[2]
