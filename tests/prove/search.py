"""What a search is worth: ASHA beside the same trials without it, a population, and an hour on real chest films.

python -m tests.prove.search                   # everything, into results/search.json (about two hours on 2 cores)
python -m tests.prove.search --only phantom    # 12 trials on drawn films, with ASHA (within 20 minutes) and without
python -m tests.prove.search --only pbt        # a population of 6 on drawn films
MEDGAN_REAL_DATA=... python -m tests.prove.search --only films
python -m tests.prove.search --table           # results/search.json as Markdown
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medgan.folder import SearchFolder
from tests.prove import ROOT, arguments, commit, hardware, known, opened, prepare, prove, raw
from tune.search import finalists, ranking

RESULTS = ROOT / "results/search.json"
TRIALS = 12
MINUTES = 20
"""At most, for ASHA on drawn films on 2 cores."""
PHANTOM = {
    "total_images": 48_000,
    "evaluate.n": 256,
    "model.width": 16,
    "model.max_width": 64,
    "global_batch": 64,
    "loss.critic_steps": 1,
    "tracking.wandb": "disabled",
}
"""Nets that see some 1,500 images a second on a core, so that 12 trials take minutes."""
NARROW = ("model.name=dcgan,cgan", "optim.lr_g=1e-5..1e-2", "optim.lr_d=1e-5..1e-2")


def command(data: Path, out: Path, trials: int, *more: str, space: tuple[str, ...], fixed: dict[str, Any]) -> list[str]:
    words = ["jobs/search.py", "--data", str(data), "--out", str(out), "--trials", str(trials), *more]
    words += [word for narrowing in space for word in ("--space", narrowing)]
    return words + [word for key, value in fixed.items() for word in ("--set", f"{key}={value}")]


def search(words: list[str]) -> tuple[list[dict[str, Any]], float]:
    """Run a search, or go on with it: its records and how many minutes all calls took together.

    Beside its folder stands how long earlier calls took. Ends where one of them was cut and nobody knows.
    """
    out = Path(words[words.index("--out") + 1])
    note = out.with_name(f"{out.name}.minutes")
    before = "0" if not out.exists() else note.read_text() if note.exists() else ""
    if not before:
        raise SystemExit(f"{out}: an earlier call was cut, so that its minutes are not known: remove it to begin anew")
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text("")  # stays so where this call is cut
    began = time.monotonic()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, check=False)
    minutes = float(before) + (time.monotonic() - began) / 60
    note.write_text(f"{minutes}")
    if done.returncode:
        raise SystemExit(f"{shlex.join(words)} ended with {done.returncode}")
    return SearchFolder(str(out)).trials(), minutes


def told(words: list[str]) -> dict[str, Any]:
    """The command with folders as placeholders, and where it ran."""
    shown = list(words)
    for flag, name in (("--data", "DATA"), ("--out", "SEARCH")):
        shown[shown.index(flag) + 1] = name
    return {"command": f"python {shlex.join(shown)}", "commit": commit(), "hardware": hardware(), "seed": 0}


def drawn(work: Path) -> Path:
    data = work / "data"
    prepare("phantom_cxr", data, "--resolution", 32, "--limit", 3000)
    return data


def phantom(work: Path) -> dict[str, Any]:
    """ASHA against everything to its end, on the same 12 draws."""
    data, found, commands = drawn(work), {}, {}
    minutes = {}
    for scheduler in ("asha", "none"):
        more = ("--algorithm", "random", "--scheduler", scheduler, "--finalists", "0")
        commands[scheduler] = command(data, work / scheduler, TRIALS, *more, space=NARROW, fixed=PHANTOM)
        found[scheduler], minutes[scheduler] = search(commands[scheduler])
    assert [r["settings"] for r in found["asha"]] == [r["settings"] for r in found["none"]]
    images = {name: sum(record["images_seen"] for record in records) for name, records in found.items()}
    order = [record["name"] for record in ranking(found["none"])]
    winner = ranking(found["asha"])[0]
    place = order.index(winner["name"]) + 1
    result = {
        **{"name": "phantom", "trials": TRIALS, "minutes": round(minutes["asha"], 1)},
        **{"minutes_without": round(minutes["none"], 1), "images": images["asha"], "images_without": images["none"]},
        **{"share": images["asha"] / images["none"], "winner": winner["name"], "place": place, "kid": winner["kid"]},
        **{"kid_without": ranking(found["none"])[0]["kid"], **told(commands["asha"])},
    }
    print(f"ASHA saw {result['share']:.0%} of the images; its winner is number {place} of the others' ranking")
    assert result["minutes"] <= MINUTES, f"ASHA took {result['minutes']} minutes"
    assert result["share"] < 0.5
    assert place <= 2
    return result


def pbt(work: Path) -> dict[str, Any]:
    """A population whose members start at unlike learning rates."""
    words = command(
        *(drawn(work), work / "pbt", 6, "--algorithm", "pbt"),
        space=("model.name=cgan", "optim.lr_g=1e-6..5e-3", "optim.lr_d=1e-6..5e-3"),
        fixed={**PHANTOM, "total_images": 30_000, "evaluate.interval_kimg": 5},
    )
    records, minutes = search(words)
    takeovers = [{"to": record["name"], **step} for record in records for step in record.get("lineage", [])]
    assert takeovers
    best = ranking(records)[0]
    spread = [[record["name"], record["kid"], len(record.get("lineage", []))] for record in ranking(records)]
    result = {"name": "pbt", "trials": 6, "minutes": round(minutes, 1), "takeovers": len(takeovers)}
    first = [{"to": step["to"], "from": step["from"]} for step in takeovers[:6]]
    return {**result, "first": first, "kid": best["kid"], "members": spread, **told(words)}


def films(work: Path) -> dict[str, Any]:
    """An hour on Kermany's films at 64x64, finalists included."""
    data = work / "films"
    prepare("kermany_cxr", data, "--raw", raw("kermany_cxr"), "--resolution", 64)
    words = command(
        *(data, work / "kermany", TRIALS, "--finalists", "1", "--seeds", "2"),
        space=("model.name=dcgan,cgan", "model.width=16,32", "global_batch=32", "loss.critic_steps=1"),
        fixed={"total_images": 40_000, "evaluate.n": 512, "tracking.wandb": "disabled"},
    )
    records, minutes = search(words)
    best = finalists(records)[0]
    trial = next(record for record in records if record["name"] == best["name"])
    trials = [record for record in records if record["kind"] == "trial"]
    return {
        **{"name": "films", "trials": len(trials), "minutes": round(minutes, 1), "kid": trial["kid"]},
        **{"mean": best["mean"], "low": best["low"], "high": best["high"], "seeds": len(best["kids"])},
        **{"images": sum(record["images_seen"] for record in records), "settings": trial["settings"], **told(words)},
    }


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {"phantom": phantom, "pbt": pbt, "films": films}


def table() -> str:
    """The results as Markdown."""
    lines = [
        "| search | trials | minutes | images shown | KID of the best | what it shows |",
        "|---|---|---|---|---|---|",
    ]
    for row in known(RESULTS):
        shows = {
            "phantom": lambda r: (
                f"ASHA saw {r['share']:.0%} of the images; its winner is number {r['place']} without it"
            ),
            "pbt": lambda r: f"{r['takeovers']} times a member took over weights of a better one",
            "films": lambda r: (
                f"mean over {r['seeds']} fresh seeds {r['mean']:.3g} ({r['low']:.3g} to {r['high']:.3g})"
            ),
        }[row["name"]](row)
        images = f"{row['images']:,}" if "images" in row else ""
        lines.append(
            f"| {row['name']} | {row['trials']} | {row['minutes']:.0f} | {images} | {row['kid']:.3g} | {shows} |"
        )
    return "\n".join(lines)


def main() -> None:
    args = arguments(__doc__, "search", PARTS).parse_args()

    def made(name: str) -> list[dict[str, Any]]:
        return [PARTS[name](opened(args.work))]

    prove(args, RESULTS, PARTS, made, lambda row: str(row["name"]), table)


if __name__ == "__main__":
    main()
