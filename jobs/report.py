"""Make a run's report.html again, also while it trains.

python jobs/report.py --run runs/demo
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from medgan.config import Refused
from medgan.terminal import Parser, absolute, command


def parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--run", required=True, help="run folder of jobs/train.py: a path or a URI")
    parser.add_argument("--verbose", action="store_true", help="show tracebacks")
    return parser


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    run = absolute("--run", args.run)

    from medgan import report
    from medgan.folder import RunFolder

    folder = RunFolder(run)
    if folder.config() is None or not folder.exists("metrics.jsonl"):
        raise Refused(f"--run {run}: no run in it; name the folder that jobs/train.py wrote")
    folder.write("report.html", report.run_page(folder))
    print(f"page: {run}/report.html")


if __name__ == "__main__":
    sys.exit(command(main))
