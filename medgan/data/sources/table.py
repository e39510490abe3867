"""A table of text, as spreadsheets and their users write it: its encoding and separator are found."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from medgan.data.shards import told
from medgan.data.sources.raw import Raw, SourceError

SEPARATORS = ",;\t|"
UNKNOWN = "\ufffd"
"""What a letter becomes whose encoding is not known."""
LINE = re.compile(r"([^\r\n]*)(?:\r\n|\r|\n)")


@dataclass(frozen=True)
class Table:
    where: str
    """What it is called in messages."""
    columns: dict[str, int]
    """Place of each column by its plain name (see `plain`)."""
    rows: Sequence[tuple[int, list[str]]]
    """(number, values) of each row that is not blank, stripped of blanks around; row 1 is the file's first."""


def plain(name: str) -> str:
    """A column's name without blanks, underscores, case, and the # before a header."""
    return re.sub(r"[\s_]|^\s*#(?=.)", "", name).lower()


def table_in(raw: Raw, name: str, wanted: Sequence[str]) -> Table:
    """A table of the raw folder. Raises SourceError."""
    try:
        content = raw.read(name)
    except (OSError, ValueError) as error:
        raise SourceError(f"--raw {raw.location}: {name} cannot be read ({told(error)})") from None
    return read_table(content, name, wanted)


def read_table(content: bytes, where: str, wanted: Sequence[str]) -> Table:
    """Its rows, separated by what separates the header: the first row that is neither blank nor a comment (`#`).

    wanted: plain names of columns that are looked for. Of , ; tab and | the separator is the one by which most of
    them stand alone in the header, then the one that makes most columns. Raises SourceError where rows do not have
    the header's columns.
    """
    text = text_of(content, where)
    named = re.match(r"sep=(.)\r?\n", text)  # what some spreadsheets need to be told
    text = text[named.end() :] if named else text
    text, before = _from_header(text, wanted)
    first = re.split(r"[\r\n]", text, maxsplit=1)[0]
    headers = []
    for separator in named.group(1) if named else SEPARATORS:
        names = [plain(name) for name in next(csv.reader([first], delimiter=separator, skipinitialspace=True), [])]
        headers.append((sum(name in names for name in wanted), len(names), separator, names))
    _, _, separator, names = max(headers, key=lambda header: header[:2])
    for name in wanted:
        if names.count(name) > 1:
            raise SourceError(f"{where}: its first row names the column {name} twice")
    rows = list(_rows(text, separator, where, before + (2 if named else 1)))[1:]
    used = [place for place, name in enumerate(names) if name in wanted]
    for number, values in rows:
        if any(UNKNOWN in values[place] for place in used if place < len(values)):
            raise SourceError(
                f"{where} row {number}: letters that are in no known encoding; save the table as UTF-8 (`CSV UTF-8`)"
            )
    for number, values in rows:
        if any(values[len(names) :]):
            raise SourceError(f"{where} row {number}: {len(values)} columns, and {len(names)} in the first row")
    return Table(where, {name: place for place, name in enumerate(names)}, [row for row in rows if any(row[1])])


def _from_header(text: str, wanted: Sequence[str]) -> tuple[str, int]:
    """The text from its header on, and how many rows are before; a header may begin with # too."""
    start = rows = 0
    while match := LINE.match(text, start):
        names = {plain(name.strip(' "')) for name in re.split(f"[{SEPARATORS}]", match[1])}
        if names != {""} and (not match[1].startswith("#") or names & set(wanted)):
            break
        start, rows = match.end(), rows + 1
    return text[start:], rows


def text_of(content: bytes, where: str) -> str:
    """Text in UTF-8 or UTF-16, with or without a mark of which. In another encoding only ASCII can be told: what is
    beyond it becomes U+FFFD."""
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise SourceError(f"{where}: a workbook, not a table of text; save it as CSV")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" in content[:2]:
        encoding = "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
    else:
        encoding = "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        if encoding != "utf-8-sig":
            raise SourceError(f"{where}: not text in UTF-16, as it begins") from None
        return content.decode("ascii", "replace")


def _rows(text: str, separator: str, where: str, number: int) -> Iterator[tuple[int, list[str]]]:
    rows = csv.reader(io.StringIO(text, newline=None), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        for values in rows:
            yield number, [value.strip() for value in values]
            number += 1
    except csv.Error as error:
        raise SourceError(f"{where} row {number}: not a row of a table ({error})") from None
