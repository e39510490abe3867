"""Work cut into cells: each a function of plain arguments and of other cells, kept in a folder once it is done.

A stopped evaluation goes on with what is not there yet, and a larger one takes over what a smaller one has. Cells may
be computed in any order that puts what a cell needs before it, on any host that sees the folder (see ray_tasks.py).
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import statistics
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from pydantic_core import from_json

from medgan.config import Refused
from medgan.data.shards import names, read_file, write_file
from medgan.host import ROOT
from medgan.terminal import Progress, duration

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
        parts = [code(self.call.partition(":")[0]), self.call, self.arguments, [need.digest for need in self.needs]]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def compute(self, folder: str) -> float:
        """Do the work and keep its result below the folder, a path or a URI; returns the seconds that it took."""
        began = time.monotonic()
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
        return time.monotonic() - began

    def load(self, folder: str) -> Result:
        """The kept result. Raises FileNotFoundError or another OSError, and Refused where it is damaged."""
        content = read_file(folder, f"{self.digest}.json", inside=True)
        try:
            note = from_json(content)
            result = dict(note["result"])
            if not note["arrays"]:
                return result
            with np.load(io.BytesIO(read_file(folder, f"{self.digest}.npz", inside=True))) as arrays:
                return {**result, **arrays}
        except (
            ValueError,
            LookupError,
            TypeError,
            EOFError,
            RuntimeError,
            MemoryError,
            BadZipFile,
            zlib.error,
        ) as error:
            where = f"{folder}/{self.digest}.json"
            raise Refused(f"{where}: damaged ({type(error).__name__}): remove it, and give the command again") from None


@cache
def code(module: str, root: Path = ROOT) -> str:
    """SHA-256 of what a module's functions do: what one version of them found is not taken for what another would.

    Of its code and of that of all modules of the project that it imports, wherever in it, and those that they import:
    without remarks and docstrings, so that a better word costs no hour of computing.
    """
    reached, digest = {module: ""}, hashlib.sha256()
    for name in (waiting := [module]):
        file = root / (name.replace(".", "/") + ".py")
        file = file if file.exists() else root / name.replace(".", "/") / "__init__.py"
        tree = ast.parse(file.read_bytes()) if file.exists() else ast.Module([], [])
        for below in set(_imports(tree)) - reached.keys():
            reached[below] = ""
            waiting.append(below)
        reached[name] = ast.dump(_without_docstrings(tree))
    for name in sorted(reached):
        digest.update(f"{name}\0{reached[name]}\0".encode())
    return digest.hexdigest()


def _imports(tree: ast.Module) -> Iterator[str]:
    """The modules of the project that a module may import, by their absolute names, with the packages around them;
    also names that are none."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        parts = [name.split(".") for name in found if name.partition(".")[0] == "medgan"]
        yield from (".".join(some[:depth]) for some in parts for depth in range(1, len(some) + 1))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    """The same tree, in place, without texts that stand alone as statements."""
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [one for one in body if not _is_text(one)]  # type: ignore[attr-defined]
    return tree


def _is_text(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


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


class Pace:
    """How far a computation is, and how long it goes on, as far as that was measured.

    A cell is expected to take what those that call the same function took: to train a classifier takes minutes, to
    average figures nothing, so that cells of one kind tell nothing of another's.
    """

    def __init__(self, todo: Sequence[Cell], slots: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        """slots: how many cells are computed at once."""
        self.left = {cell.digest: cell for cell in todo}
        self.of, self.slots, self.clock, self.name = len(todo), slots, clock, ""
        self.began: dict[str, float] = {}
        self.took: dict[str, list[float]] = {}

    @property
    def done(self) -> int:
        return self.of - len(self.left)

    def start(self, cell: Cell) -> None:
        self.began[cell.digest], self.name = self.clock(), cell.name

    def finish(self, cell: Cell, seconds: float) -> None:
        """seconds: what the cell took where it was computed."""
        self.took.setdefault(cell.call, []).append(seconds)
        del self.left[cell.digest]

    def expected(self) -> tuple[float, bool]:
        """(seconds until all is done, whether that is all): without cells of which none of their kind is done yet, or
        that take longer than those did. As long as the work of all, divided by slots, and as any chain of needs."""
        seconds, sure, now = {}, True, self.clock()
        for digest, cell in self.left.items():
            took, waited = self.took.get(cell.call), now - self.began.get(digest, now)
            seconds[digest] = max(0.0, statistics.mean(took) - waited) if took else 0.0
            sure = sure and seconds[digest] > 0
        chains: dict[str, float] = {}
        for digest, cell in self.left.items():  # each after all that it needs
            chains[digest] = seconds[digest] + max((chains.get(need.digest, 0.0) for need in cell.needs), default=0.0)
        return max(sum(seconds.values()) / self.slots, max(chains.values(), default=0.0)), sure

    def told(self) -> str:
        """The time left for people; nothing as long as nothing is known."""
        seconds, sure = self.expected()
        return f"{'about' if sure else 'at least'} {duration(seconds)} left" if seconds >= 1 else ""


def shown(line: Progress, verb: str) -> Callable[[Pace], None]:
    """What shows a computation: on a terminal as time goes on, elsewhere where a cell was done."""
    before = -1

    def show(pace: Pace) -> None:
        nonlocal before
        if line.live or pace.done > before:
            before = pace.done
            line.update(f"{verb} {pace.done}/{pace.of} cells", pace.told(), pace.name, force=not pace.left)

    return show


def run(wanted: Sequence[Cell], folder: str, show: Callable[[Pace], None]) -> None:
    """Compute what is missing, in this process. show: called before and after each cell."""
    todo = missing(wanted, folder)
    pace = Pace(todo)
    for cell in todo:
        pace.start(cell)
        show(pace)
        pace.finish(cell, cell.compute(folder))
    show(pace)
