"""What people write, on a command line or in YAML -> values, by the type that is wanted and not by a guess at the text.

YAML 1.1 makes a number of 007, a date of 2024-01-01, False of no and text of 1e3.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

NOTHING = ("null", "none", "~", "")
TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
DIGITS = 40
"""A whole number of more is not written out."""


class AsWritten(yaml.SafeLoader):
    """YAML whose scalars stay text."""

    yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # noqa: RUF012, as PyYAML has it


def kinds(annotation: Any) -> set[Any]:
    """The types that a value may have: {float, NoneType} of `float | None`, {str} of Literal["a", "b"]."""
    if get_origin(annotation) in (Union, UnionType):
        return {kind for one in get_args(annotation) for kind in kinds(one)}
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    return {annotation}


def typed(text: Any, wanted: set[Any]) -> Any:
    """Text, or a list of texts, as one of the wanted types; what is none of them stays as it is.

    Where None is wanted, null, none, ~ and nothing are it. Truth is true or false, yes or no, on or off. A number is
    1000, 1_000, 1e3 or 1e-4, and an int wherever it is whole. A list is [a, b] or a,b. Other text is text.
    """
    of_items = next((kinds(get_args(kind)[0]) for kind in wanted if get_origin(kind) is tuple), None)
    if isinstance(text, str) and NoneType in wanted and text.strip().lower() in NOTHING:
        return None
    if of_items is not None:
        items = listed(text) if isinstance(text, str) else text
        return [typed(item, of_items) for item in items] if isinstance(items, list) else text
    if not isinstance(text, str):
        return text
    if bool in wanted:
        return TRUTH.get(text.strip().lower(), text)
    found = number(text) if {int, float} & wanted else None
    return text if found is None else found


def number(text: str) -> int | float | None:
    """An int, and exactly, where the number is whole; None where the text is no number."""
    try:
        found = Decimal(text.strip().lower().replace(".inf", "inf").replace(".nan", "nan"))  # as YAML has them
        if found.is_finite() and found.adjusted() < DIGITS and found == found.to_integral_value():
            return int(found)
        return float(found)
    except (InvalidOperation, ValueError):  # the second of a NaN that signals, of which there is no float
        return None


def listed(text: str) -> list[Any] | None:
    """The items of [a, b] or of a,b; None where the text is no list."""
    if not text.strip().startswith("["):
        return [item.strip() for item in text.split(",")] if "," in text else None
    try:
        found = yaml.load(text, AsWritten)
    except yaml.YAMLError:
        return None
    return found if isinstance(found, list) else None


def unquoted(text: str) -> str:
    """Text in quotes, as YAML reads it, or any other as it is."""
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "\"'":
        return text
    try:
        return str(yaml.load(text, AsWritten))
    except yaml.YAMLError:
        return text
