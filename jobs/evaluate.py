"""Final figures of a run's generator or of a finished release, against real images that training never saw.

    python jobs/evaluate.py --run runs/demo --data data/phantom_cxr
    python jobs/evaluate.py --synthetic OUT --data data/phantom_cxr --fidelity --out figures.json

Fidelity: KID and FID on the test split, each beside the floor that real training images reach against it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from medgan.config import Refused
from medgan.data import shards
from medgan.terminal import Parser, absolute, command

MOST = 2000


def parser() -> Parser:
    parser = Parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", help="run folder: its best generator draws the images")
    what.add_argument("--synthetic", help="data folder made by jobs/generate.py")
    parser.add_argument("--data", required=True, help="data folder with the real images")
    parser.add_argument(
        "--fidelity",
        action="store_true",
        help="KID, FID, precision, recall, coverage (the default)",
    )
    parser.add_argument("--split", default="test", choices=tuple(shards.SPLITS), help="real images to compare with")
    parser.add_argument("--n", type=int, default=MOST, help=f"at most so many images on each side (default {MOST:,})")
    parser.add_argument("--seed", type=int, default=0, help="seed of the images drawn from --run (default 0)")
    parser.add_argument("--out", help="file to write (default: RUN/evaluation.json, or evaluation.json in --synthetic)")
    parser.add_argument("--verbose", action="store_true", help="show tracebacks")
    return parser


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    subject = absolute("--run" if args.run else "--synthetic", args.run or args.synthetic)
    data = absolute("--data", args.data)
    out = absolute("--out", args.out) if args.out else f"{subject}/evaluation.json"
    if args.n < 16:
        raise Refused(f"--n {args.n}: must be at least 16")
    manifest, sha256 = shards.read_manifest(data)
    if not manifest.splits.get(args.split):
        raise Refused(f"--split {args.split}: {data} has none")
    other = "train" if args.split != "train" else "val"
    available = [manifest.rows(args.split), manifest.rows(other)]

    import torch

    from medgan.data.loader import open_split
    from medgan.distributed import World
    from medgan.metrics import features, fidelity

    pixels, labels = generated(args, subject, manifest, min(args.n, *available))
    n = min(args.n, len(pixels), *available)
    extractor = features.EfficientNetLite0("cuda" if torch.cuda.is_available() else "cpu")
    world = World()
    rows = {split: open_split(data, split) for split in (args.split, other)}
    real, control = (features.real_features(split, n, extractor, world) for split in rows.values())
    assert real is not None
    assert control is not None
    fake = extractor(torch.from_numpy(pixels[:n]))
    figures, floors = fidelity.fidelity(real, fake), fidelity.fidelity(real, control)
    result: dict[str, Any] = {
        "settings": {
            **fidelity.identity(extractor.identity, n, args.split),
            "manifest_sha256": sha256,
            "seed": args.seed,
            "floor_split": other,
        },
        "fidelity": {name: {"value": value, "n": n, "floor": floors[name]} for name, value in figures.items()},
    }
    result["fidelity"]["kid"] |= fidelity.kid(real, fake)
    if labels.shape[1]:
        hot = [torch.from_numpy(split.labels[features.choose_rows(len(split), n)]) for split in rows.values()]
        classes = manifest.classes
        by_class = fidelity.class_kid(real, hot[0], fake, torch.from_numpy(labels[:n]), classes)
        controls = fidelity.class_kid(real, hot[0], control, hot[1], classes)
        result["fidelity"]["classes"] = {
            name: {"kid": {**figure, "floor": controls.get(name, {}).get("value")}} for name, figure in by_class.items()
        }
    folder, _, name = out.rpartition("/")
    shards.write_file(folder, name, (json.dumps(result, indent=1) + "\n").encode())
    show(result["fidelity"], n, args.split)
    print(f"written: {out}")


def show(figures: dict[str, Any], n: int, split: str) -> None:
    """A table for people."""
    print(f"against {n} images of the {split} split{'':<11} real against real")
    for name, figure in figures.items():
        if name != "classes":
            print(f"  {name.upper() if len(name) == 3 else name:<20}{figure['value']:>12.4g}{figure['floor']:>12.4g}")
    for name, by_class in figures.get("classes", {}).items():
        floor = by_class["kid"]["floor"]
        beside = "" if floor is None else f"{floor:>12.4g}"
        print(f"  KID {name:<16}{by_class['kid']['value']:>12.4g}{beside}  (n {by_class['kid']['n']})")


def generated(
    args: argparse.Namespace, subject: str, manifest: shards.Manifest, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, C, R, R) with labels (N, K), N <= most: drawn with the class frequencies of training, or a release's.

    K is 0 where the images are of no class.
    """
    from medgan.data.loader import open_split
    from medgan.metrics.features import choose_rows
    from medgan.sample import Sampler

    if args.synthetic:
        release, _ = shards.read_manifest(subject, "--synthetic")
        if not release.synthetic:
            raise Refused(f"--synthetic {subject}: holds real images; name a folder made by jobs/generate.py")
        if release.shape != manifest.shape:
            raise Refused(f"--synthetic {subject}: images of shape {release.shape}, --data has {manifest.shape}")
        split = open_split(subject, "train")
        chosen = choose_rows(len(split), most)
        known = split.labels if release.classes == manifest.classes else split.labels[:, :0]
        return split.pixels[chosen], known[chosen]
    sampler = Sampler.open(subject)
    if (sampler.config.data.channels, sampler.config.data.resolution) != manifest.shape[:2]:
        raise Refused(
            f"--run {subject}: draws {sampler.config.data.resolution} pixels a side, --data has {manifest.shape}"
        )
    labels = sampler.labels(args.seed, count=most)
    return sampler.draw(labels, args.seed)[0], labels


if __name__ == "__main__":
    sys.exit(command(main))
