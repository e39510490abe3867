"""The last of a data folder: its page, summary.html, and the manifest that makes it a data set."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader

from medgan.data.shards import Manifest, read_shard, shard_labels, shard_pixels, write_file
from medgan.pixels import encode_png, grid


def publish(
    out: str | Path,
    manifest: Manifest,
    files: Mapping[str, bytes] | None = None,
    *,
    reasons: Sequence[tuple[str, int]] = (),
    sizes: Sequence[tuple[int, int]] = (),
    notes: Sequence[str] = (),
) -> None:
    """Files beside the shards, the summary page, and last of all the manifest, without which DATA is no data.

    The page shows examples of the first split, why files were rejected, and sizes (width, height) before fitting.
    """
    template = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True).get_template("summary.html")
    pages = {name: base64.b64encode(encode_png(sheet)).decode() for name, sheet in examples(out, manifest).items()}
    sides = [sorted(values) for values in zip(*sizes, strict=True)]
    spread = [(values[0], values[len(values) // 2], values[-1]) for values in sides]
    page = template.render(manifest=manifest, grids=pages, reasons=reasons, spread=spread, notes=notes)
    texts = {"summary.html": page.encode(), "manifest.json": manifest.to_json().encode()}
    for name, content in {**(files or {}), **texts}.items():
        write_file(out, name, content)


def examples(out: str | Path, manifest: Manifest, count: int = 8) -> dict[str, np.ndarray]:
    """The first images of each class, and of those without any, in the first split that has images: a grid each."""
    wanted = [*manifest.classes, "no label"]
    found: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    split, listed = next(((name, shards) for name, shards in manifest.splits.items() if shards), ("", []))
    there = manifest.counts.get(split, {})
    for shard in listed:
        table = pq.read_table(pa.BufferReader(read_shard(out, shard)))
        pixels, labels = shard_pixels(table, manifest.shape), shard_labels(table, manifest.classes)
        hot = np.concatenate([labels, ~labels.any(1, keepdims=True)], 1)
        for index, name in enumerate(wanted):
            found[name] += list(pixels[np.flatnonzero(hot[:, index])[: count - len(found[name])]])
        # Images without a label are shown as far as they come along: where all have one, the search would never end.
        if all(len(found[name]) == min(count, there.get(name, count)) for name in manifest.classes or wanted):
            break
    return {
        name if manifest.classes else "images": grid(np.stack(images), columns=len(images))
        for name, images in found.items()
        if images
    }
