"""Write the tables of results/ into the README and docs/results.md, between the marks of each proof.

python -m tests.prove
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator

from tests.prove import ROOT

PAGES = (ROOT / "README.md", ROOT / "docs/results.md")
MARKED = re.compile(r"(<!-- (\w+) -->\n)(.*?)(\n<!-- /\2 -->)", re.DOTALL)


def table(proof: str) -> str:
    """What the results of a proof, or of `make bench`, are as Markdown."""
    module = "tests.bench.__main__" if proof == "bench" else f"tests.prove.{proof}"
    return str(importlib.import_module(module).table())


def tables() -> Iterator[tuple[str, str, str]]:
    """(proof, the table that a page has, the table of its results)."""
    for page in PAGES:
        for _, proof, shown, _ in MARKED.findall(page.read_text()):
            yield proof, shown, table(proof)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(MARKED.sub(lambda found: found[1] + table(found[2]) + found[4], page.read_text()))
