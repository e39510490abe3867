"""Files of runs, searches and evaluations, which may come from anybody: each is checked before anything of it is used.

What a manifest may hold is in data/shards.py, and what a generator says of itself in sample.py, both in the same way. A
text of such a file stays in its line and moves no cursor, a name that becomes a path stays in its folder, a number is
one, and a tree has an end. What a later version wrote besides is left out.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from pydantic_core import from_json
from typing_extensions import TypedDict  # that of Python 3.11 does not keep what pydantic needs

from medgan.config import Refused
from medgan.data.shards import Count, fault
from medgan.names import NO_TEXT, one_line

DEEPEST = 12
"""Levels of a tree; an evaluation has six."""


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _line(text: str) -> str:
    if found := NO_TEXT.search(text):
        raise ValueError(f"holds U+{ord(found[0]):04X}, which nothing can show")
    return text


Line = Annotated[str, Field(max_length=20_000), AfterValidator(_line)]
NO_CONTROL = r"^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*$"
"""As NO_TEXT, for what there is a lot of: pydantic's own engine looks at it."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""Of a folder."""
Token = Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,64}$")]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{1,64}$")]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Figure = Annotated[Finite | None, BeforeValidator(lambda value: value if _is_finite(value) else None)]
"""None where there is none, or none that was measured."""
Value = bool | Whole | float | Line | None
Setting = Value | list[Value]
IGNORING = ConfigDict(extra="ignore", strict=True)


def _plain(value: Any, depth: int = 0) -> Any:
    """A tree of what JSON has, with lines for texts and an end."""
    if depth > DEEPEST:
        raise ValueError(f"is deeper than {DEEPEST} levels")
    if isinstance(value, dict):
        return {_line(str(key)): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    if not _is_finite(value):
        raise ValueError("holds a number without an end")
    if isinstance(value, str):
        return _line(value)
    if not isinstance(value, bool | int | float | None):
        raise ValueError(f"holds {type(value).__name__}")
    return value


Tree = Annotated[Any, AfterValidator(_plain)]


# -- runs ----------------------------------------------------------------------------------------------------------


def _of_a_run(row: dict[str, Any]) -> dict[str, Any]:
    row = {name: value for name, value in row.items() if value is not None}
    seen, evaluated = row.get("images_seen"), {"metric/kid", "metric/n"} & row.keys()
    if type(seen) is not int or not 0 <= seen <= 2**40:
        raise ValueError("images_seen is no number of images")
    if len(evaluated) == 1:
        raise ValueError("has a KID without a number of images, or the other way round")
    if figures := [name for name, value in row.items() if "/" in name and isinstance(value, list)]:
        raise ValueError(f"{figures[0]} is no figure")
    return row


Key = Annotated[str, Field(max_length=1000, pattern=NO_CONTROL)]
Row = Annotated[dict[Key, bool | Whole | float | list[Tree] | None], AfterValidator(_of_a_run)]
"""A line of metrics.jsonl (figures by name) or order.jsonl (which rows of DATA a step used), at `images_seen`."""


@with_config(IGNORING)
class Holder(TypedDict):
    """A term of a lease: who holds the folder."""

    owner: Token
    mark: Token
    host: Line
    time: Count


# -- searches ------------------------------------------------------------------------------------------------------


@with_config(IGNORING)
class Birth(TypedDict):
    """takeover.json: whose weights a trial took, and the settings that it goes on with."""

    parent: Line
    settings: dict[Line, Setting]


@with_config(IGNORING)
class Record(TypedDict):
    """trials/NAME.json."""

    name: Name
    kind: Literal["trial", "finalist"]
    run: Name
    settings: dict[Line, Setting]
    total_images: Count
    status: Literal["done", "stopped", "failed", "running", "interrupted", "waiting"]
    reason: Line
    images_seen: Count
    history: list[Annotated[list[Count | Figure], Field(min_length=4, max_length=4)]]
    """(images seen, best KID so far, KID, coverage)"""
    draws: NotRequired[dict[Line, Setting]]
    of: NotRequired[Name]
    lineage: NotRequired[Annotated[list[Any], AfterValidator(_plain)]]
    lost_at: NotRequired[Count]
    seconds: NotRequired[Figure]
    kid: NotRequired[Figure]
    kid_at: NotRequired[Count | None]
    kid_now: NotRequired[Figure]
    fid: NotRequired[Figure]
    precision: NotRequired[Figure]
    recall: NotRequired[Figure]
    coverage: NotRequired[Figure]
    floor: NotRequired[Figure]
    images_per_s: NotRequired[Figure]


@with_config(IGNORING)
class Finalist(TypedDict):
    name: Name
    kids: list[Finite]
    runs: list[Name]
    mean: Finite
    low: Figure
    high: Figure


def _with_both_ends(finalist: dict[str, Any]) -> dict[str, Any]:
    if (finalist["low"] is None) != (finalist["high"] is None):
        raise ValueError("has an interval of one end")
    return finalist


@with_config(IGNORING)
class Winner(TypedDict):
    name: Name
    run: Name
    why: Line
    model: Line
    loss: Line
    kid: Finite


@with_config(IGNORING)
class Summary(TypedDict):
    """summary.json."""

    finalists: list[Annotated[Finalist, AfterValidator(_with_both_ends)]]
    importance: dict[Line, Finite]
    winner: NotRequired[Winner]


@with_config(ConfigDict(extra="allow", strict=True))
class Asked(TypedDict):
    algorithm: Line
    scheduler: Line
    objectives: list[Literal["kid", "images_per_s", "coverage"]]


@with_config(IGNORING)
class Search(TypedDict):
    """search.yaml."""

    search: Annotated[Asked, AfterValidator(_plain)]
    manifest_sha256: Digest
    data: NotRequired[Line]
    versions: NotRequired[dict[Line, Line]]
    command: NotRequired[Line]


# -- evaluations -----------------------------------------------------------------------------------------------------


@with_config(ConfigDict(extra="allow", strict=True))
class Settings(TypedDict):
    subject_sha256: Digest
    manifest_sha256: Digest
    split: Literal["train", "val", "test"]


@with_config(IGNORING)
class Evaluation(TypedDict):
    """evaluation.json. What is below its sections is known to be a tree, and to whoever draws it."""

    settings: Annotated[Settings, AfterValidator(_plain)]
    fidelity: NotRequired[Annotated[dict[str, Any], AfterValidator(_plain)]]
    privacy: NotRequired[Annotated[dict[str, Any], AfterValidator(_plain)]]
    utility: NotRequired[Annotated[dict[str, Any], AfterValidator(_plain)]]


# -- reading ---------------------------------------------------------------------------------------------------------


def checked(kind: Any, content: bytes | dict[str, Any] | list[Any], where: str) -> Any:
    """What a file holds, as one of the kinds above: JSON, or what was read of it. Raises Refused, in one line."""
    try:
        tree = from_json(content) if isinstance(content, bytes) else content  # which knows how deep is too deep
        return TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        raise Refused(one_line(f"{where}: {fault(error)}")) from None
    except ValueError as error:
        raise Refused(one_line(f"{where}: is damaged ({error})")) from None
