r"""Raw images -> sharded Parquet with a manifest, split by patient.

    python jobs/prepare.py --source phantom_cxr --out data/phantom_cxr --resolution 32
    python jobs/prepare.py --source kermany_cxr --raw chest_xray --out data/kermany64 --resolution 64
    python jobs/prepare.py --source image_folder --raw scans --patient-regex "p(\d+)" --out data/scans --resolution 128
    python jobs/prepare.py --source dicom_folder --raw archive --labels labels.csv --out data/dicom --resolution 256
    python jobs/prepare.py --sources
    python jobs/prepare.py --verify data/kermany64

Running the same command again does nothing where the folder is complete, and goes on where it is not.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from medgan.config import RESOLUTIONS, Refused
from medgan.data.limits import MOST_PIXELS
from medgan.data.shards import prepared, problems, read_manifest, told
from medgan.data.sources import SOURCES, Options
from medgan.keys import patient_key
from medgan.terminal import Failed, Parser, Progress, absolute, again, command, submitted

SHOWN = 20
OPTIONS = {option.name: option for option in fields(Options)}


def parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--source", help=f"data set: {', '.join(SOURCES)}")
    parser.add_argument("--sources", action="store_true", help="print what each source expects and takes, and end")
    parser.add_argument("--verify", metavar="DATA", help="check a data folder, say what is wrong with it, and end")
    parser.add_argument(
        "--raw", help="the data set as published: its folder or archive (.zip, .tar, .tar.gz), a path or a URI"
    )
    parser.add_argument("--out", help="data folder to make: a path or a URI")
    parser.add_argument("--resolution", type=int, help=f"side in pixels: {_list(RESOLUTIONS)}")
    parser.add_argument("--channels", type=int, default=1, choices=(1, 3), help="1 grey (default), 3 colour")
    parser.add_argument("--fit", default="crop", choices=("crop", "pad", "squash"), help="how films become square")
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=MOST_PIXELS,
        help=f"leave out images of more pixels, those of each channel counted (default {MOST_PIXELS:,})",
    )
    parser.add_argument("--split", choices=("ratio", "published"), help="by patient 80/10/10, or as published")
    parser.add_argument("--download", metavar="NAME", help="fetch a MedMNIST set by name, such as pneumoniamnist_64")
    for name, option in OPTIONS.items():
        kind: dict[str, Any] = {"action": "store_true"} if option.default is False else {"default": option.default}
        if name in ("seed", "limit"):
            kind["type"] = int
        elif option.default is not False:
            kind["metavar"] = option.metadata["metavar"]
        parser.add_argument(_flag(name), help=option.metadata["help"], **kind)
    parser.add_argument("--keep-paths", action="store_true", help="name files by their paths, also in rejected.parquet")
    parser.add_argument("--overwrite", action="store_true", help="replace another data set that --out holds")
    parser.add_patient_key("the patient and image ids")
    parser.add_argument("--verbose", action="store_true", help="show Ray's own messages and tracebacks")
    return parser


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    if args.sources:
        for source in SOURCES.values():
            takes = " ".join(_flag(name) for name in sorted(source.takes))
            print(f"{source.name:<14}{source.layout}{f'  ({takes})' if takes else ''}")
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
    if args.max_pixels < 1:
        raise Refused(f"--max-pixels {args.max_pixels}: must be at least 1")
    if args.seed < 0:
        raise Refused(f"--seed {args.seed}: must be at least 0")
    out = absolute("--out", args.out)
    key_file = absolute("--patient-key-file", args.patient_key_file) if args.patient_key_file else None
    raw = absolute("--raw", args.raw) if args.raw else None
    given = {name: getattr(args, name) for name in OPTIONS}
    for name, value in given.items():
        if isinstance(OPTIONS[name].default, tuple) and value:
            given[name] = tuple(part.strip().replace("\\,", ",") for part in re.split(r"(?<!\\),", value))
        if value and name not in SOURCES[args.source].takes | {"seed", "limit"}:
            raise Refused(f"{_flag(name)}: means nothing to --source {args.source}; --sources shows what does")
    if args.labels:
        given["labels"] = absolute("--labels", args.labels)
    options = Options(**given)
    if args.download and raw:
        raise Refused(f"--download {args.download}: leave --raw out")

    from medgan.data import ingest
    from medgan.folder import Folder
    from medgan.lease import Heartbeat
    from medgan.ray_connect import cluster_address, connect, hosts

    if args.download:
        raw = SOURCES[args.source].fetch(args.download)
    if cluster_address() != "local" and not key_file:
        connect(verbose=args.verbose)
        if (count := hosts()) > 1:
            raise Refused(
                f"--patient-key-file: needed on a cluster of {count} hosts, where the default file may be another "
                "one each time; name a file that the jobs' hosts share"
            )
    show_paths = args.keep_paths or (sys.stdout.isatty() and not submitted())
    request = ingest.Request(
        *(args.source, raw, out, args.resolution, args.channels, options, args.fit, args.split),
        max_pixels=args.max_pixels,
        keep_paths=args.keep_paths,
        show_paths=show_paths,
    )
    found = ingest.find(request)
    for line in ingest.tally(found):
        print(line, flush=True)
    plan = ingest.plan(request, found, patient_key(key_file))  # the first thing that may write: a new key
    for note in [*plan.notes, *(request.folder.notes() if raw else [])]:
        print(f"note: {note}", flush=True)
    manifest = prepared(out, plan.digest, args.overwrite)
    if manifest is None:
        shown = Progress(every_s=5)

        def progress(verb: str, done: int, of: int, rejected: int) -> None:
            if verb == "kept":
                shown.skip(done)
            elif verb == "prepare":
                shown.images(verb, done, of, f"{rejected} rejected")
            else:
                shown.update(f"{verb} {done}/{of} shards")

        print(f"preparing {plan.count} images of {args.source} at {args.resolution}x{args.resolution}", flush=True)
        try:
            with Heartbeat(Folder(out), shown.say):
                connect(verbose=args.verbose)
                written = ingest.write(plan, progress)
        except OSError as error:
            why = told(error, " ".join(str(error).split()))
            raise Failed(f"--out {out}: {why}; finished shards are kept: {again()}") from error
        finally:
            shown.close()
        manifest = written.manifest
        for note in written.notes[len(plan.notes) :]:
            print(f"note: {note}", flush=True)
        reasons = Counter(row.reason for row in written.rejected)
        for reason, count in reasons.most_common():
            print(f"left out, {count} of these: {reason}", flush=True)
        for row in written.rejected[:SHOWN]:
            print(f"left out: {plan.called(row.name)}: {row.reason}", flush=True)
        if len(written.rejected) > SHOWN:
            print(f"left out: and {len(written.rejected) - SHOWN} more, see rejected.parquet", flush=True)
    if raw:
        request.folder.forget()
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


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


if __name__ == "__main__":
    sys.exit(command(main))
