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
    parser.add_argument("--fidelity", action="store_true", help="KID and FID (the default)")
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

    pixels = generated(args, subject, manifest, min(args.n, *available))
    n = min(args.n, len(pixels), *available)
    extractor = features.EfficientNetLite0("cuda" if torch.cuda.is_available() else "cpu")
    world = World()
    real, control = (
        features.real_features(open_split(data, split), n, extractor, world) for split in (args.split, other)
    )
    assert real is not None
    assert control is not None
    fake = extractor(torch.from_numpy(pixels[:n]))
    result = {
        "settings": {
            **fidelity.identity(extractor.identity, n, args.split),
            "manifest_sha256": sha256,
            "seed": args.seed,
            "floor_split": other,
        },
        "fidelity": {
            "kid": {**fidelity.kid(real, fake), "n": n, "floor": fidelity.kid(real, control)["value"]},
            "fid": {"value": fidelity.fid(real, fake), "n": n, "floor": fidelity.fid(real, control)},
        },
    }
    folder, _, name = out.rpartition("/")
    shards.write_file(folder, name, (json.dumps(result, indent=1) + "\n").encode())
    for key in ("kid", "fid"):
        figure = result["fidelity"][key]
        beside = f"n {n}, {args.split} split; real against real {figure['floor']:.4g}"
        print(f"{key.upper()} {figure['value']:.4g}  ({beside})")
    print(f"written: {out}")


def generated(args: argparse.Namespace, subject: str, manifest: shards.Manifest, most: int) -> np.ndarray:
    """uint8 (N, C, R, R), N <= most: drawn from a run with the class frequencies of training, or from a release."""
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
        return split.pixels[choose_rows(len(split), most)]
    sampler = Sampler.open(subject)
    if (sampler.config.data.channels, sampler.config.data.resolution) != manifest.shape[:2]:
        raise Refused(
            f"--run {subject}: draws {sampler.config.data.resolution} pixels a side, --data has {manifest.shape}"
        )
    return sampler.draw(sampler.labels(args.seed, count=most), args.seed)[0]


if __name__ == "__main__":
    sys.exit(command(main))
