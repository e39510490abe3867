"""What privacy costs: KID and usefulness of the cgan-dp preset on chest films of children at 32x32, by epsilon.

    MEDGAN_REAL_DATA=... python -m tests.prove.privacy              # everything, into results/privacy.json and .svg
    MEDGAN_REAL_DATA=... python -m tests.prove.privacy --only 10    # one budget
    python -m tests.prove.privacy --table

All see the same number of images; `none` is the cgan preset without a bound. Figures are of the test split. Useful: the
balanced accuracy on real test films of a classifier that was trained on 600 generated ones of each class alone. No seed
repeats a private training: its noise comes from the operating system.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from medgan.folder import RunFolder
from medgan.tracking import read_rows
from tests import classifier
from tests.prove import ROOT, arguments, call, commit, hardware, known, opened, prepare, prove, raw, told
from tests.prove.films import training

RESULTS = ROOT / "results/privacy.json"
IMAGES = 40_000
PER_CLASS = 600
BUDGETS = ("1", "10", "100", "none")


def measured(budget: str, films: Path, work: Path, workers: int) -> dict[str, Any]:
    data, out, release = work / "data", work / budget, work / f"{budget}-release"
    prepare("kermany_cxr", data, "--raw", films, "--resolution", 32)
    command = training("cgan" if budget == "none" else "cgan-dp", data, out, IMAGES, workers)
    command += ["--set", "tracking.wandb=disabled"]
    if budget != "none":
        command += ["--set", f"privacy.dp.epsilon={budget}"]
    call(*command)
    call("jobs/evaluate.py", "--run", out, "--data", data, "--out", work / f"{budget}.json")
    figures = json.loads((work / f"{budget}.json").read_text())["fidelity"]
    shutil.rmtree(release, ignore_errors=True)
    call("jobs/generate.py", "--run", out, "--out", release, "--per-class", PER_CLASS)
    useful = classifier.accuracy(classifier.fit(str(release)), str(data), "test")
    grid = RESULTS.with_suffix("") / f"epsilon-{budget}.png"
    grid.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(out / "generator/samples.png", grid)
    folder = RunFolder(str(out))
    config = folder.config()
    assert config is not None
    dp = config.privacy.dp
    spent = [row["privacy/epsilon"] for row in read_rows(out / "metrics.jsonl") if "privacy/epsilon" in row]
    return {
        **{"budget": budget, "epsilon": spent[-1] if spent else None, "delta": dp.delta, "noise": dp.noise},
        **{"kid": figures["kid"]["value"], "floor": figures["kid"]["floor"], "n": figures["kid"]["n"]},
        **{"coverage": figures["coverage"]["value"], "useful": useful, "per_class": PER_CLASS},
        **{"images_seen": max(folder.checkpoints()), "seed": 0, "commit": commit(), "hardware": hardware()},
        "command": told(command, data, out),
    }


def table() -> str:
    lines = ["| epsilon | noise | KID | coverage | useful |", "|---|---|---|---|---|"]
    for row in known(RESULTS):
        epsilon = "no bound" if row["epsilon"] is None else f"{row['epsilon']:.2f}"
        noise = "" if row["noise"] is None else f"{row['noise']:.2f}"
        lines.append(f"| {epsilon} | {noise} | {row['kid']:.2f} | {row['coverage']:.2f} | {row['useful']:.0%} |")
    return "\n".join(lines)


def curve() -> str:
    """KID and usefulness over epsilon as SVG: two panels, dotted what is reached without a bound."""
    rows = known(RESULTS)
    bounded = [row for row in rows if row["epsilon"] is not None]
    low, high = (math.log10(f(row["epsilon"] for row in bounded)) for f in (min, max))
    top, width, height, parts = 30, 280, 160, []
    for panel, (key, name) in enumerate(
        (("kid", "KID, smaller is better"), ("useful", "accuracy of who learns from it"))
    ):
        left, most = 60 + 380 * panel, 1.1 * max(row[key] for row in rows)

        def place(epsilon: float, value: float, left: int = left, most: float = most) -> tuple[float, float]:
            x = left + width * (math.log10(epsilon) - low) / max(high - low, 1e-9)
            return round(x, 1), round(top + height * (1 - value / most), 1)

        points = [place(row["epsilon"], row[key]) for row in bounded]
        line = " ".join(f"{x},{y}" for x, y in points)
        parts += [
            f'<text x="{left}" y="18">{name}</text>',
            f'<path d="M{left} {top}v{height}h{width}" fill="none" stroke="#888"/>',
            f'<polyline points="{line}" fill="none" stroke="#2a78d6" stroke-width="2"/>',
        ]
        for (x, y), row in zip(points, bounded, strict=True):
            parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="#2a78d6"/>')
            parts.append(f'<text x="{x}" y="{y - 8}" text-anchor="middle">{row[key]:.2f}</text>')
            parts.append(f'<text x="{x}" y="{top + height + 18}" text-anchor="middle">{row["epsilon"]:.0f}</text>')
        for row in rows:
            if row["epsilon"] is None:
                y = place(1, row[key])[1]
                parts.append(f'<path d="M{left} {y}h{width}" stroke="#888" stroke-dasharray="3 4"/>')
                parts.append(f'<text x="{left + width}" y="{y - 4}" text-anchor="end">no bound: {row[key]:.2f}</text>')
        parts.append(f'<text x="{left + width / 2}" y="{top + height + 36}" text-anchor="middle">epsilon</text>')
    style = 'font-family="sans-serif" font-size="12" fill="#888"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 235" {style}>{"".join(parts)}</svg>\n'


def budget_of(row: dict[str, Any]) -> str:
    return str(row["budget"])


def main() -> None:
    parser = arguments(__doc__, "privacy", BUDGETS)
    parser.add_argument("--workers", type=int, default=2, help="workers of the trainings (default 2)")
    args = parser.parse_args()

    def made(budget: str) -> list[dict[str, Any]]:
        return [measured(budget, raw("kermany_cxr"), opened(args.work), args.workers)]

    prove(args, RESULTS, BUDGETS, made, budget_of, table)
    RESULTS.with_suffix(".svg").write_text(curve())


if __name__ == "__main__":
    main()
