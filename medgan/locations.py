"""Locations, as paths and URIs that people give, and what of them may be written where others read.

Pages, W&B and the records of searches get redacted text: where a folder lay says who works where, and on what.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from urllib.parse import unquote

from medgan.config import Refused

SECRETS = re.compile(
    r"(?i).*(secret|token|passw|credential|signature|(access|account|shared|api)_?key).*|sas|sig|key|auth|pass"
)
"""Parameters of URIs that are, or go with, a password."""
PARAMETER = re.compile(r"[?&;#]([^=&;#]*)=")
LOGIN = re.compile(r"[^/?#@:]*:(?!\d*(?:[/?#]|$)).*@")
"""What comes after `://` where somebody logs in: a name and a password, in which there may be slashes."""
QUOTED = re.compile(r"(['\"])((?:[\w.+-]+:/)?/[^'\"]*)\1")
PLACE = re.compile(r"(?:(?<![\w.+-])[\w.+-]+:/|(?<![\w./]))/[^\s'\"]+")
"""A URI or an absolute path in a text, with marks that may end a sentence."""
MARKS = "/.,:;)]"


def check_secrets(location: str) -> None:
    """Raises Refused for a URI with a password in it: it would be written down and shown wherever the location is."""
    scheme, _, rest = location.partition("://")
    if LOGIN.match(rest) or any(SECRETS.fullmatch(unquote(name)) for name in PARAMETER.findall(rest)):
        raise Refused(
            f"{scheme}://...: a key in a location is written into files and shown: leave it out, and set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or what else the storage takes, on every host"
        )


def redact(text: str) -> str:
    """The text with only the last part of each absolute path and URI in it."""
    text = QUOTED.sub(lambda found: f"{found[1]}{_last(found[2])}{found[1]}", text)  # with blanks in it
    return PLACE.sub(lambda found: _redacted(found[0]), text)


def redact_command(arguments: Sequence[str]) -> str:
    """The command with only the last part of each path in it, relative ones included."""
    words = []
    for word in arguments:
        flag, given, value = word.partition("=")
        words.append(f"{flag}={_last(value)}" if given and "/" not in flag else _last(word))
    return shlex.join(words)


def _redacted(found: str) -> str:
    place = found.rstrip(MARKS)
    return _last(place) + found[len(place) :].replace("/", "")


def _last(word: str) -> str:
    path = word.split("?")[0] if "://" in word else word
    return path.rstrip("/").rpartition("/")[2]
