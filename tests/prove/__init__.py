"""Long proofs, each a module with a `main`: what they share. Their results go into results/ as JSON."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Row = dict[str, Any]


def call(*command: object) -> str:
    """Run a script of this project; what it printed last. Raises where it fails."""
    words = [sys.executable, *map(str, command)]
    result = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{shlex.join(words[1:])} ended with {result.returncode}:\n{result.stdout}")
    return result.stdout.strip().splitlines()[-1]


def told(command: list[str], data: Path, out: Path) -> str:
    """A command of jobs/ as anybody may give it: DATA and RUN for the folders."""
    return shlex.join(["DATA" if word == str(data) else "RUN" if word == str(out) else word for word in command])


def hardware() -> str:
    info = Path("/proc/cpuinfo").read_text()
    name = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    flags = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in info]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores {name} ({platform.machine()} {' '.join(flags)}), {memory:.0f} GiB"


def commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "medgan", "jobs", "tests/prove")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def raw(folder: str) -> Path:
    """A folder of the real images. Ends where none are named."""
    if not os.environ.get("MEDGAN_REAL_DATA"):
        raise SystemExit(f"MEDGAN_REAL_DATA is not set: name the folder that holds {folder}/")
    return Path(os.environ["MEDGAN_REAL_DATA"]) / folder


def arguments(doc: str | None, name: str, parts: Iterable[str]) -> argparse.ArgumentParser:
    """--work, --only and --table, which every proof of several parts has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "runs/prove" / name, help="folder for data and runs")
    names = tuple(parts)
    parser.add_argument("--only", action="append", choices=names, metavar="PART", help=f"of {', '.join(names)}")
    parser.add_argument("--again", action="store_true", help="measure also what the results have already")
    parser.add_argument("--table", action="store_true", help="print the results and end")
    return parser


def prepare(source: str, data: Path, *options: object) -> None:
    """DATA of a proof. The key that hides patients orders the films, too: these are public, and so is their key, with
    which they are the same everywhere."""
    key = data.with_name("patient.key")
    key.write_text(hashlib.sha256(b"medgan/tests/prove").hexdigest())
    key.chmod(0o600)
    call("jobs/prepare.py", "--source", source, "--out", data, "--patient-key-file", key, *options)


def opened(work: Path) -> Path:
    """The folder for data and runs, made where it is not there."""
    work.resolve().mkdir(parents=True, exist_ok=True)
    return work.resolve()


def known(results: Path) -> list[Row]:
    return list(json.loads(results.read_text())) if results.exists() else []


def prove(
    args: argparse.Namespace,
    results: Path,
    parts: Iterable[str],
    measured: Callable[[str], Iterable[Row]],
    name: Callable[[Row], str],
    table: Callable[[], str],
) -> None:
    """Measure the parts that are asked for: those that the results lack, with --again the others, too.

    Parameters
    ----------
    measured: the rows of a part.
    name: the part that a row is of.
    """
    if args.table:
        print(table())
        return
    for part in args.only or parts:
        if part in map(name, known(results)) and not args.again:
            print(f"{part} is in {results.name} already; --again (make: AGAIN=1) measures it anew", flush=True)
        else:
            keep(results, measured(part), name, parts)
            print(f"{part} is measured, and in {results.name}", flush=True)
    print(table())


def keep(results: Path, rows: Iterable[Row], name: Callable[[Row], Any], order: Iterable[Any]) -> None:
    """Put rows in the place of those of the same name in a file of results, which it may share with other processes."""
    results.parent.mkdir(exist_ok=True)
    with open(results.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        new = list(rows)
        made = {name(row) for row in new}
        everything = [row for row in known(results) if name(row) not in made] + new
        places = {key: place for place, key in enumerate(order)}
        results.write_text(
            json.dumps(sorted(everything, key=lambda row: places.get(name(row), len(places))), indent=1) + "\n"
        )
