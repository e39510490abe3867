"""Work cut into cells: each a function of plain arguments and of other cells, kept in a folder once it is done.

A stopped evaluation goes on with what is not there yet, and a larger one takes over what a smaller one has. Cells may
be computed in any order that puts what a cell needs before it, on any host that sees the folder (see ray_tasks.py).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from medgan.data.shards import names, read_file, write_file

Result = dict[str, Any]
"""What a cell yields: JSON types and numpy arrays by name."""


@dataclass(frozen=True)
class Cell:
    """`call` is "module:function"; it gets the results of `needs` in their order, then the arguments by name.

    Equal calls, arguments and needs are the same cell, whatever it is named for people, as long as the code is.
    """

    name: str
    call: str
    arguments: dict[str, Any]
    needs: tuple[Cell, ...] = ()

    @cached_property
    def digest(self) -> str:
        parts = [code(), self.call, self.arguments, [need.digest for need in self.needs]]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def compute(self, folder: str) -> None:
        """Do the work and keep its result below the folder, a path or a URI."""
        module, _, function = self.call.partition(":")
        result: Result = getattr(import_module(module), function)(
            *(need.load(folder) for need in self.needs), **self.arguments
        )
        arrays = {key: value for key, value in result.items() if isinstance(value, np.ndarray)}
        if arrays:
            buffer = io.BytesIO()
            np.savez(buffer, **arrays)  # type: ignore[arg-type]
            write_file(folder, f"{self.digest}.npz", buffer.getvalue())
        plain = {key: value for key, value in result.items() if key not in arrays}
        note = {"cell": self.name, "arrays": bool(arrays), "result": plain}
        write_file(folder, f"{self.digest}.json", json.dumps(note, indent=1).encode())  # last: what is listed is done

    def load(self, folder: str) -> Result:
        """The kept result. Raises FileNotFoundError or another OSError."""
        note = json.loads(read_file(folder, f"{self.digest}.json"))
        if not note["arrays"]:
            return dict(note["result"])
        with np.load(io.BytesIO(read_file(folder, f"{self.digest}.npz"))) as arrays:
            return {**note["result"], **arrays}


@cache
def code() -> str:
    """SHA-256 of this package's sources: what one version of a function found is not taken for what another would."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def missing(wanted: Sequence[Cell], folder: str) -> list[Cell]:
    """The cells that are still to be computed, each once and after all that it needs."""
    there = {name.removesuffix(".json") for name in names(folder) if name.endswith(".json")}
    ordered: dict[str, Cell] = {}

    def visit(cell: Cell) -> None:
        if cell.digest not in ordered and cell.digest not in there:
            for need in cell.needs:
                visit(need)
            ordered[cell.digest] = cell

    for cell in wanted:
        visit(cell)
    return list(ordered.values())


def run(wanted: Sequence[Cell], folder: str, show: Callable[[int, int, str], None]) -> None:
    """Compute what is missing, in this process. show: called with (cells done, of how many, name of the last)."""
    todo = missing(wanted, folder)
    for done, cell in enumerate(todo):
        show(done, len(todo), cell.name)
        cell.compute(folder)
    show(len(todo), len(todo), "")
