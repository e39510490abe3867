"""A run -> one HTML file that opens from disk: figures with floors, grids over time, curves, data, config."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader
from plotly.subplots import make_subplots

from medgan.data.shards import Manifest
from medgan.folder import RunFolder
from medgan.tracking import parse_rows

CURVES = (
    ("KID", ("metric/kid", "floor/kid"), True),
    ("FID", ("metric/fid", "floor/fid"), True),
    ("losses", ("loss/D", "loss/G"), False),
    ("logits", ("logits/real", "logits/fake"), False),
    ("images per second", ("time/images_per_s",), False),
    ("R1 penalty", ("penalty/r1",), False),
)
GRIDS = 8


def run_page(folder: RunFolder) -> str:
    """The page of a run as it stands. RUN must hold a run."""
    config = folder.config()
    assert config is not None
    rows = parse_rows(folder.read("metrics.jsonl").decode())
    evaluated = [row for row in rows if "metric/kid" in row]
    n = evaluated[-1]["metric/n"] if evaluated else 0
    # Figures of unlike n are not compared: what was evaluated under other settings stays out of the table.
    evaluated = [row for row in evaluated if row["metric/n"] == n]
    best: dict[str, Any] = min(
        [row for row in evaluated if row["images_seen"]], key=lambda row: row["metric/kid"], default={}
    )
    template = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True).get_template("report.html")
    classes = config.data.classes or ()
    return template.render(
        title=folder.location.rstrip("/").rpartition("/")[2],
        model=config.model.name,
        data=_data(folder, config.data.manifest_sha256),
        images_seen=rows[-1]["images_seen"] if rows else 0,
        total_images=config.total_images,
        figures=_figures(evaluated, best),
        identity=f"{config.evaluate.extractor} features, n = {n}, against val.",
        best_at=best.get("images_seen", 0),
        grids=_grids(folder),
        classes=classes if config.model.name != "dcgan" else (),
        curves=_curves(rows),
        config=folder.read("config.yaml").decode(),
    )


def _figures(evaluated: list[dict[str, Any]], best: dict[str, Any]) -> list[dict[str, Any]]:
    if not evaluated:
        return []
    return [
        {
            "name": name.upper(),
            "cells": [row.get(f"metric/{name}") for row in (evaluated[0], best, evaluated[-1])]
            + [evaluated[-1].get(f"floor/{name}")],
        }
        for name in ("kid", "fid")
    ]


def _grids(folder: RunFolder) -> list[dict[str, str]]:
    """At most GRIDS pictures, evenly over time, the first and the last among them."""
    names = [name for name in folder.names("samples") if re.fullmatch(r"\d+\.png", name)]
    if len(names) > GRIDS:
        names = [names[round(index * (len(names) - 1) / (GRIDS - 1))] for index in range(GRIDS)]
    return [
        {"kimg": str(int(name.split(".")[0])), "png": base64.b64encode(folder.read(f"samples/{name}")).decode()}
        for name in names
    ]


def _curves(rows: list[dict[str, Any]]) -> str:
    figure = make_subplots(rows=3, cols=2, subplot_titles=[title for title, _, _ in CURVES])
    for index, (_, keys, logarithmic) in enumerate(CURVES):
        place = {"row": index // 2 + 1, "col": index % 2 + 1}
        for key in keys:
            points = [(row["images_seen"], row[key]) for row in rows if key in row]
            if points:
                x, y = zip(*points, strict=True)
                dash = "dot" if key.startswith("floor/") else "solid"
                figure.add_trace(go.Scatter(x=x, y=y, name=key, mode="lines", line_dash=dash), **place)
        positive = [row[key] for row in rows for key in keys if key in row and row[key] > 0]
        if logarithmic and positive:
            figure.update_yaxes(type="log", dtick=1, **place)
    figure.update_xaxes(title_text="real images shown", row=3)
    figure.update_layout(height=900, template="plotly_white", margin={"l": 50, "r": 20, "t": 40, "b": 50})
    html: str = figure.to_html(full_html=False, include_plotlyjs="inline")
    return html


def _data(folder: RunFolder, sha256: str | None) -> dict[str, Any]:
    manifest = Manifest.from_json(folder.read("manifest.json").decode())
    return {
        "source": manifest.source,
        "resolution": manifest.resolution,
        "classes": manifest.classes,
        "sha256": sha256,
        "splits": {
            split: {
                "images": manifest.rows(split),
                "classes": manifest.counts.get(split, {}),
                "patients": manifest.patients.get(split, 0),
            }
            for split in manifest.splits
        },
    }
