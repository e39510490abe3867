"""Schemas of the files of runs, searches and evaluations, which may come from anybody: checked before they are used.

The manifest's is in data/shards.py, the generator's in sample.py. Texts stay in one line and move no cursor, names that
become paths stay in their folder, numbers are finite where they have to be, and trees have a limited depth. Keys that
no schema knows, such as those of a later version, are dropped.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from pydantic_core import from_json
from typing_extensions import TypedDict  # that of Python 3.11 does not keep what pydantic needs

from medgan.config import Refused
from medgan.data.shards import Count, Sha256, fault
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
    """What JSON can hold, with texts of one line and a limited depth."""
    if depth > DEEPEST:
        raise ValueError(f"is deeper than {DEEPEST} levels")
    if isinstance(value, dict):
        return {_line(str(key)): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    if not _is_finite(value):
        raise ValueError("holds a number that is not finite")
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


Key = Annotated[str, Field(max_length=1000), AfterValidator(_line)]
Row = Annotated[dict[Key, bool | Whole | float | list[Tree] | None], AfterValidator(_of_a_run)]
"""A line of metrics.jsonl (figures by name) or order.jsonl (which rows of DATA a step used), at `images_seen`."""


@with_config(IGNORING)
class Holder(TypedDict):
    """A term of a lease: who holds the folder."""

    owner: Token
    mark: Token
    host: Line
    time: Count


# -- checkpoints ---------------------------------------------------------------------------------------------------


@with_config(IGNORING)
class Best(TypedDict, total=False):
    images_seen: Count
    kid: Annotated[Finite, Field(ge=-100)]
    identity: Tree


def _whole_or_none(best: dict[str, Any]) -> dict[str, Any]:
    if len(best) not in (0, 3):
        raise ValueError("has parts of a figure")
    return best


@with_config(IGNORING)
class Strength(TypedDict):
    p: Annotated[Finite, Field(ge=0, le=1)]
    signs: Finite
    steps: Count


@with_config(ConfigDict(extra="allow"))
class Origin(TypedDict):
    manifest_sha256: Sha256 | None


@with_config(ConfigDict(extra="allow"))
class Trained(TypedDict):
    data: Origin


@with_config(IGNORING)
class Checkpoint(TypedDict):
    """What torch.load gives. Whether its tensors fit the networks is for state.py to see."""

    schema_version: Count
    config: Trained
    images_seen: Count
    best: Annotated[Best, AfterValidator(_whole_or_none)]
    generator: dict[str, Any]
    discriminator: dict[str, Any]
    ema: dict[str, Any]
    generator_optimizer: dict[str, Any]
    discriminator_optimizer: dict[str, Any]
    scalers: Annotated[list[dict[str, Count | Annotated[Finite, Field(ge=0)]]], Field(min_length=2, max_length=2)]
    strength: Strength
    path_mean: Finite
    begun_with: Annotated[list[Sha256], Field(max_length=1000)]
    private_steps: Count


# -- searches ------------------------------------------------------------------------------------------------------

Status = Literal["done", "stopped", "failed", "running", "interrupted", "waiting"]


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
    status: Status
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
    """evaluation.json. What its sections hold is left to whoever shows it (evaluation_page.py)."""

    settings: Annotated[Settings, AfterValidator(_plain)]
    fidelity: NotRequired[Annotated[dict[str, Any], AfterValidator(_plain)]]
    privacy: NotRequired[Annotated[dict[str, Any], AfterValidator(_plain)]]
    utility: NotRequired[Annotated[dict[str, Any], AfterValidator(_plain)]]


# -- reading ---------------------------------------------------------------------------------------------------------


def checked(schema: Any, content: bytes | dict[str, Any] | list[Any], where: str) -> Any:
    """What a file holds, checked against a schema: the bytes of JSON, or what was parsed already. Raises Refused."""
    try:
        tree = from_json(content) if isinstance(content, bytes) else content  # from_json limits the depth
        return _validator(schema).validate_python(tree)
    except ValidationError as error:
        raise Refused(one_line(f"{where}: {fault(error)}")) from None
    except ValueError as error:
        raise Refused(one_line(f"{where}: is damaged ({error})")) from None


@cache
def _validator(schema: Any) -> TypeAdapter[Any]:
    """Which takes longer to make than to use."""
    return TypeAdapter(schema)
