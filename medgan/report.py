"""A run -> one HTML file that opens from disk: samples over time, figures with floors, curves, data, config."""

from __future__ import annotations

import base64
import html
from typing import Any
from urllib.parse import unquote

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from medgan import evaluation_page, page
from medgan.config import Config, to_yaml
from medgan.folder import MOST_PICTURE, SAMPLES, RunFolder
from medgan.metrics.fidelity import FIGURES
from medgan.names import one_line, part
from medgan.tracking import rows_of

GRIDS = 25


def run_page(folder: RunFolder) -> str:
    """The page of a run as it stands. RUN must hold a run."""
    config = folder.config()
    assert config is not None
    rows = rows_of(folder)
    images_seen = rows[-1]["images_seen"] if rows else 0
    evaluated = [row for row in rows if "metric/kid" in row]
    n = evaluated[-1]["metric/n"] if evaluated else 0
    # Figures of unlike n are not compared: what was evaluated under other settings stays out of the table.
    evaluated = [row for row in evaluated if row["metric/n"] == n]
    trained = [row for row in evaluated if row["images_seen"]]
    best: dict[str, Any] = min(trained, key=lambda row: row["metric/kid"], default={})
    if config.private and trained:  # the last is exported, whatever its figures
        best = trained[-1]
    return page.render(
        "report.html",
        title=folder.location.rstrip("/").rpartition("/")[2],
        versions=page.versions("medgan", "torch", "ray"),
        config=config,
        data=_data(folder, config.data.manifest_sha256),
        images_seen=images_seen,
        figures=_figures(evaluated, best),
        identity=f"{config.evaluate.extractor} features, n = {n}, against the val split",
        best_at=best.get("images_seen", 0),
        grids=_grids(folder, images_seen),
        real=_picture(folder, "samples/real.png") if folder.exists("samples/real.png") else None,
        classes=(config.data.classes or ()) if config.conditional else (),
        evaluation=evaluation_page.section(folder),
        curves=[{"title": title, "json": page.data(figure)} for title, figure in _curves(rows, config)],
        plotlyjs=get_plotlyjs(),
        settings=to_yaml(config),
    )


def _figures(evaluated: list[dict[str, Any]], best: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table: name, meaning, and the value untrained, best, last and real against real."""
    if not evaluated:
        return []
    last = evaluated[-1]
    of_classes = [name for name in last if name.startswith("metric/kid/")]
    shown = {f"metric/{key}": text for key, text in FIGURES.items()}
    shown |= {
        name: (f"KID, {one_line(unquote(name.removeprefix('metric/kid/')))}", "within the class") for name in of_classes
    }
    return [
        {
            "name": title,
            "meaning": meaning,
            "cells": [row.get(name) for row in (evaluated[0], best, last)]
            + [last.get(name.replace("metric/", "floor/"))],
        }
        for name, (title, meaning) in shown.items()
        if name in last
    ]


def _grids(folder: RunFolder, images_seen: int) -> list[dict[str, Any]]:
    """At most GRIDS pictures, evenly over time, the first and the last among them."""
    names = [name for name in folder.names("samples") if SAMPLES.fullmatch(name)]
    if len(names) > GRIDS:
        names = [names[round(index * (len(names) - 1) / (GRIDS - 1))] for index in range(GRIDS)]
    return [
        {"images_seen": min(1000 * int(name.split(".")[0]), images_seen), "png": _picture(folder, f"samples/{name}")}
        for name in names
    ]


def _picture(folder: RunFolder, name: str) -> str:
    return base64.b64encode(folder.read(name, MOST_PICTURE)).decode()


def _curves(rows: list[dict[str, Any]], config: Config) -> list[tuple[str, go.Figure]]:
    """One plot per title whose keys the rows have; a floor is dotted and named as one."""
    classes = config.data.classes or ()
    plots: tuple[tuple[str, tuple[str, ...], bool], ...] = (
        ("KID", ("metric/kid", "floor/kid"), True),
        ("KID by class", tuple(f"{kind}/kid/{part(name)}" for name in classes for kind in ("metric", "floor")), True),
        ("FID", ("metric/fid", "floor/fid"), True),
        ("precision, recall and coverage", ("metric/precision", "metric/recall", "metric/coverage"), False),
        ("losses", ("loss/D", "loss/G"), False),
        ("logits", ("logits/real", "logits/fake"), False),
        ("penalties", ("penalty/r1", "penalty/r2", "penalty/gp", "penalty/path"), False),
        ("what D knows by heart (0.5: nothing), how often images are changed", ("metric/overfit", "augment/p"), False),
        ("privacy spent: epsilon", ("privacy/epsilon",), False),
        ("images per second", ("time/images_per_s",), False),
    )
    made = []
    for title, keys, logarithmic in plots:
        figure = go.Figure()
        for key in keys:
            points = [(row["images_seen"], row[key]) for row in rows if key in row]
            if points:
                # The logarithm of an unbiased distance that is by chance below 0 does not exist.
                x, y = zip(*[(x, y if y > 0 or not logarithmic else None) for x, y in points], strict=True)
                floor = key.startswith("floor/")
                name = html.escape(unquote(key.split("/", 1)[1].removeprefix("kid/")))  # plotly takes tags
                below = f" ({points[-1][1]:.2g}: below this axis)" if all(value is None for value in y) else ""
                figure.add_scatter(
                    x=x,
                    y=y,
                    name=(f"{name}, real against real" if floor else name) + below,
                    mode="lines" if floor else "lines+markers",
                    opacity=0.6 if floor else 1,
                    line_dash="dot" if floor else "solid",
                    marker_size=4,
                )
        if figure.data:
            figure.update_layout(template="none", height=300, margin={"l": 55, "r": 10, "t": 50, "b": 40})
            figure.update_layout(
                legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"}, hovermode="x unified", showlegend=True
            )
            figure.update_xaxes(title_text="real images shown", hoverformat=",")
            figure.update_yaxes(hoverformat=".4~g", exponentformat="power")
            if logarithmic:
                figure.update_yaxes(type="log")
            made.append((title, figure))
    return made


def _data(folder: RunFolder, sha256: str | None) -> dict[str, Any]:
    manifest = folder.manifest()
    return {
        "source": manifest.source,
        "drawn": manifest.drawn,
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
