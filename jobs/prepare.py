"""Raw images -> sharded Parquet with a manifest, split by patient.

    python jobs/prepare.py --source phantom_cxr --out data/phantom_cxr --resolution 32
    python jobs/prepare.py --source kermany_cxr --raw chest_xray --out data/kermany64 --resolution 64

Running the same command again does nothing where the folder is complete, and starts over where it is not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from medgan.config import RESOLUTIONS, Refused
from medgan.data.shards import patient_key, prepared
from medgan.data.sources import SOURCES
from medgan.terminal import Parser, Progress, absolute, command

SHOWN = 20


def parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--source", required=True, help=f"data set: {', '.join(SOURCES)}")
    parser.add_argument("--raw", help="folder of the data set as published; drawn sources have none")
    parser.add_argument("--out", required=True, help="data folder to make: a path or a URI")
    parser.add_argument("--resolution", required=True, type=int, help=f"side in pixels: {_list(RESOLUTIONS)}")
    parser.add_argument("--channels", type=int, default=1, choices=(1, 3), help="1 grey (default), 3 colour")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split and of drawn images (default 0)")
    parser.add_argument("--fit", default="crop", choices=("crop", "pad", "squash"), help="how films become square")
    parser.add_argument("--limit", type=int, help="use this many images (drawn sources: draw as many)")
    parser.add_argument(
        "--patient-key-file",
        help="key of the patient and image ids (default ~/.config/medgan/patient.key, made if need be)",
    )
    parser.add_argument("--verbose", action="store_true", help="show Ray's own messages and tracebacks")
    return parser


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    if args.source not in SOURCES:
        raise Refused(f"--source {args.source}: unknown, choose one of {', '.join(SOURCES)}")
    if args.resolution not in RESOLUTIONS:
        raise Refused(f"--resolution {args.resolution}: must be a power of two, one of {_list(RESOLUTIONS)}")
    if args.limit is not None and args.limit < 1:
        raise Refused(f"--limit {args.limit}: must be at least 1")
    if args.seed < 0:
        raise Refused(f"--seed {args.seed}: must be at least 0")
    out = absolute("--out", args.out)
    key_file = absolute("--patient-key-file", args.patient_key_file) if args.patient_key_file else None
    raw = Path(absolute("--raw", args.raw)) if args.raw else None

    from medgan.data import ingest
    from medgan.ray_train import connect

    request = ingest.Request(args.source, raw, out, args.resolution, args.channels, args.seed, args.fit, args.limit)
    found = ingest.find(request)
    plan = ingest.plan(request, found, patient_key(key_file))  # the first thing that may write: a new key
    manifest = prepared(out, plan.digest)
    if manifest is None:
        connect(verbose=args.verbose)
        line = Progress(every_s=5)
        bad: list[dict[str, str]] = []

        def progress(done: int, rejected: list[dict[str, str]]) -> None:
            bad[:] = rejected
            line.images("prepare", done, plan.count, f"{len(rejected)} rejected")

        print(f"preparing {plan.count} images of {args.source} at {args.resolution}x{args.resolution}", flush=True)
        manifest = ingest.write(plan, progress)
        line.close()
        for row in bad[:SHOWN]:
            print(f"rejected: {row['name']}: {row['reason']}", flush=True)
        if len(bad) > SHOWN:
            print(f"rejected: and {len(bad) - SHOWN} more", flush=True)
    counts = ", ".join(f"{split} {manifest.rows(split)}" for split in manifest.splits)
    print(f"data: {out} ({counts}; {manifest.rejected} rejected), summary: {out}/summary.html", flush=True)


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


if __name__ == "__main__":
    sys.exit(command(main))
