"""Speed and memory beside what one would otherwise use, both measured in turns in one run.

    python -m tests.bench                  # all, into bench.json
    python -m tests.bench --only loader    # one; its figures replace those of the last time

A ratio is better when larger. The machine's state moves the figures more than the ratios. What is wanted of some rows
is in WANTED; where one of them was measured and missed it, the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from medgan.terminal import Parser

from . import checkpoint, loader, prepare, scaling, search, step

MODULES = (loader, prepare, step, checkpoint, scaling, search)
BENCHES = {module.__name__.rpartition(".")[2]: module.run for module in MODULES}


WANTED: dict[str, tuple[str, float]] = {
    "scaling/2workers": ("ratio", 1.8),
    "checkpoint/stall": ("at most", 2.0),
    "search/busy": ("ours", 90.0),
    "step/dcgan64": ("ratio", 2.8),
    "step/stylegan2-lite64": ("ratio", 4.5),
    "step/job": ("ratio", 0.95),
    "loader/start": ("ratio", 1.0),
}
"""Which figure of a row, and how large it should be at least; `at most`: how large `ours` may be."""
MATRICES = ("step/dcgan64", "step/stylegan2-lite64")
"""Beside float32: wanted where the processor multiplies matrices of bfloat16."""


def missed(row: dict[str, Any], cpuinfo: str) -> str:
    """What was wanted of a row, where it is not there; else nothing."""
    figure, wanted = WANTED.get(row["name"], ("ratio", float("-inf")))
    if row["name"] in MATRICES and "amx_bf16" not in cpuinfo:
        return ""
    if figure == "at most":
        return f"at most {wanted:g}" if row["ours"] > wanted else ""
    return f"{figure} {wanted:g}" if row[figure] < wanted else ""


def main() -> int:
    parser = Parser(__doc__)
    parser.add_argument("--only", choices=BENCHES)
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    args: argparse.Namespace = parser.parse_args()
    cpuinfo, below = Path("/proc/cpuinfo").read_text(), False
    rows = {row["name"]: row for row in json.loads(args.out.read_text())} if args.out.exists() else {}
    for name, bench in BENCHES.items():
        if args.only in (None, name):
            with tempfile.TemporaryDirectory(prefix="medgan-bench-") as folder:
                for row in bench(Path(folder)):
                    rows[row["name"]] = row
                    wanted = missed(row, cpuinfo)
                    below = below or bool(wanted)
                    shown = f"{row['ours']:>12,.1f} {row['peer']:>12,.1f} {row['unit']:<10} {row['ratio']:>8.2f}"
                    note = f"  below what is wanted: {wanted}" if wanted else ""
                    print(f"{row['name']:<21} {shown}{note}", flush=True)
    args.out.write_text(json.dumps([rows[name] for name in sorted(rows)], indent=1) + "\n")
    return int(below)


if __name__ == "__main__":
    sys.exit(main())
