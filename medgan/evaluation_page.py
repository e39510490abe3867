"""evaluation.json -> its section of a run's page, or the page of a release: three answers, their tables, and intervals
as pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from jinja2 import UndefinedError
from markupsafe import Markup

from medgan import page
from medgan.config import Refused
from medgan.folder import Folder, RunFolder
from medgan.metrics.classifiers import SCORES
from medgan.metrics.fidelity import FIGURES, shifted, told_figure
from medgan.names import one_line
from medgan.schemas import Evaluation

Interval = tuple[str, float, float | None, float | None]
"""(name, value, low, high)"""
SHOWN = ("macro_f1", "auc", "rare_sensitivity")
"""Scores whose differences are drawn."""


OUTDATED = Markup(
    '<p class="soft" id="outdated">evaluation.json is of an earlier generator of this run: the same command of '
    "jobs/evaluate.py judges the present one.</p>"
)
SEEN = {
    "test": "which training never saw",
    "val": "which was not trained on, but by which the best generator was chosen",
    "train": "which was trained on, and which the reader of classes has seen too",
}


def release_page(folder: Folder) -> str:
    """The page of an evaluated release: one HTML file that opens from disk."""
    result = folder.checked(Evaluation, "evaluation.json")
    return page.render(
        "release.html",
        title=folder.location.rstrip("/").rpartition("/")[2],  # not where it lay with whoever evaluated it
        drawn=folder.manifest().drawn,
        evaluation=render(result, f"{folder.location}/evaluation.json"),
        settings=result["settings"],
        questions=[question for question in ("fidelity", "privacy", "utility") if question in result],
        versions=page.versions("medgan", "torch"),
    )


def section(folder: RunFolder) -> Markup:
    """HTML; empty where nothing was evaluated yet, a line where what was evaluated is not the generator of today."""
    if not folder.exists("evaluation.json"):
        return Markup("")
    result = folder.checked(Evaluation, "evaluation.json")
    now = hashlib.sha256(folder.read("generator/model.safetensors")).hexdigest()
    if result["settings"]["subject_sha256"] != now:
        return OUTDATED
    return render(result, f"{folder.location}/evaluation.json")


def render(result: dict[str, Any], where: str = "evaluation.json") -> Markup:
    """The section for the content of an evaluation.json. Raises Refused where a part of it is not what it should be."""
    try:
        return _render(result)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, ArithmeticError, UndefinedError) as error:
        said = one_line(f"{type(error).__name__}: {error}")
        raise Refused(f"{where}: not what jobs/evaluate.py writes ({said})") from error


def _render(result: dict[str, Any]) -> Markup:
    figures = _figures(result.get("fidelity"))
    return Markup(
        page.render(
            "evaluation.html",
            settings=result["settings"],
            figures=figures,
            shifted=shifted(result.get("fidelity", {})),
            seen=SEEN[result["settings"]["split"]],
            kids=forest(_kids(figures), 0.0),
            utility=result.get("utility"),
            arms=_arms(result.get("utility")),
            read=_read(result.get("utility")),
            scores=SCORES,
            differences=_differences(result.get("utility")),
            privacy=result.get("privacy"),
            membership=forest(_attacks(result["privacy"]), 0.5) if "privacy" in result else "",
            hits=_hits(result.get("privacy")),
            shadowed=bool(_shadows(result.get("privacy"))),
        )
    )


def _figures(fidelity: dict[str, Any] | None) -> list[dict[str, Any]]:
    if fidelity is None:
        return []
    groups = [("", fidelity), *fidelity["classes"].items()]
    return [
        {
            **{"figure": name, "name": f"{title}, {group}" if group else title, "meaning": "" if group else meaning},
            **values[name],
        }
        for name, (title, meaning) in FIGURES.items()
        for group, values in groups
        if told_figure(values, name)
    ]


def _kids(figures: Sequence[dict[str, Any]]) -> list[Interval]:
    """KID of the samples and of real images, overall and by class."""
    rows: list[Interval] = []
    for row in figures:
        if row["figure"] == "kid":
            rows.append((row["name"], row["value"], row.get("low"), row.get("high")))
            rows.append((f"{row['name']}, real", row["floor"], None, None))
    return rows


def _arms(utility: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The mean of each score over draws and seeds: a row for each scenario, network and arm."""
    if utility is None:
        return []
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for cell in utility["cells"]:
        found.setdefault((cell["scenario"], cell["network"], cell["arm"]), []).append(cell)
    rows = []
    for (scenario, network, arm), cells in found.items():
        known = {name: [cell[name] for cell in cells if cell[name] is not None] for name in SCORES}
        means = {name: sum(values) / len(values) if values else None for name, values in known.items()}
        sizes = {name: round(sum(cell[name] for cell in cells) / len(cells)) for name in ("real", "synthetic")}
        rows.append({"scenario": scenario, "network": network, "arm": arm, **sizes, **means})
    return rows


def _read(utility: dict[str, Any] | None) -> list[dict[str, Any]]:
    """How the synthetic images of the draws are read: the lowest and the highest share for each scenario and class."""
    shares: dict[tuple[str, str, float], list[float]] = {}
    for one in utility.get("read", []) if utility else []:
        for name, found in one["classes"].items():
            shares.setdefault((one["scenario"], name, found["floor"]), []).append(found["value"])
    return [
        {"scenario": scenario, "class": name, "floor": floor, "low": min(each), "high": max(each)}
        for (scenario, name, floor), each in shares.items()
    ]


def _differences(utility: dict[str, Any] | None) -> list[tuple[str, Markup]]:
    return [(SCORES[score][0], forest(_gains(utility, score), 0.0, signed=True)) for score in SHOWN] if utility else []


def _gains(utility: dict[str, Any], score: str) -> list[Interval]:
    return [
        (f"{gain_of(d)}, {d['scenario']}, {d['network']}", d["value"], d["low"], d["high"])
        for d in utility["differences"]
        if d["score"] == score and d["value"] is not None
    ]


def gain_of(difference: dict[str, Any]) -> str:
    """The arm, and what it is held against."""
    return f"{difference['arm']} over {difference['against']}"


def _attacks(privacy: dict[str, Any]) -> list[Interval]:
    attacks, shadows = _hits(privacy), _shadows(privacy)
    if shadows:
        attacks.append(("the shadows by each other", shadows))
    rows: list[Interval] = []
    for name, found in attacks:
        rows.append((name, found["auc"], found["low"], found["high"]))
        rows.append((f"{name}, control", found["control"], found["control_low"], found["control_high"]))
    return rows


def _hits(privacy: dict[str, Any] | None) -> list[tuple[str, dict[str, Any]]]:
    """Of each attack on the generator, how it is called and what it found."""
    if privacy is None:
        return []
    rows = [(f"by {space}", found) for space, found in privacy["membership"]["spaces"].items()]
    shadows = _shadows(privacy)
    return [*rows, (f"by {shadows['shadows']} shadow generators", shadows["released"])] if shadows else rows


def _shadows(privacy: dict[str, Any] | None) -> dict[str, Any] | None:
    """What shadow generators found, if there were enough; an earlier version's is of the recipe alone."""
    shadows = privacy.get("shadows") if privacy else None
    return dict(shadows) if shadows and "released" in shadows else None


def forest(rows: Sequence[Interval], middle: float, signed: bool = False) -> Markup:
    """Intervals below each other around the value that means nothing was found, as an SVG that follows the theme.

    signed: values are differences.
    """
    if not rows:
        return Markup("")
    reach = max(0.02, *(abs(edge - middle) for _, *edges in rows for edge in edges if edge is not None)) * 1.1
    left, width, step = max(360, 7 * max(len(name) for name, *_ in rows) + 24), 360, 24  # 7: of a letter, about

    def x(value: float) -> float:
        return round(left + width * (value - middle + reach) / (2 * reach), 1)

    lines = []
    for index, (name, value, low, high) in enumerate(rows):
        y = 18 + index * step
        lines.append(Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(left - 12, y + 4, name))
        if low is not None and high is not None:
            lines.append(Markup('<line x1="{}" x2="{}" y1="{}" y2="{}" class="reach"/>').format(x(low), x(high), y, y))
        lines.append(Markup('<circle cx="{}" cy="{}" r="4"/>').format(x(value), y))
        told = f"{value:+.3f}" if signed else f"{value:.3f}"
        lines.append(Markup('<text x="{}" y="{}">{}</text>').format(left + width + 12, y + 4, told))
    bottom = 18 + len(rows) * step
    marks = [
        Markup('<text x="{}" y="{}" text-anchor="middle" class="tick">{}</text>').format(x(at), bottom + 6, f"{at:.2g}")
        for at in (middle - reach / 1.1, middle, middle + reach / 1.1)
    ]
    rule = Markup('<line x1="{}" x2="{}" y1="4" y2="{}" class="middle"/>').format(x(middle), x(middle), bottom - 10)
    told = "; ".join(
        f"{name} {value:.3f}" + (f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else "")
        for name, value, low, high in rows
    )
    return Markup(
        '<svg class="forest" viewBox="0 0 {} {}" style="max-width:{}px" role="img" aria-label="{}">{}{}{}</svg>'
    ).format(
        left + width + 80, bottom + 12, left + width + 80, told, rule, Markup("").join(lines), Markup("").join(marks)
    )
