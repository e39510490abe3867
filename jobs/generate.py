"""Draw synthetic images from a run's best generator into a release: a data folder that can be handed over.

    python jobs/generate.py --run runs/demo --out synthetic --per-class 200 --png
    python jobs/generate.py --run RUN --out OUT --per-class 2000 --data DATA --confidence 0.8 --dicom

The folder has the layout of jobs/prepare.py's, with all rows in train/ and the seed of each image in a column, so
that any image can be drawn again. With --data, near-copies of the images that the generator was trained on are
dropped, and others drawn in their place. The same command gives the same images, on any number of workers, and goes on
where it was stopped.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from medgan.config import Refused
from medgan.data import shards
from medgan.keys import patient_key
from medgan.terminal import Failed, Parser, Progress, absolute, command


def parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--run", required=True, help="run folder of jobs/train.py, or its generator/: a path or a URI")
    parser.add_argument("--out", required=True, help="data folder to make: a path or a URI")
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--per-class", type=int, metavar="N", help="N images of every class")
    amount.add_argument("--count", type=int, metavar="N", help="N images, classes as frequent as in training")
    amount.add_argument(
        "--balance-to",
        metavar="DATA",
        help="what DATA's train split lacks of its rarer classes. Where nearly all of one class is synthetic and "
        "all of another real, a classifier learns which is which: --per-class, and half of every class, was better",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other images (default 0)")
    parser.add_argument(
        "--truncation",
        type=float,
        default=1.0,
        metavar="PSI",
        help="stylegan2-lite: below 1, samples are drawn towards the mean of their class: truer, but more alike",
    )
    parser.add_argument("--data", help="the data folder of the training: drop near-copies of its images")
    parser.add_argument(
        "--confidence",
        type=float,
        metavar="P",
        help="drop images to whose class a classifier of the real ones gives a probability below P; needs --data",
    )
    parser.add_patient_key("the seeds of images that were filtered by --data: the same key gives the same images")
    parser.add_argument("--overwrite", action="store_true", help="replace another data set that --out holds")
    parser.add_argument("--png", action="store_true", help="also write png/<class>/<row>.png")
    parser.add_argument("--dicom", action="store_true", help="also write dicom/<class>/<row>.dcm: secondary captures")
    parser.add_argument("--licence", default="other", help="for the card, such as cc-by-4.0 (default: other)")
    parser.add_argument("--workers", type=int, help="shards at once (default: all that fit); 0: here, without Ray")
    parser.add_use("a shard")
    parser.add_argument("--verbose", action="store_true", help="show Ray's own messages and tracebacks")
    return parser


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    run, out = absolute("--run", args.run), absolute("--out", args.out)
    key_file = absolute("--patient-key-file", args.patient_key_file) if args.patient_key_file else None
    if args.seed < 0:
        raise Refused(f"--seed {args.seed}: must be at least 0")
    for flag, wanted in (("--per-class", args.per_class), ("--count", args.count)):
        if wanted is not None and wanted < 1:
            raise Refused(f"{flag} {wanted}: must be at least 1")
    if not 0 <= args.truncation <= 1:
        raise Refused(f"--truncation {args.truncation}: must be between 0 and 1")
    if args.confidence is not None and not 0 < args.confidence < 1:
        raise Refused(f"--confidence {args.confidence}: must be between 0 and 1")
    if args.confidence is not None and not args.data:
        raise Refused("--confidence: needs --data, whose real images teach the classifier")
    if args.workers is not None and args.workers < 0:
        raise Refused(f"--workers {args.workers}: must be at least 0")

    from medgan import release
    from medgan.data import summary
    from medgan.folder import Folder
    from medgan.lease import Heartbeat
    from medgan.sample import Sampler

    sampler = Sampler.open(run)
    config, classes = sampler.config, sampler.classes
    if args.truncation != 1:
        sampler.truncate(args.truncation)
    if not classes and args.count is None:
        flag = "--balance-to" if args.balance_to else "--per-class"
        raise Refused(f"{flag}: the generator of {run} is unconditional; use --count")
    data = trained_on(args, config.data.manifest_sha256)
    if args.confidence is not None and not classes:
        raise Refused(f"--confidence: the generator of {run} is unconditional, its images have no class")
    amounts = amounts_of(args, classes)
    labels = sampler.labels(args.seed, amounts=amounts, count=args.count or 0)
    # Byte for byte what this was asked for; how many workers draw it is no part of that.
    key = patient_key(key_file) if data else None
    filters = [data["sha256"] if data else None, args.confidence, shards.fingerprint(key) if key else None]
    asked = [
        sampler.sha256,
        args.seed,
        amounts,
        args.count,
        args.truncation,
        args.png,
        args.dicom,
        *filters,
        args.licence,
    ]
    digest = hashlib.sha256(repr(asked).encode()).hexdigest()[:32]
    shards.check_target(out)
    if shards.prepared(out, digest, args.overwrite):
        print(f"complete: {out} holds these images")
        return
    with Heartbeat(Folder(out), lambda line: print(line, flush=True)):
        if not shards.begin(out, digest):
            shards.remove(out, "README.md")  # a card of other images, which may say of them that no leak was found

        common = {"run": run, "sha256": sampler.sha256, "out": out, "seed": args.seed, "truncation": args.truncation}
        cells = release.plan(
            labels, {**common, "request": digest, "png": args.png, "dicom": args.dicom}, data, args.confidence, key
        )
        drawn = draw(cells, f"{out}/{shards.PARTS}", args)
        found = [cell.load(f"{out}/{shards.PARTS}") for cell in cells]
        written = [shards.Shard(**part["shard"]) for part in found if part["shard"]]
        dropped = {name: sum(part[name] for part in found) for name in ("copies", "unsure", "empty")}
        if not written:
            raise Failed(f"nothing is left: {dropped['copies']} near-copies, {dropped['unsure']} of uncertain class")
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
            counts={"train": {name: sum(part["counts"][k] for part in found) for k, name in enumerate(classes)}},
            request=digest,
            versions=shards.versions(),
            mirror=bool(config.data.mirror),
            drawn=sampler.drawn,
            trained_on=config.data.manifest_sha256,
        )
        notes = told_of(dropped, data is not None, args.confidence)
        if amounts is not None and sampler.label_sets:
            notes.append("each image was asked for with one class alone; training images may have several, or none")
        lineage = [
            ("generator (SHA-256 of its weights)", f"`{sampler.sha256}`"),
            ("model, loss", f"{config.model.name}, {config.loss.name}"),
            ("trained on the data set of manifest SHA-256", f"`{config.data.manifest_sha256}`"),
            (f"{'drawn' if sampler.drawn else 'real'} images shown while training", f"{sampler.images_seen:,}"),
            ("seed, truncation", f"{args.seed}, {args.truncation:g}"),
            ("filters", "; ".join(notes)),
            ("request", f"`{digest}`"),
            ("made with", f"medgan {manifest.versions['medgan']}"),
        ]
        for before in sampler.begun_with:
            lineage.insert(
                3, ("begun with weights trained on manifest SHA-256", f"`{before}`; its images were not looked for")
            )
        if sampler.epsilon is not None:
            bound = f"epsilon {sampler.epsilon:.4g} at delta {config.privacy.dp.delta:.4g}, by patient"
            without = "; filtering by the training images is not covered" if data else ""
            without += "; nor is what the weights that it began with tell" if sampler.begun_with else ""
            lineage.insert(4, ("differential privacy of the generator", bound + without))
        card = release.card(manifest, lineage, source_of(run), args.licence, looked=data is not None)
        shards.remove(out, shards.PARTS)  # what was derived from real images on the way
        summary.publish(out, manifest, {"README.md": card.encode()}, notes=notes)
    for note in notes:
        print(f"note: {note}")
    rows = manifest.rows("train")
    print(f"synthetic: {out} ({rows:,} images{drawn}), card: {out}/README.md, summary: {out}/summary.html")


def trained_on(args: Any, sha256: str | None) -> dict[str, str] | None:
    """DATA of the filters, as plain types. Raises Refused where it is not what the generator was trained on."""
    if not args.data:
        return None
    location = absolute("--data", args.data)
    manifest, digest = shards.read_manifest(location)
    if digest != sha256:
        raise Refused(f"--data {location}: not what the generator was trained on (manifest SHA-256 {sha256})")
    if not manifest.rows("val") + manifest.rows("test"):
        raise Refused(f"--data {location}: has neither val nor test, whose patients say how alike films are by chance")
    return {"location": location, "sha256": digest}


def amounts_of(args: Any, classes: Sequence[str]) -> list[int] | None:
    """Images of each class; None where they come as frequent as in training. Raises Refused."""
    if args.per_class is not None:
        return [args.per_class] * len(classes)
    if not args.balance_to:
        return None
    location = absolute("--balance-to", args.balance_to)
    manifest, _ = shards.read_manifest(location, "--balance-to")
    counts = manifest.counts.get("train", {})
    if tuple(counts) != tuple(classes):
        raise Refused(f"--balance-to {location}: has the classes {', '.join(counts)}, not {', '.join(classes)}")
    missing = [max(counts.values()) - counts[name] for name in classes]
    if not any(missing):
        raise Refused(f"--balance-to {location}: all classes are equally frequent in it")
    return missing


def draw(wanted: Sequence[Any], parts: str, args: Any) -> str:
    """Compute the cells; says how fast, or nothing where all was there."""
    from medgan import cells

    todo = cells.missing(wanted, parts)
    line, began = Progress(every_s=5), time.monotonic()
    progress = cells.shown(line, "generate")
    left = sum(len(cell.arguments["labels"]) for cell in todo if "labels" in cell.arguments)

    try:
        if args.workers == 0:
            cells.run(wanted, parts, progress)
        elif todo:
            from medgan import ray_tasks
            from medgan.ray_connect import connect

            connect(args.verbose)
            began = time.monotonic()
            ray_tasks.run(wanted, parts, progress, args.workers, args.use)
    finally:
        line.close()
    return f", {left / (time.monotonic() - began):.0f} images/s" if left else ""


def told_of(dropped: dict[str, int], looked: bool, confidence: float | None) -> list[str]:
    """What the filters did, as lines."""
    if not looked:
        return ["near-copies of training images were not looked for: name the training's folder with --data"]
    notes = [
        f"{dropped['copies']} near-copies of training images dropped, as an audit finds them: it will find no others"
    ]
    if confidence is not None:
        notes.append(f"{dropped['unsure']} images dropped whose class was read with less than {confidence:g}")
    if dropped["empty"]:
        notes.append(f"{dropped['empty']} images are missing: no attempt passed")
    return notes


def source_of(run: str) -> str:
    """Name of the source that the run's data came from."""
    from medgan.folder import Folder

    try:
        return Folder(run).manifest().source
    except (OSError, Refused):
        return "unknown"


if __name__ == "__main__":
    sys.exit(command(main))
