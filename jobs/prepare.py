r"""Raw images -> sharded Parquet with a manifest, split by patient.

    python jobs/prepare.py --source phantom_cxr --out data/phantom_cxr --resolution 32
    python jobs/prepare.py --source kermany_cxr --raw chest_xray --out data/kermany64 --resolution 64
    python jobs/prepare.py --source image_folder --raw scans --patient-regex "p(\d+)" --out data/scans --resolution 128
    python jobs/prepare.py --sources
    python jobs/prepare.py --verify data/kermany64

Running the same command again does nothing where the folder is complete, and starts over where it is not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from medgan.config import RESOLUTIONS, Refused
from medgan.data.shards import patient_key, prepared, problems, read_manifest
from medgan.data.sources import SOURCES, Options
from medgan.terminal import Failed, Parser, Progress, absolute, command

SHOWN = 20


def parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--source", help=f"data set: {', '.join(SOURCES)}")
    parser.add_argument("--sources", action="store_true", help="print what each source expects and takes, and end")
    parser.add_argument("--verify", metavar="DATA", help="check a data folder, say what is wrong with it, and end")
    parser.add_argument("--raw", help="folder of the data set as published, a path or a URI; drawn sources have none")
    parser.add_argument("--out", help="data folder to make: a path or a URI")
    parser.add_argument("--resolution", type=int, help=f"side in pixels: {_list(RESOLUTIONS)}")
    parser.add_argument("--channels", type=int, default=1, choices=(1, 3), help="1 grey (default), 3 colour")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split and of drawn images (default 0)")
    parser.add_argument("--fit", default="crop", choices=("crop", "pad", "squash"), help="how films become square")
    parser.add_argument("--limit", type=int, help="use this many images (drawn sources: draw as many)")
    parser.add_argument("--split", choices=("ratio", "published"), help="by patient 80/10/10, or as published")
    parser.add_argument("--classes", metavar="A,B,...", help="keep these classes, in this order")
    parser.add_argument("--single-label", action="store_true", help="keep images of exactly one of the classes")
    parser.add_argument("--pneumonia-kinds", action="store_true", help="bacterial and viral pneumonia apart")
    parser.add_argument("--patient-regex", metavar="REGEX", help="what in a file's path names its patient")
    parser.add_argument("--overwrite", action="store_true", help="replace another data set that --out holds")
    parser.add_argument(
        "--patient-key-file",
        help="key of the patient and image ids (default ~/.config/medgan/patient.key, made if need be)",
    )
    parser.add_argument("--verbose", action="store_true", help="show Ray's own messages and tracebacks")
    return parser


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    if args.sources:
        for source in SOURCES.values():
            takes = "".join(f" --{name.replace('_', '-')}" for name in sorted(source.takes))
            print(f"{source.name:<14}{source.layout}{f'  ({takes.strip()})' if takes else ''}")
        return
    if args.verify:
        verify(absolute("--verify", args.verify))
        return
    for flag in ("source", "out", "resolution"):
        if getattr(args, flag) is None:
            raise Refused(f"--{flag} is missing; --help shows an example")
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
    raw = absolute("--raw", args.raw) if args.raw else None
    options = Options(
        seed=args.seed,
        limit=args.limit,
        classes=tuple(args.classes.split(",")) if args.classes else (),
        single_label=args.single_label,
        pneumonia_kinds=args.pneumonia_kinds,
        patient_regex=args.patient_regex,
    )
    for name in ("classes", "single_label", "pneumonia_kinds", "patient_regex"):
        if getattr(options, name) and name not in SOURCES[args.source].takes:
            flag = f"--{name.replace('_', '-')}"
            raise Refused(f"{flag}: means nothing to --source {args.source}; --sources shows what does")

    from medgan.data import ingest
    from medgan.ray_train import connect

    request = ingest.Request(args.source, raw, out, args.resolution, args.channels, options, args.fit, args.split)
    found = ingest.find(request)
    plan = ingest.plan(request, found, patient_key(key_file))  # the first thing that may write: a new key
    for note in plan.notes:
        print(f"note: {note}", flush=True)
    manifest = prepared(out, plan.digest, args.overwrite)
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


def verify(data: str) -> None:
    wrong = problems(data)
    if wrong:
        for line in wrong:
            print(line, flush=True)
        raise Failed(f"--verify {data}: {len(wrong)} thing{'s' * (len(wrong) > 1)} wrong; prepare the folder again")
    manifest, _ = read_manifest(data)
    counts = ", ".join(f"{split} {manifest.rows(split)}" for split in manifest.splits)
    print(f"sound: {data} ({counts}; {sum(map(len, manifest.splits.values()))} shards)")


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


if __name__ == "__main__":
    sys.exit(command(main))
