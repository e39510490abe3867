"""A search -> one HTML file that opens from disk: who won, trials side by side with their images, what mattered."""

from __future__ import annotations

import base64
import html
import io
import math
from typing import Any, get_args

import plotly.graph_objects as go
from PIL import Image
from plotly.offline import get_plotlyjs

from medgan import config as configs
from medgan import page
from medgan.config import Refused
from medgan.folder import MOST_PICTURE, SAMPLES, RunFolder, SearchFolder
from medgan.metrics.fidelity import FIGURES
from medgan.names import one_line
from medgan.schemas import Status

Record = dict[str, Any]
PICTURES = 800_000
"""Bytes of sample pictures on a page, so that it stays under 6 MB with the plot library's 4.8."""
LARGEST = 2**24
"""Pixels of a picture, beyond any grid that a run makes."""
PICTURED = 100
"""How many of the best trials have a picture: with more, each would have too few bytes to show anything."""
SAME_FOR_ALL = ("seed", "total_images", "precision", "evaluate.", "checkpoint.", "tracking.", "data.")
AXES = 10
"""Most settings that the parallel coordinates show."""
COLOURS = ("#1b87ab", "#e07b39", "#3d9970", "#b0529e", "#8c7a2b", "#5b6ee1")


def search_page(folder: SearchFolder, refresh_s: int = 0) -> str:
    """The page of a search as it stands. refresh_s: the page asks for itself again after so many seconds; 0: never."""
    records = folder.trials()
    settings = folder.settings()
    assert settings is not None
    summary = folder.summary()
    trials = [record for record in records if record["kind"] == "trial"]
    known = [record for record in trials if record.get("kid") is not None and record["status"] != "failed"]
    ranked = sorted(known, key=lambda record: (record["status"] == "stopped", record["kid"]))
    rest = [record for record in trials if record not in known]
    configured = {record["name"]: _settings(folder, record) for record in trials}
    varying = _varying(list(configured.values()))
    front = pareto(ranked)
    groups = {record["name"]: _group(record) for record in trials}
    colour = {group: COLOURS[index % len(COLOURS)] for index, group in enumerate(sorted(set(groups.values())))}
    curves = [
        ("KID over real images shown, by architecture", _kid_curves(ranked, groups, colour)),
        (
            "KID beside speed: the front is what nothing beats in both",
            _front(ranked, front, groups, colour, "images_per_s"),
        ),
        ("KID beside coverage", _front(ranked, pareto(ranked, "coverage"), groups, colour, "coverage")),
    ]
    if summary.get("importance"):
        curves.append(("What mattered, of the choices that every trial has", _importance(summary["importance"])))
    if summary.get("finalists"):
        curves.append(("Finalists over fresh seeds, 95 % intervals", _finalists(summary["finalists"])))
    return page.render(
        "search.html",
        title=folder.location.rstrip("/").rpartition("/")[2],
        pictured=PICTURED,
        refresh_s=refresh_s,
        search=settings["search"],
        command=settings.get("command", ""),
        sha256=settings["manifest_sha256"],
        versions=settings.get("versions", {}),
        summary=summary,
        counts={status: sum(r["status"] == status for r in trials) for status in STATUSES},
        figures=("kid", "fid", "precision", "recall", "coverage"),
        names=FIGURES,
        floor=next((record["floor"] for record in ranked if record.get("floor") is not None), None),
        rows=[*ranked, *rest],
        configured=configured,
        varying=varying,
        front={record["name"] for record in front},
        images_seen=sum(record["images_seen"] for record in records),
        n=_n(folder, ranked),
        axes=_axes(ranked, configured, varying, summary.get("importance", {})),
        pictures=_pictures(folder, ranked),
        classes=next((c for r in ranked if (c := _classes(folder.run(r)))), ()),
        curves=[{"title": title, "json": page.data(figure)} for title, figure in curves if figure.data],
        best=_text(folder, "best.yaml"),
        plotlyjs=get_plotlyjs(),
    )


STATUSES = get_args(Status)


def _text(folder: SearchFolder, name: str) -> str:
    text = folder.read(name).decode(errors="replace") if name in folder.names() else ""
    return "\n".join(map(one_line, text.split("\n")))


def _settings(folder: SearchFolder, record: Record) -> dict[str, Any]:
    """A trial's whole config, dotted; what is known of it where it has not begun."""
    run = folder.run(record)
    if not run.exists("config.yaml"):
        return dict(record["settings"])
    return configs.flatten(configs.parse_yaml(run.read("config.yaml"), run.location))


def _varying(configured: list[dict[str, Any]]) -> list[str]:
    """Settings in which trials differ, those that all trials have first."""
    keys = {key: None for settings in configured for key in settings if not key.startswith(SAME_FOR_ALL)}
    keys |= {"data.balance": None} if any("data.balance" in settings for settings in configured) else {}
    unlike = [key for key in keys if len({str(s[key]) for s in configured if key in s}) > 1]
    return sorted(unlike, key=lambda key: (_lead(key), sum(key not in s for s in configured), key))


def _lead(key: str) -> int:
    """Architecture and loss come first."""
    return {"model.name": 0, "loss.name": 1}.get(key, 2)


def _group(record: Record) -> str:
    return html.escape(str(record["settings"].get("model.name", "?")))  # plotly takes tags


def pareto(records: list[Record], other: str = "images_per_s") -> list[Record]:
    """Trials that no other one beats in both KID (smaller) and `other` (larger)."""
    known = [record for record in records if record.get("kid") is not None and record.get(other) is not None]

    def beaten(record: Record) -> bool:
        return any(
            r["kid"] <= record["kid"]
            and r[other] >= record[other]
            and (r["kid"], r[other]) != (record["kid"], record[other])
            for r in known
        )

    return sorted((record for record in known if not beaten(record)), key=lambda record: record["kid"])


def _n(folder: SearchFolder, ranked: list[Record]) -> int | None:
    """Generated images behind each figure."""
    for record in ranked:
        config = folder.run(record).config()
        if config is not None:
            return config.evaluate.n
    return None


def _classes(run: RunFolder) -> tuple[str, ...]:
    config = run.config() if run.exists("config.yaml") else None
    return tuple(config.data.classes or ()) if config is not None and config.conditional else ()


# -- pictures ----------------------------------------------------------------------------------------------------------


def _pictures(folder: SearchFolder, ranked: list[Record]) -> dict[str, str]:
    """Samples of the best trials, as data URIs that together stay within PICTURES."""
    chosen = ranked[:PICTURED]
    return {record["name"]: uri for record in chosen if (uri := _picture(folder.run(record), PICTURES // len(chosen)))}


def _picture(run: RunFolder, most: int) -> str:
    """The best generator's samples, or the newest; as PNG where it fits into so many bytes, else as smaller WebP.

    Raises Refused where the file is no PNG.
    """
    if "samples.png" in run.names("generator"):
        name = "generator/samples.png"
    elif names := [name for name in run.names("samples") if SAMPLES.fullmatch(name)]:
        name = f"samples/{names[-1]}"
    else:
        return ""
    png = run.read(name, MOST_PICTURE)
    try:
        return _fitting(png, most)
    except Exception:  # Pillow's are of many kinds
        raise Refused(f"{run.location}/{name}: is no PNG; remove it") from None


def _fitting(png: bytes, most: int) -> str:
    """A PNG as a data URI of so many bytes, smaller as WebP where it has more; empty where it is far too large."""
    image: Image.Image = Image.open(io.BytesIO(png), formats=["PNG"])  # of others some call other programs
    if len(png) * 4 / 3 <= most:
        return "data:image/png;base64," + base64.b64encode(png).decode()
    if image.width * image.height > LARGEST:
        return ""
    while True:
        for quality in (90, 75, 60):
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", quality=quality, method=2)
            if len(buffer.getvalue()) * 4 / 3 <= most or image.width < 64:
                return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
        image = image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.LANCZOS)


# -- parallel coordinates ----------------------------------------------------------------------------------------------


def _axes(
    ranked: list[Record], configured: dict[str, dict[str, Any]], varying: list[str], importance: dict[str, float]
) -> list[dict[str, Any]]:
    """An axis per setting in which trials differ, the most important first, and KID last: where each trial lies on it.

    Positions are from 0 to 1; a trial that has no such setting lies on no point of the axis.
    """
    keys = sorted(varying, key=lambda key: (_lead(key), -importance.get(key, 0.0), varying.index(key)))[:AXES]
    values = {key: {r["name"]: configured[r["name"]].get(key) for r in ranked} for key in keys}
    for key in keys:
        if key.endswith("_gamma"):  # off: a logarithm has no place for 0
            values[key] = {name: value or None for name, value in values[key].items()}
    values["KID"] = {record["name"]: record["kid"] for record in ranked}
    return [axis for key, column in values.items() if (axis := _axis(key, column))]


def _axis(key: str, column: dict[str, Any]) -> dict[str, Any] | None:
    known = {name: value for name, value in column.items() if value is not None}
    distinct = sorted(set(known.values()), key=lambda v: (isinstance(v, str), v))
    if not distinct:
        return None
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in distinct)
    if numeric and (key == "KID" or len(distinct) > 6 or any(len(str(value)) > 6 for value in distinct)):
        low, high = distinct[0], distinct[-1]
        logarithmic = low > 0 and high > 10 * low

        def place(value: float) -> float:
            if high == low:
                return 0.5
            if logarithmic:
                return math.log(value / low) / math.log(high / low)
            return (value - low) / (high - low)

        middle = math.sqrt(low * high) if logarithmic else (low + high) / 2
        ticks = [[place(v), f"{v:.3g}"] for v in (low, middle, high)]
        points = {name: place(value) for name, value in known.items()}
        return {
            **{"key": key, "kind": "range", "ticks": ticks, "points": points},
            **{"low": low, "high": high, "log": logarithmic},
        }
    words = [str(value) for value in distinct]
    spread = {word: index / (len(words) - 1) if len(words) > 1 else 0.5 for index, word in enumerate(words)}
    points = {name: spread[str(value)] for name, value in known.items()}
    return {"key": key, "kind": "choice", "ticks": [[place, word] for word, place in spread.items()], "points": points}


# -- plots -------------------------------------------------------------------------------------------------------------


def _layout(figure: go.Figure, x: str, y: str, logarithmic: bool = True) -> go.Figure:
    figure.update_layout(template="none", height=340, margin={"l": 60, "r": 10, "t": 50, "b": 45})
    figure.update_layout(legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"}, hovermode="closest")
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=y, type="log" if logarithmic else None)
    return figure


def _kid_curves(ranked: list[Record], groups: dict[str, str], colour: dict[str, str]) -> go.Figure:
    figure = go.Figure()
    shown: set[str] = set()
    for record in ranked:
        points = [(point[0], point[1]) for point in record["history"] if point[1] and point[1] > 0]
        if points:
            x, y = zip(*points, strict=True)
            group = groups[record["name"]]
            figure.add_scatter(
                **{"x": x, "y": y, "name": group, "legendgroup": group, "showlegend": group not in shown},
                **{"mode": "lines+markers", "marker_size": 4, "line_width": 1.5, "line_color": colour[group]},
                hovertemplate=f"trial {record['name']}<br>%{{x:,}} images<br>KID %{{y:.4g}}<extra></extra>",
            )
            shown.add(group)
    return _layout(figure, "real images shown", "best KID so far")


def _front(
    ranked: list[Record], front: list[Record], groups: dict[str, str], colour: dict[str, str], other: str
) -> go.Figure:
    figure = go.Figure()
    for group in sorted({groups[record["name"]] for record in ranked}):
        mine = [r for r in ranked if groups[r["name"]] == group and r.get(other) is not None and r["kid"] > 0]
        if mine:
            figure.add_scatter(
                x=[record[other] for record in mine],
                y=[record["kid"] for record in mine],
                **{"mode": "markers", "name": group, "marker_color": colour[group]},
                text=[record["name"] for record in mine],
                hovertemplate="trial %{text}<br>%{x:.4g}, KID %{y:.4g}<extra></extra>",
            )
    if figure.data and len(front) > 1:
        figure.add_scatter(
            x=[record[other] for record in front],
            y=[record["kid"] for record in front],
            **{"mode": "lines", "name": "front", "line_dash": "dot", "line_color": "#888"},
            hoverinfo="skip",
        )
    return _layout(figure, {"images_per_s": "images per second"}.get(other, other), "KID")


def _importance(importance: dict[str, float]) -> go.Figure:
    figure = go.Figure()
    items = sorted(importance.items(), key=lambda item: item[1])[-12:]
    figure.add_bar(
        x=[value for _, value in items],
        y=[html.escape(key) for key, _ in items],
        orientation="h",
        marker_color=COLOURS[0],
    )
    _layout(figure, "importance for the best quarter (PED-ANOVA)", "", logarithmic=False)
    return figure.update_layout(margin={"l": 190, "r": 10, "t": 20, "b": 45})


def _finalists(finalists: list[dict[str, Any]]) -> go.Figure:
    figure = go.Figure()
    for index, row in enumerate(finalists):
        error = None if row["low"] is None else {"type": "data", "array": [row["high"] - row["mean"]], "thickness": 2}
        figure.add_scatter(
            x=[row["mean"]],
            y=[f"trial {row['name']}"],
            error_x=error,
            **{"mode": "markers", "marker_size": 11, "name": "mean", "showlegend": index == 0},
            marker_color=COLOURS[0],
        )
        figure.add_scatter(
            x=row["kids"],
            y=[f"trial {row['name']}"] * len(row["kids"]),
            **{"mode": "markers", "marker_symbol": "line-ns-open", "marker_size": 12},
            **{"name": "one seed", "showlegend": index == 0, "marker_color": COLOURS[1]},
        )
    _layout(figure, "KID", "", logarithmic=False)
    return figure.update_layout(margin={"l": 90, "r": 10, "t": 40, "b": 45})
