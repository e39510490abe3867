"""Draw synthetic images from a run's best generator into a data folder.

    python jobs/generate.py --run runs/demo --out synthetic --per-class 200 --png

The folder has the layout of jobs/prepare.py's, with all rows in train/ and the seed of each image in a column, so
that any image can be drawn again. The same command gives the same images.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence

from medgan.config import Refused
from medgan.data import shards
from medgan.terminal import Parser, Progress, absolute, command

ROWS_PER_SHARD = 1024


def parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--run", required=True, help="run folder of jobs/train.py: a path or a URI")
    parser.add_argument("--out", required=True, help="data folder to make: a path or a URI")
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--per-class", type=int, metavar="N", help="N images of every class")
    amount.add_argument("--count", type=int, metavar="N", help="N images, classes as frequent as in training")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other images (default 0)")
    parser.add_argument(
        "--truncation",
        type=float,
        default=1.0,
        metavar="PSI",
        help="stylegan2-lite: below 1, samples are drawn towards the mean of their class: truer, but more alike",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace another data set that --out holds")
    parser.add_argument("--png", action="store_true", help="also write png/<class>/<row>.png")
    parser.add_argument("--verbose", action="store_true", help="show tracebacks")
    return parser


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    run, out = absolute("--run", args.run), absolute("--out", args.out)
    if args.seed < 0:
        raise Refused(f"--seed {args.seed}: must be at least 0")
    flag, wanted = ("--per-class", args.per_class) if args.per_class is not None else ("--count", args.count)
    if wanted < 1:
        raise Refused(f"{flag} {wanted}: must be at least 1")
    if not 0 <= args.truncation <= 1:
        raise Refused(f"--truncation {args.truncation}: must be between 0 and 1")

    from medgan.data import summary
    from medgan.pixels import encode_png
    from medgan.sample import Sampler

    sampler = Sampler.open(run)
    config, classes = sampler.config, sampler.classes
    if args.truncation != 1:
        sampler.truncate(args.truncation)
    if args.per_class is not None and not classes:
        raise Refused(f"--per-class {args.per_class}: the generator of {run} is unconditional; use --count")
    labels = sampler.labels(args.seed, per_class=args.per_class, count=args.count or 0)
    asked = f"{sampler.sha256} {args.seed} {flag} {wanted} {args.truncation} {args.png}"
    digest = hashlib.sha256(asked.encode()).hexdigest()[:32]
    shards.check_target(out)
    if shards.prepared(out, digest, args.overwrite):
        print(f"complete: {out} holds these {len(labels)} images")
        return

    shards.clear(out)
    line = Progress(every_s=5)
    written = []
    for number, first in enumerate(range(0, len(labels), ROWS_PER_SHARD)):
        some = labels[first : first + ROWS_PER_SHARD]
        pixels, seeds = sampler.draw(some, args.seed, first)
        written.append(shards.write_shard(out, f"train/{number:05d}.parquet", pixels, some, classes, {"seed": seeds}))
        if args.png:
            for index, (tile, label) in enumerate(zip(pixels, some, strict=True)):
                folder = classes[int(label.argmax())] if classes else "all"
                shards.write_file(out, f"png/{folder}/{first + index:06d}.png", encode_png(tile))
        line.images("generate", first + len(some), len(labels))
    line.close()
    assert config.data.resolution is not None
    assert config.data.channels is not None
    manifest = shards.Manifest(
        source=f"medgan {config.model.name}" + (f", truncation {args.truncation}" if args.truncation != 1 else ""),
        classes=classes,
        resolution=config.data.resolution,
        channels=config.data.channels,
        splits={"train": written},
        synthetic=True,
        seed=args.seed,
        counts={"train": shards.label_counts(labels, classes)},
        request=digest,
        versions=shards.versions(),
    )
    summary.publish(out, manifest)
    print(f"synthetic: {out} ({len(labels)} images), summary: {out}/summary.html")


if __name__ == "__main__":
    sys.exit(command(main))
