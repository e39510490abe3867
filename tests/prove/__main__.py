"""Write the tables of results/ into the README, between the marks of each proof.

python -m tests.prove
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator

from tests.prove import ROOT

README = ROOT / "README.md"
MARKED = re.compile(r"<!-- (\w+) -->\n(.*?)\n<!-- /\1 -->", re.DOTALL)


def tables() -> Iterator[tuple[str, str, str]]:
    """(proof, the table that the README has, the table of its results)."""
    for name, shown in MARKED.findall(README.read_text()):
        yield name, shown, importlib.import_module(f"tests.prove.{name}").table()


if __name__ == "__main__":
    text = README.read_text()
    for name, _, table in tables():
        marks = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, after = text.split(marks[0])[0], text.split(marks[1])[1]
        text = f"{before}{marks[0]}\n{table}\n{marks[1]}{after}"
    README.write_text(text)
