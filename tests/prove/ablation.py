"""Chest films of children at 32x32: what each choice of a preset is worth, one changed at a time.

    MEDGAN_REAL_DATA=... python -m tests.prove.ablation            # everything, into results/ablation.json
    MEDGAN_REAL_DATA=... python -m tests.prove.ablation --only hinge
    python -m tests.prove.ablation --table

All see the same images in the same order. Figures are of the val split, on which presets are chosen: the test split is
not touched.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from medgan import config as configs
from medgan.tracking import read_rows
from tests.prove import ROOT, arguments, call, commit, hardware, known, opened, prepare, prove, raw, told
from tests.prove.films import training

RESULTS = ROOT / "results/ablation.json"
IMAGES = 30_000
OFF = {"loss.r1_gamma": 0, "loss.r2_gamma": 0}
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    # name: (what is changed, preset, settings)
    "preset": ("-", "cgan", {}),
    "hinge": ("loss", "cgan", {"loss.name": "hinge"}),
    "lsgan": ("loss", "cgan", {"loss.name": "lsgan"}),
    "wgan-gp": ("loss", "cgan", {"loss.name": "wgan-gp", **OFF}),
    "rpgan": ("loss", "cgan", {"loss.name": "rpgan", "loss.r2_gamma": "auto"}),
    "no penalty": ("penalty", "cgan", OFF),
    "r1+r2": ("penalty", "cgan", {"loss.r2_gamma": "auto"}),
    "r1 every step": ("penalty", "cgan", {"loss.r1_interval": 1}),
    "4x gamma": ("penalty", "cgan", {"loss.r1_gamma": 0.1024}),
    "diffaugment": ("augmentation", "cgan", {"augment.name": "diffaugment"}),
    "ada": ("augmentation", "cgan", {"augment.name": "ada"}),
    "D with BatchNorm": ("normalisation", "dcgan", {"model.norm_d": "batch", "global_batch": 16, **OFF}),
    "dcgan": ("condition", "dcgan", {"global_batch": 16}),
    "no minibatch stddev": ("normalisation", "cgan", {"model.stddev_group": 1}),
    "half width": ("width", "cgan", {"model.width": 16, "model.max_width": 128}),
    "double width": ("width", "cgan", {"model.width": 64, "model.max_width": 512}),
    "half the batch": ("batch", "cgan", {"global_batch": 8}),
    "double the batch": ("batch", "cgan", {"global_batch": 32}),
    "half the rates": ("learning rate", "cgan", {"optim.lr_g": 5e-4, "optim.lr_d": 5e-4}),
    "double the rates": ("learning rate", "cgan", {"optim.lr_g": 2e-3, "optim.lr_d": 2e-3}),
    "float32": ("precision", "cgan", {"precision": "float32"}),
    "no average": ("average", "cgan", {"ema.half_life_kimg": 0}),
    "stylegan2-lite": ("architecture", "stylegan2-lite", {}),
    "resgan": ("architecture", "resgan", {}),
}


def measured(name: str, films: Path, work: Path) -> dict[str, Any]:
    changed, preset, settings = VARIANTS[name]
    data, out = work / "data", work / name.replace(" ", "-")
    prepare("kermany_cxr", data, "--raw", films, "--resolution", 32)
    command = training(preset, data, out, IMAGES, workers=1, settings=settings)
    call(*command)
    rows = read_rows(out / "metrics.jsonl")
    figures = [r for r in rows if "metric/kid" in r and r["images_seen"]]
    best = min(figures, key=lambda r: r["metric/kid"])
    pace = statistics.median([r["time/images_per_s"] for r in rows if "time/images_per_s" in r])
    shown = {key: best[f"metric/{key}"] for key in ("kid", "coverage", "precision", "recall", "n")}
    return {
        **{"variant": name, "changed": changed, "preset": preset, "settings": settings, "split": "val"},
        **{**shown, "floor": best["floor/kid"], "best_at": best["images_seen"], "images_seen": IMAGES},
        "kid_over_time": {str(r["images_seen"]): r["metric/kid"] for r in figures},
        **{"images_per_s": round(pace, 1), "seed": 0, "commit": commit(), "hardware": hardware()},
        "command": f"python {told(command, data, out)}",
    }


def table() -> str:
    lines = ["| changed | variant | KID | coverage | images/s | on |", "|---|---|---|---|---|---|"]
    for r in known(RESULTS):
        precision = configs.load(r["preset"], overrides=r["settings"]).precision
        if precision == "auto":
            precision = "bfloat16" if "bf16" in r["hardware"] else "float32"
        cells = [r["changed"], r["variant"], f"{r['kid']:.3f}", f"{r['coverage']:.2f}", f"{r['images_per_s']:.0f}"]
        lines.append(f"| {' | '.join(cells)} | {precision} |")
    return "\n".join(lines)


def variant_of(row: dict[str, Any]) -> str:
    return str(row["variant"])


def main() -> None:
    args = arguments(__doc__, "ablation", VARIANTS).parse_args()

    def made(name: str) -> list[dict[str, Any]]:
        return [measured(name, raw("kermany_cxr"), opened(args.work))]

    prove(args, RESULTS, VARIANTS, made, variant_of, table)


if __name__ == "__main__":
    main()
