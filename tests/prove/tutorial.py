"""The yardstick: a DCGAN as tutorials write it, on the same images, with nothing of medgan's recipe.

    python -m tests.prove.tutorial --data DATA --out OUT --images 60000

float32, width 64, BatchNorm in both networks, binary cross-entropy, Adam 2e-4 with betas (0.5, 0.999), batch 64, no
averaging, no labels; the last weights draw the samples, in training mode (Radford et al. 2016, arXiv:1511.06434).
OUT/state.pt lets the same command go on; OUT/release is what jobs/evaluate.py --synthetic reads.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from medgan.data import shards, summary
from medgan.data.loader import open_split
from medgan.pixels import encode_png, grid, to_images, to_pixels
from medgan.terminal import Progress

BATCH, Z, WIDTH = 64, 100, 64


def channels(resolution: int) -> list[int]:
    """Of the hidden layers, from 4x4 up to half the resolution."""
    return [WIDTH * resolution // side for side in (8 << k for k in range(10)) if side <= resolution]


def generator(resolution: int, colours: int) -> nn.Sequential:
    widths = channels(resolution)
    layers: list[nn.Module] = [nn.ConvTranspose2d(Z, widths[0], 4, bias=False)]
    for here, after in pairwise([*widths, colours]):
        layers += [nn.BatchNorm2d(here), nn.ReLU(), nn.ConvTranspose2d(here, after, 4, 2, 1, bias=False)]
    return nn.Sequential(*layers, nn.Tanh())


def discriminator(resolution: int, colours: int) -> nn.Sequential:
    widths = channels(resolution)[::-1]
    layers: list[nn.Module] = [nn.Conv2d(colours, widths[0], 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
    for here, after in pairwise(widths):
        layers += [nn.Conv2d(here, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, bias=False), nn.Flatten(0))


def initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


class Tutorial:
    """Both networks, both optimizers, and how many images they have seen."""

    def __init__(self, data: str, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.images = to_images(torch.from_numpy(np.array(open_split(data, "train").pixels)))
        colours, resolution = self.images.shape[1:3]
        self.networks = generator(resolution, colours), discriminator(resolution, colours)
        for network in self.networks:
            network.apply(initialise)
        self.optimizers = [torch.optim.Adam(n.parameters(), 2e-4, betas=(0.5, 0.999)) for n in self.networks]
        self.images_seen = 0

    def step(self) -> None:
        (g, d), (adam_g, adam_d) = self.networks, self.optimizers
        bce = nn.BCEWithLogitsLoss()
        ones, zeros = torch.ones(BATCH), torch.zeros(BATCH)
        real = self.images[torch.randint(len(self.images), (BATCH,))]
        fake = g(torch.randn(BATCH, Z, 1, 1))
        adam_d.zero_grad()
        (bce(d(real), ones) + bce(d(fake.detach()), zeros)).backward()
        adam_d.step()
        adam_g.zero_grad()
        bce(d(fake), ones).backward()
        adam_g.step()
        self.images_seen += BATCH

    @torch.no_grad()
    def draw(self, count: int) -> np.ndarray:
        """uint8 (count, C, R, R)."""
        made = [to_pixels(self.networks[0](torch.randn(BATCH, Z, 1, 1))) for _ in range(-(-count // BATCH))]
        return torch.cat(made)[:count].numpy()

    def save(self, file: Path) -> None:
        parts = [part.state_dict() for part in (*self.networks, *self.optimizers)]
        shards.write_file(file.parent, file.name, _bytes({"parts": parts, "images_seen": self.images_seen}))

    def load(self, file: Path) -> None:
        saved = torch.load(file, weights_only=True)
        for part, state in zip((*self.networks, *self.optimizers), saved["parts"], strict=True):
            part.load_state_dict(state)
        self.images_seen = saved["images_seen"]
        torch.manual_seed(self.images_seen)


def _bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def train(data: str, out: Path, images: int, seed: int) -> float:
    """Train to that many images, in two threads; returns images per second of the steps since the last start."""
    torch.set_num_threads(2)
    tutorial, state, line = Tutorial(data, seed), out / "state.pt", Progress(every_s=30)
    if state.exists():
        tutorial.load(state)
    began, first = time.perf_counter(), tutorial.images_seen
    while tutorial.images_seen < images:
        tutorial.step()
        if tutorial.images_seen // 10_000 > (tutorial.images_seen - BATCH) // 10_000:
            tutorial.save(state)
        line.images("tutorial", tutorial.images_seen, images)
    line.close()
    speed = (tutorial.images_seen - first) / (time.perf_counter() - began)
    tutorial.save(state)
    torch.manual_seed(seed)
    release(tutorial.draw(2000), out)
    return speed


def release(pixels: np.ndarray, out: Path) -> None:
    """Samples as a folder that jobs/evaluate.py reads, and a grid of them."""
    folder = out / "release"
    shards.clear(folder)
    labels = np.zeros((len(pixels), 0), np.uint8)
    shard = shards.write_shard(folder, "train/00000.parquet", pixels, labels, (), {"seed": list(range(len(pixels)))})
    colours, resolution = pixels.shape[1:3]
    manifest = shards.Manifest("tutorial-dcgan", (), resolution, colours, {"train": [shard]}, synthetic=True)
    summary.publish(folder, manifest)
    (out / "samples.png").write_bytes(encode_png(grid(pixels[:16], 8)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--images", required=True, type=int)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    print(json.dumps({"images_per_s": train(args.data, args.out, args.images, args.seed)}))
