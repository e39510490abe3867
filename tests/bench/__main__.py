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

from ..prove import ROOT, commit, hardware, known
from . import checkpoint, loader, prepare, scaling, search, step

MODULES = (loader, prepare, step, checkpoint, scaling, search)
BENCHES = {module.__name__.rpartition(".")[2]: module.run for module in MODULES}

RESULTS = ROOT / "results/bench.json"
"""What an idle machine reached: kept by --out, shown in docs/results.md."""
SHOWN = {
    "loader/64": ("random batches of 64x64 from the map of a host", "ImageFolder and DataLoader on JPEG files"),
    "loader/256": ("the same at 256x256", "the same"),
    "loader/start": ("first batch of 100,000 rows, on a host that has not read them yet", "5 s"),
    "loader/memory": ("memory of four workers' data on one host", "of one worker's"),
    "step/dcgan64": ("a step of `dcgan`, width 64, batch 64, 64x64, as its preset has it", "float32, channels first"),
    "step/dcgan64/products": ("its products of matrices", "large ones of bfloat16, in the same minutes"),
    "step/stylegan2-lite64": ("a step of `stylegan2-lite`, width 256, batch 16, 64x64", "its equations, in float32"),
    "step/stylegan2-lite64/products": ("its products of matrices", "large ones of bfloat16, in the same minutes"),
    "step/job": ("images/s inside `jobs/train.py`, one worker", "bare steps on tensors that lie there"),
    "step/memory": ("memory of a step with `optim.accumulation=2`", "without"),
    "scaling/2workers": ("`dcgan` 64x64 on 2 workers of a thread each", "on 1"),
    "scaling/2strangers": ("two workers that do not know of each other", "1"),
    "scaling/3hosts": ("3 workers on 3 hosts (network namespaces)", "on one host"),
    "checkpoint/stall": ("training stands still for checkpoints every 20 steps", "written in between"),
    "prepare/core": ("preparing JPEG films of 1300x1000 on one core", "a bare Pillow loop"),
    "prepare/2cores": ("the same on two cores", "two bare Pillow loops"),
    "search/images": ("a search of 6 trainings, two at a time", "a shell loop that starts them two at a time"),
    "search/busy": ("its cores are busy", "the shell loop's"),
}
"""The rows of the table: what was measured, and beside what."""
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


def table() -> str:
    """results/bench.json as Markdown."""
    rows = {row["name"]: row for row in known(RESULTS)}
    lines = ["| what | | beside | | ratio |", "|---|---|---|---|---|"]
    for name, (what, beside) in SHOWN.items():
        if row := rows.get(name):
            digits = 2 if row["ours"] < 1 else 1 if row["ours"] < 100 else 0
            ours, peer = (f"{row[key]:,.{digits}f}" for key in ("ours", "peer"))
            lines.append(f"| {what} | {ours} {row['unit']} | {beside} | {peer} | {row['ratio']:.2f} |")
    return "\n".join(lines)


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
                    rows[row["name"]] = row | {"commit": commit(), "hardware": hardware()}
                    wanted = missed(row, cpuinfo)
                    below = below or bool(wanted)
                    shown = f"{row['ours']:>12,.1f} {row['peer']:>12,.1f} {row['unit']:<10} {row['ratio']:>8.2f}"
                    note = f"  below what is wanted: {wanted}" if wanted else ""
                    print(f"{row['name']:<30} {shown}{note}", flush=True)
    args.out.write_text(json.dumps([rows[name] for name in sorted(rows)], indent=1) + "\n")
    return int(below)


if __name__ == "__main__":
    sys.exit(main())
