"""A training on three hosts to which something happens every minute, held against one to which nothing happens.

    python -m tests.prove.soak                          # 20 minutes, into results/soak.json
    python -m tests.prove.soak --minutes 3 --seed 7

Every minute a worker process or a whole host, drawn from the seed, is killed with SIGKILL; a host comes back 20 s
later. After the given time the job is stopped and finished undisturbed. It must end at the images it was asked for,
every image used once per epoch, with the float64 weights of one process that nothing happened to, to 1e-9.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.hosts import HEAD, Hosts, why_not
from medgan.config import Refused
from medgan.terminal import Parser, command
from medgan.tracking import read_rows

from ..conftest import write_phantoms
from ..hosts import (
    ENDLESS,
    ROOT,
    Submitted,
    alive,
    assert_every_image_once_per_epoch,
    assert_same_weights,
    undisturbed,
    until,
)
from . import commit, hardware

RESULTS = ROOT / "results/soak.json"
EVERY_S = 60.0
BACK_S = 20.0


def disturb(hosts: Hosts, job: Submitted, chance: random.Random) -> str:
    """Kill something, drawn again where there is nothing to kill just now; says what."""
    while True:
        name = chance.choice(hosts.names())
        if name != HEAD and chance.random() < 0.5:
            hosts.kill(name)
            time.sleep(BACK_S)
            hosts.up(3)
            return f"{name} was killed, and came back {BACK_S:.0f} s later"
        process = job.worker(name)
        if process is not None and hosts.exec(name, ["kill", "-9", process]).returncode == 0:
            return f"the worker on {name} was killed"


def soak(hosts: Hosts, minutes: float, seed: int) -> dict[str, object]:
    chance, happened = random.Random(seed), []
    print(f"seed {seed}", flush=True)
    write_phantoms(hosts.shared / "data")
    job = Submitted(hosts, "soak", "1-3", total_images=ENDLESS)
    began = time.monotonic()
    try:
        job.progress(timeout=120)
        for number in range(1, int(minutes * 60 / EVERY_S) + 1):
            time.sleep(max(0.0, began + number * EVERY_S - time.monotonic()))
            at = time.monotonic() - began
            what = disturb(hosts, job, chance)
            happened.append({"at_s": round(at), "what": what})
            print(f"{at:>6.0f} s  {what}", flush=True)
            if job.process.poll() is not None:
                raise AssertionError(f"the job ended:\n{job.text[-3000:]}")
        until(lambda: alive(hosts) == 3, 90, "three hosts")
        job.stop()
        last = job.again()
    finally:
        job.end()
    workers = assert_every_image_once_per_epoch(last)
    assert_same_weights(last.folder, undisturbed(hosts, "undisturbed", last))
    lost = [row for row in read_rows(last.out / "metrics.jsonl") if "resume/lost_s" in row]
    assert lost, "the workers never started anew, whatever was killed"
    return {
        "minutes": minutes,
        "seed": seed,
        "happened": happened,
        "images_seen": last.folder.checkpoints()[-1],
        "workers": sorted(set(workers)),
        "restarts": len(lost),
        "lost_s": sum(row["resume/lost_s"] for row in lost),
        "lost_images": sum(row["resume/lost_images"] for row in lost),
        "weights": "equal to an undisturbed process's to 1e-9",
    }


def table() -> str:
    """The results as Markdown."""
    found = json.loads(RESULTS.read_text())
    shown = {
        "minutes": f"{found['minutes']:g}",
        "killed": f"{len(found['happened'])} times a worker or a host",
        "workers": " to ".join(map(str, found["workers"])),
        "restarts": f"{found['restarts']}, which cost {found['lost_s'] / found['restarts']:.0f} s each",
        "images": f"{found['images_seen']:,}, and {found['lost_images']:,} trained twice",
        "weights in the end": found["weights"],
    }
    return "\n".join([f"| {' | '.join(shown)} |", "|---" * len(shown) + "|", f"| {' | '.join(shown.values())} |"])


def main(argv: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="measure it also where the results have it already")
    args = parser.parse_args(argv)
    if args.out.exists() and not args.again:
        print(f"{args.out.name} is there already; --again measures it anew")
        return
    reason = why_not()
    if reason:
        raise Refused(f"hosts cannot be started here: {reason}")
    os.environ["MEDGAN_CACHE"] = f"/tmp/medgan-soak-{os.getpid()}/cache"
    hosts = Hosts(Path(f"/tmp/medgan-soak-{os.getpid()}"))
    try:
        hosts.up(3)
        found = soak(hosts, args.minutes, args.seed)
    finally:
        hosts.down()
    found |= {
        "command": f"python -m tests.prove.soak --minutes {args.minutes:g} --seed {args.seed}",
        "commit": commit(),
        "hardware": f"{hardware()}, three hosts of cluster/hosts.py",
    }
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    sys.exit(command(main))
