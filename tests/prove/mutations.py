"""Plausible mistakes, made one at a time in a copy of the project: each must turn its test of the fast suite red.

    python -m tests.prove.mutations                              # those that results/mutations.json has not as red
    python -m tests.prove.mutations --only medgan/step.py --again
    python -m tests.prove.mutations --table

The mistakes are in mistakes.py. Before those of a module are made, its tests have to be green. A test that goes on for
longer than the time limit has noticed, too, and its row says so.
"""

from __future__ import annotations

import json
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from medgan.terminal import Failed, Parser, command

from . import ROOT, Row, commit, hardware, keep, known
from .mistakes import MISTAKES, MUTATIONS, Mutation

RESULTS = ROOT / "results/mutations.json"
FAST = "not slow and not (ray or hosts or browser or real_data or heavy)"
"""Of the suite what `make test` runs."""
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout=0", "-m", FAST)
TIMEOUT_S = 600
ENDED_S = 30
"""What pytest gets to end in order, where the time is over."""
GREEN, RED, OVER = 0, 1, None
"""How tests end: pytest's exit codes, or not in time. All other codes say that nothing was tested."""


def identity(row: Row) -> tuple[str, ...]:
    """The mistake that a row is of."""
    return tuple(str(row[key]) for key in ("module", "before", "after", "test"))


KNOWN = [identity(vars(mutation)) for mutation in MUTATIONS]


def copy_to(folder: Path) -> Path:
    """The tracked files as they are in the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    for name in listed.split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def run(copy: Path, tests: Sequence[str]) -> tuple[int | None, str]:
    """(pytest's exit code for tests of a copy, or OVER; what it printed). No bytecode is kept: it would be taken for
    that of a file of the same second and size."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryFile("w+") as output:
        words = [sys.executable, *PYTEST, *tests]
        process = subprocess.Popen(words, cwd=copy, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            code: int | None = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            code = OVER
            process.send_signal(signal.SIGINT)
            try:
                process.wait(ENDED_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        output.seek(0)
        return code, output.read()


@contextmanager
def mistaken(copy: Path, mutation: Mutation) -> Iterator[None]:
    """Within it the copy has the mistake."""
    file = copy / mutation.module
    text = file.read_text()
    if text.count(mutation.before) != 1:
        raise Failed(f"{mutation.module}: {mutation.before!r} is in it {text.count(mutation.before)} times, not once")
    file.write_text(text.replace(mutation.before, mutation.after))
    try:
        yield
    finally:
        file.write_text(text)


def judge(copy: Path, mutations: Sequence[Mutation], common: Row) -> Iterator[Row]:
    """A row for each mistake of one module. Raises Failed where it cannot be told."""
    tests = sorted({f"tests/{mutation.test}" for mutation in mutations})
    code, output = run(copy, tests)
    if code != GREEN:
        raise Failed(f"{mutations[0].module}: its tests are not green without a mistake:\n{output[-3000:]}")
    for mutation in mutations:
        began, test = time.monotonic(), f"tests/{mutation.test}"
        with mistaken(copy, mutation):
            code, output = run(copy, [test])
        if code not in (GREEN, RED, OVER):
            raise Failed(f"{mutation.module}: {mutation.after!r} ended {test} with {code}:\n{output[-3000:]}")
        yield {
            **vars(mutation),
            **{"red": code != GREEN, "over": code == OVER, "seconds": round(time.monotonic() - began, 1)},
            **common,
            "command": shlex.join(["python", *PYTEST, test]),
        }


def told(row: Row) -> str:
    how = "over the time limit" if row["over"] else "red" if row["red"] else "NOT NOTICED"
    return f"{how}: {row['module']}: {row['before']!r} -> {row['after']!r} ({row['test']}, {row['seconds']:.0f} s)"


def prove(wanted: dict[str, list[Mutation]], jobs: int) -> list[str]:
    """Make the mistakes, of so many modules at once; why some could not be judged."""
    common = {"commit": commit(), "hardware": hardware()}
    copies: queue.Queue[Path] = queue.Queue()

    def one(module: str) -> str:
        copy = copies.get()
        try:
            for row in judge(copy, wanted[module], common):
                keep(RESULTS, [row], identity, KNOWN)
                print(told(row), flush=True)
        except Failed as error:
            print(error, flush=True)
            return module
        finally:
            copies.put(copy)
        return ""

    with tempfile.TemporaryDirectory(prefix="medgan-") as folder:
        for number in range(jobs):
            copies.put(copy_to(Path(folder) / str(number)))
        pool = ThreadPoolExecutor(jobs)
        try:
            return list(filter(None, pool.map(one, wanted)))
        finally:
            pool.shutdown(cancel_futures=True)


def table() -> str:
    """The results as Markdown."""
    rows = known(RESULTS)
    parts = {name: str(Path(name).parent) for name in (row["module"] for row in rows)}
    modules = Counter(parts.values())
    lines = ["| part | modules | mistakes | noticed |", "|---|---|---|---|"]
    for part in modules:
        mine = [row for row in rows if parts[row["module"]] == part]
        lines.append(f"| `{part}` | {modules[part]} | {len(mine)} | {sum(row['red'] for row in mine)} |")
    lines.append(f"| all | {len(parts)} | {len(rows)} | {sum(row['red'] for row in rows)} |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--only", action="append", choices=tuple(MISTAKES), metavar="MODULE", help="such as jobs/train.py"
    )
    parser.add_argument("--again", action="store_true", help="make also the mistakes that the results have already")
    parser.add_argument("--jobs", type=int, default=2, help="how many modules at once (default 2)")
    parser.add_argument("--table", action="store_true", help="print the results and end")
    args = parser.parse_args(argv)
    if args.table:
        print(table())
        return
    rows = {identity(row): row for row in known(RESULTS)}
    if rows.keys() - set(KNOWN):  # of mistakes that are in the list no longer
        RESULTS.write_text(json.dumps([row for key, row in rows.items() if key in KNOWN], indent=1) + "\n")
    wanted: dict[str, list[Mutation]] = {}
    for key, mutation in zip(KNOWN, MUTATIONS, strict=True):
        if mutation.module in (args.only or MISTAKES) and (args.again or not rows.get(key, {}).get("red")):
            wanted.setdefault(mutation.module, []).append(mutation)
    unjudged = prove(wanted, args.jobs)
    print(table())
    survivors = [f"{row['module']}: {row['after']!r}" for row in known(RESULTS) if not row["red"]]
    if survivors:
        raise Failed(f"not noticed: {'; '.join(survivors)}")
    if unjudged:
        raise Failed(f"not judged: {', '.join(unjudged)}")


if __name__ == "__main__":
    sys.exit(command(main))
