"""Search architectures, losses and their settings: many trainings side by side, ranked by KID.

    python jobs/search.py --data data/phantom_cxr --out searches/first --trials 40
    python jobs/search.py --data DATA --out SEARCH --trials 24 --space model.name=cgan,stylegan2-lite \\
        --space optim.lr_g=1e-4..5e-3 --set total_images=200000
    python jobs/search.py --data DATA --out SEARCH --trials 8 --algorithm pbt --space model.name=cgan
    ray job submit --working-dir . -- python jobs/search.py --data /shared/DATA --out /shared/SEARCH --trials 40

The same command goes on where the search was stopped. --show-space prints what is searched.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

import yaml

from medgan import config as configs
from medgan.config import Refused
from medgan.data import shards
from medgan.data.cache import cache_folder
from medgan.locations import redact, redact_command
from medgan.terminal import Failed, Parser, Stopped, absolute, again, command, duration

ALGORITHMS = ("random", "tpe", "pbt")
OBJECTIVES = ("kid", "kid,images_per_s", "kid,coverage")
USUAL: dict[str, Any] = {"objective": "kid", "scheduler": "asha", "finalists": 2, "seeds": 3}
"""What holds where it is not said; a population has none of it."""


def parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--data", help="data folder made by jobs/prepare.py: a path or a URI")
    parser.add_argument("--out", help="search folder to make or to go on with: a path or a URI")
    parser.add_argument("--trials", type=int, help="how many trials in all")
    parser.add_argument("--workers-per-trial", type=int, default=1, help="cores or GPUs of each (default 1)")
    parser.add_use("a worker")
    parser.add_argument(
        "--at-once",
        type=int,
        metavar="N",
        help="trials at a time, those that an autoscaler has to make room for included (default: what fits now)",
    )
    parser.add_argument(
        "--space", action="append", default=[], metavar="KEY=VALUES|FILE", help="narrow what is searched; repeatable"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="fix one setting for all trials; repeatable"
    )
    parser.add_argument("--algorithm", choices=ALGORITHMS, default="tpe", help="how settings are chosen (default tpe)")
    parser.add_argument("--objective", choices=OBJECTIVES, help="what is searched for (default kid)")
    parser.add_argument("--scheduler", choices=("asha", "none"), help="who is stopped early (default asha)")
    parser.add_argument("--finalists", type=int, help="how many of the best are trained again (default 2)")
    parser.add_argument("--seeds", type=int, help="fresh seeds for each finalist (default 3)")
    parser.add_argument("--search-seed", type=int, default=0, help="seed of the drawing (default 0)")
    parser.add_argument("--show-space", action="store_true", help="print what is searched, and end")
    parser.add_argument("--verbose", action="store_true", help="show Ray's own messages and tracebacks")
    return parser


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    for flag in ("data",) if args.show_space else ("data", "out", "trials"):
        if getattr(args, flag) is None:
            raise Refused(f"--{flag} is missing; --help shows an example")
    for flag, least in (("trials", 1), ("workers_per_trial", 1), ("at_once", 1), ("finalists", 0), ("seeds", 1)):
        if getattr(args, flag) is not None and getattr(args, flag) < least:
            raise Refused(f"--{flag.replace('_', '-')} {getattr(args, flag)}: must be at least {least}")
    for flag, usual in USUAL.items():
        if getattr(args, flag) is None:
            setattr(args, flag, usual)
        elif args.algorithm == "pbt":
            raise Refused(f"--{flag}: --algorithm pbt has none, its members change their settings as they train")
    data = absolute("--data", args.data)
    manifest, sha256 = shards.read_manifest(data)
    fixed = dict(map(configs.parse_override, args.set))

    from tune import spaces

    space = spaces.space(bool(manifest.classes), args.space, fixed)
    if args.algorithm == "pbt":
        space = space.for_population()
        if not space.ranges():
            raise Refused("--algorithm pbt: nothing is left that could evolve")
    if args.show_space:
        print(spaces.describe(space))
        return
    out = absolute("--out", args.out)

    from medgan.folder import SearchFolder
    from medgan.lease import Heartbeat
    from medgan.ray_connect import cluster_address, connect
    from tune import search

    search.quiet()
    request = search.Request(
        data=data,
        out=out,
        trials=args.trials,
        workers=args.workers_per_trial,
        use=args.use,
        at_once=args.at_once,
        space=spaces.spelled(args.space),
        fixed=search.with_defaults(fixed),
        algorithm=args.algorithm,
        objectives=tuple(args.objective.split(",")),
        scheduler="none" if args.algorithm == "pbt" else args.scheduler,
        finalists=args.finalists,
        seeds=args.seeds,
        seed=args.search_seed,
    )
    space = spaces.Space(space.labelled, space.narrowed, request.fixed, space.only)
    spaces.check_batches(space, data, manifest.rows("train"), request.workers)
    search.check_data(space, request, manifest, sha256)
    folder = SearchFolder(out)
    wanted: dict[str, Any] = {"search": request.identity, "data": redact(data), "manifest_sha256": sha256}
    stored = folder.settings()
    if stored is not None:
        if stored["manifest_sha256"] != sha256:
            raise Refused(f"--data {data}: {out} was searched on another DATA ({stored['data']})")
        search.check_same(stored, wanted["search"], out)
    for split in ("train", "val"):
        if manifest.rows(split) < 16:
            raise Refused(f"--data {data}: {split} has {manifest.rows(split)} images, at least 16 are needed")
    shards.verify(data, manifest)
    if cluster_address() == "local":
        cache_folder()  # the trials of this host have one
    slots, unit = search.slots(connect(args.verbose), request.workers, request.use, request.at_once)
    names = ("medgan", "torch", "ray", "optuna")
    wanted["versions"] = {name: importlib.metadata.version(name) for name in names}
    wanted["command"] = f"python jobs/search.py {redact_command(argv)}"
    board = View(request)
    with Heartbeat(folder, board.show):
        folder.write("search.yaml", yaml.safe_dump(wanted, sort_keys=False))
        running = search.Search(request, space, manifest, sha256, slots, unit, board.show)
        board.earlier(running.ledger.records)
        many = f"{slots} trials at a time on {unit}s"
        print(f"searching {len(space.cells)} combinations with {args.algorithm}, {many}, into {out}")
        running.run()
    board.close()
    records = list(running.ledger.records.values())
    best = search.winner(records)
    if running.interrupt.asked:
        raise Stopped(f"stopped with {sum(r['status'] in ('done', 'stopped') for r in records)} trials; {again()}")
    if best is None:
        reasons = sorted({record["reason"] for record in records if record["reason"]})
        raise Failed(f"no trial has a KID: {'; '.join(reasons) or 'none was run'}")
    board.summary(records, best)


class View:
    """The leaderboard: redrawn on a terminal, elsewhere a line for each thing that happens."""

    ROWS = 8

    def __init__(self, request: Any) -> None:
        self.request = request
        self.records: dict[str, dict[str, Any]] = {}
        self.live = sys.stdout.isatty()
        self.drawn = 0
        self.began = time.monotonic()
        self.said: dict[str, tuple[Any, ...]] = {}

    def earlier(self, records: dict[str, dict[str, Any]]) -> None:
        """What is known where a search goes on: on the board, but no news."""
        self.records |= records

    def show(self, change: Any) -> None:
        if isinstance(change, str):
            self._erase()
            print(change, flush=True)
            return
        self.records[change["name"]] = change
        if self.live:
            self._erase()
            lines = self.board()
            print("\n".join(lines), flush=True)
            self.drawn = len(lines)
            return
        now = (change["status"], change["images_seen"], change.get("kid"))
        if self.said.get(change["name"]) != now and change["status"] != "waiting":
            self.said[change["name"]] = now
            print(self.line(change), flush=True)

    def line(self, record: dict[str, Any]) -> str:
        kid = "" if record.get("kid") is None else f"  KID {record['kid']:.4g}"
        reason = f" ({record['reason']})" if record["reason"] else ""
        return f"trial {record['name']:<10} {record['images_seen']:>9,} images{kid}  {record['status']}{reason}"

    def board(self) -> list[str]:
        from tune.search import ranking

        count = {status: sum(r["status"] == status for r in self.records.values()) for status in STATUSES}
        told = ", ".join(f"{number} {status}" for status, number in count.items() if number)
        columns = shutil.get_terminal_size().columns - 1
        lines = [f"{duration(time.monotonic() - self.began)}  {told}"]
        lines += table(ranking(list(self.records.values()))[: self.ROWS])
        return [line[:columns] for line in lines]

    def _erase(self) -> None:
        if self.drawn:
            print(f"\x1b[{self.drawn}A\x1b[J", end="")
            self.drawn = 0

    def close(self) -> None:
        self.drawn = 0

    def summary(self, records: list[dict[str, Any]], best: tuple[dict[str, Any], str]) -> None:
        from tune.search import finalists, ranking

        print("\n".join(table(ranking([r for r in records if r["kind"] == "trial"])[: self.ROWS])))
        for row in finalists(records):
            interval = "" if row["low"] is None else f" ({row['low']:.4g} to {row['high']:.4g})"
            print(f"finalist {row['name']}: mean KID {row['mean']:.4g}{interval} over {len(row['kids'])} fresh seeds")
        failed = [record for record in records if record["status"] == "failed"]
        for record in failed:
            print(self.line(record))
        print(f"winner: trial {best[0]['name']}, {best[1]}")
        if best[0].get("lineage"):
            print("  it took over weights: best.yaml has its last settings, and begins anew with them")
        for name, what in (
            ("best.yaml", "its config, for jobs/train.py --config"),
            (f"trials/{best[0]['run']}/generator/", "its generator, already trained"),
            ("results.parquet", "every trial with its config and figures"),
            ("report.html", "compare the trials; open it in a browser"),
        ):
            print(f"  {self.request.out}/{name:<15} {what}")
        print(f"next: python jobs/train.py --config {self.request.out}/best.yaml --data {self.request.data} --out RUN")


STATUSES = ("running", "waiting", "done", "stopped", "failed", "interrupted")
SHOWN = ("model.name", "loss.name", "optim.lr_g", "optim.lr_d", "loss.r1_gamma")


def table(records: list[dict[str, Any]]) -> list[str]:
    """Trials as lines of columns."""
    if not records:
        return []
    rows = [["trial", "KID", "images", "img/s", "status", *(key.rpartition(".")[2] for key in SHOWN)]]
    rows[0][5:7] = ["model", "loss"]
    for record in records:
        cells = [record["name"], f"{record['kid']:.4g}", f"{record['images_seen']:,}"]
        cells += [f"{record.get('images_per_s') or 0:.0f}", record["status"]]
        values = [record["settings"].get(key, "") for key in SHOWN]
        rows.append([*cells, *(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values)])
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


if __name__ == "__main__":
    sys.exit(command(main))
