"""Speed and memory beside what one would otherwise use, both measured in turns in one run.

    python -m tests.bench                  # all, into bench.json
    python -m tests.bench --only loader    # one; its figures replace those of the last time

A ratio is better when larger. The machine's state moves the figures more than the ratios.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from medgan.terminal import Parser

from . import checkpoint, loader, prepare, scaling, search, step

MODULES = (loader, prepare, step, checkpoint, scaling, search)
BENCHES = {module.__name__.rpartition(".")[2]: module.run for module in MODULES}


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--only", choices=BENCHES)
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    args: argparse.Namespace = parser.parse_args()
    rows = {row["name"]: row for row in json.loads(args.out.read_text())} if args.out.exists() else {}
    for name, bench in BENCHES.items():
        if args.only in (None, name):
            with tempfile.TemporaryDirectory(prefix="medgan-bench-") as folder:
                for row in bench(Path(folder)):
                    rows[row["name"]] = row
                    shown = f"{row['ours']:>12,.1f} {row['peer']:>12,.1f} {row['unit']:<10} {row['ratio']:>8.2f}"
                    print(f"{row['name']:<18} {shown}", flush=True)
    args.out.write_text(json.dumps([rows[name] for name in sorted(rows)], indent=1) + "\n")


if __name__ == "__main__":
    main()
