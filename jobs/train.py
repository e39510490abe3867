"""Train a GAN on a data folder, on this machine or on a Ray cluster.

    python jobs/train.py --preset cgan --data data/phantom_cxr --out runs/mine --workers 2
    python jobs/train.py --preset dcgan --data DATA --out RUN --set loss.name=hinge --set total_images=500000
    ray job submit --working-dir . -- python jobs/train.py --preset cgan --data /shared/DATA --out /shared/RUN

The same command goes on from the newest checkpoint. Every setting and what it means: --settings.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from medgan import config as configs
from medgan.config import Refused
from medgan.data import shards
from medgan.data.cache import cache_folder
from medgan.terminal import Failed, Parser, Progress, Stopped, absolute, again, command, duration


def parser() -> Parser:
    parser = Parser(__doc__)
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--preset", help=f"a table of settings: {', '.join(configs.PRESETS)}")
    start.add_argument("--config", help="a YAML file of settings, such as another run's config.yaml")
    parser.add_argument("--data", help="data folder made by jobs/prepare.py: a path or a URI")
    parser.add_argument("--out", help="run folder to make or to go on with: a path or a URI")
    parser.add_argument(
        "--workers",
        help="number of workers, or a range such as 1-3 (default: every GPU that the batch feeds; without GPUs one "
        "worker, which has all CPUs of the largest host, up to 8)",
    )
    parser.add_use("a worker")
    parser.add_argument(
        "--cpus-per-worker",
        type=int,
        metavar="N",
        help="CPUs, and as many threads, of each worker that has no GPU (default with --workers: 1); without --workers "
        "two such workers, or one where there is no room for two",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting; repeatable"
    )
    parser.add_argument("--init", metavar="RUN", help="start a new run from the weights of another one")
    parser.add_argument("--wait", action="store_true", help="wait for so many, as an autoscaler adds them")
    parser.add_argument(
        "--timeout", type=int, default=900, metavar="S", help="seconds to wait for a worker that does not answer"
    )
    parser.add_argument(
        "--plan", action="store_true", help="measure a step here, print how fast 1, 8 and 64 workers would be, and end"
    )
    parser.add_argument(
        "--gigabits", default="1,10,100", metavar="N,N", help="networks that --plan looks at (default 1,10,100)"
    )
    parser.add_argument("--verbose", action="store_true", help="show Ray's own messages and tracebacks")
    parser.add_argument("--settings", action="store_true", help="print every setting with its meaning, and end")
    return parser


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    if args.settings:
        print(settings())
        return
    for flag in ("data",) if args.plan else ("data", "out"):
        if getattr(args, flag) is None:
            raise Refused(f"--{flag} is missing; --help shows an example")
    if args.preset is None and args.config is None:
        raise Refused(f"--preset or --config is missing; presets: {', '.join(configs.PRESETS)}")
    if args.timeout < 1:
        raise Refused(f"--timeout {args.timeout}: give seconds, at least 1")
    if args.cpus_per_worker is not None and args.cpus_per_worker < 1:
        raise Refused(f"--cpus-per-worker {args.cpus_per_worker}: give at least 1")
    data = absolute("--data", args.data)
    config = configs.load(args.preset, args.config, args.set)
    manifest, sha256 = shards.read_manifest(data)
    config = configs.for_data(
        config,
        **manifest.facts(sha256),
    )
    for split, least in (("train", config.global_batch), ("val", 16)):
        if manifest.rows(split) < least:
            raise Refused(f"--data {data}: {split} has {manifest.rows(split)} images, at least {least} are needed")

    if args.plan:
        plan(config, manifest, args.gigabits, args.cpus_per_worker or 1)
        return
    out = absolute("--out", args.out)

    from medgan.data.loader import rank_rows
    from medgan.folder import RunFolder
    from medgan.lease import Heartbeat
    from medgan.ray_connect import cluster_address, connect, cpus_by_host
    from medgan.ray_train import Workers, fit, placed
    from medgan.run import settled

    folder = RunFolder(out)
    stored = folder.config()
    if stored is not None:
        config = configs.resume(stored, config)
        if max(folder.checkpoints(), default=0) >= config.total_images:
            print(f"complete: {out} has its {config.total_images:,} images; raise total_images to train on")
            return
    init = absolute("--init", args.init) if args.init else None
    if init is not None:
        check_init(RunFolder(init), config)
    try:
        asked = Workers.parse(args.workers) if args.workers else None
    except ValueError as error:
        raise Refused(str(error)) from None
    shards.verify(data, manifest)

    if cluster_address() == "local":
        cache_folder()  # the workers of this host have one
    resources = connect(args.verbose)
    placing = placed(resources, asked, args.use, args.wait, config, args.cpus_per_worker, cpus_by_host())
    workers, gpu = placing.workers, placing.unit == "GPU"
    try:
        rank_rows(config, 0, workers.high)
    except ValueError as error:
        raise Refused(f"--workers {workers.high}: {error}; raise global_batch, or take fewer") from None
    config = settled(config, manifest, gpu)
    view = View(config, out)
    with Heartbeat(folder, view.line.say) as owner:
        folder.write("config.yaml", configs.to_yaml(config))
        folder.write("manifest.json", manifest.to_json())
        shape = f"{config.model.name} at {config.data.resolution}x{config.data.resolution}"
        print("\n".join([*placing.notes, f"training {shape}, {config.precision}, into {out}"]), flush=True)
        if config.private:
            dp = config.privacy.dp
            print(
                f"private: at most epsilon {dp.epsilon:g} at delta {dp.delta:.1e}, noise {dp.noise:.3g}; who is drawn "
                "is nowhere kept, so that a run that is gone on with is not the same to the bit",
                flush=True,
            )
        given = {"owner": owner, "timeout_s": args.timeout, "gpu": gpu, "cpus": placing.cpus}
        outcome = fit(config.dump(), data, out, workers, view.show, init, **given)
    view.line.close()
    if "done" in outcome.events:
        view.summary(outcome.events["done"])
    elif "stopped" in outcome.events:
        raise Stopped(f"stopped at {outcome.events['stopped']['images_seen']:,} images; {again()}")
    elif "failed" in outcome.events:
        failed = outcome.events["failed"]
        left = "" if failed["kind"] == "Stuck" else f"; {kept(folder)}"
        raise Failed(f"training stopped: {failed['reason']}{left}")
    else:
        raise Failed(f"training stopped: {outcome.error or 'the workers ended early'}; {again()}")


def kept(folder: Any) -> str:
    """What there is to go on from, of a run that failed: perhaps because its storage did."""
    try:
        last = max(folder.checkpoints(), default=None)
    except OSError as error:
        return f"its checkpoints cannot be listed: {error.strerror or error}"
    return f"the last good checkpoint is at {last:,} images" if last is not None else "there is no checkpoint yet"


def plan(config: configs.Config, manifest: Any, gigabits: str, cpus: int) -> None:
    """Print the capacity plan, on CPUs for workers of so many."""
    import torch

    from medgan.plan import measured, table
    from medgan.run import settled

    try:
        networks = [float(number) for number in gigabits.split(",")]
        if not all(0 < number < 1e6 for number in networks):
            raise ValueError
    except ValueError:
        raise Refused(f"--gigabits {gigabits}: give numbers such as 10,100") from None
    gpu = torch.cuda.is_available()
    if gpu and cpus > 1:
        raise Refused(f"--cpus-per-worker {cpus}: this host has a GPU, which --plan measures; leave it out")
    config = settled(config, manifest, gpu)
    if not gpu:
        torch.set_num_threads(cpus)
    measurement = measured(config, torch.device("cuda" if gpu else "cpu"))
    print("\n".join(table(measurement, config.total_images, (1, 8, 64), networks)))


def check_init(folder: Any, config: configs.Config) -> None:
    """Refuse a run whose networks are not those of the config, or that would give a private run's patients away."""
    other = folder.config()
    if other is None or not folder.checkpoints():
        raise Refused(f"--init {folder.location}: no run with a checkpoint")
    for key in ("model", "resolution", "channels", "classes"):
        ours, theirs = (getattr(c if key == "model" else c.data, key) for c in (config, other))
        if ours != theirs:
            raise Refused(f"--init {folder.location}: has another {key} ({theirs}) than this run ({ours})")
    if config.private:
        from medgan.folder import CheckpointError
        from medgan.state import learnt_from, open_checkpoint

        try:
            known = learnt_from(open_checkpoint(folder.read_checkpoint(max(folder.checkpoints()))))
        except CheckpointError as error:
            raise Refused(f"--init {folder.location}: its newest checkpoint: {error}") from None
        if config.data.manifest_sha256 in known:
            raise Refused(
                f"--init {folder.location}: learnt from these very images, which epsilon would not count; "
                "begin a private run anew, or with weights learnt from other patients"
            )


class View:
    """One progress line, and at the end where everything is."""

    def __init__(self, config: configs.Config, out: str) -> None:
        self.config, self.out = config, out
        self.line = Progress()
        self.kid: float | None = None
        self.first: tuple[float, int] | None = None

    def show(self, event: dict[str, Any]) -> None:
        kind, seen = event["event"], event.get("images_seen", 0)
        if kind == "features":
            self.line.update("reading the data and measuring the real images ...", force=True)
        elif kind == "resumed":
            self.line.say(f"going on from the checkpoint at {seen:,} images")
        elif kind == "restarted":
            cost = f"{event['resume/lost_s']:.0f} s and {event['resume/lost_images']:,.0f} images lost"
            self.line.say(f"{event['workers']} worker{'s'[: event['workers'] > 1]} now; {cost}")
        elif kind == "damaged":
            self.line.say(f"the checkpoint at {seen:,} images is damaged and set aside: {event['reason']}")
        elif kind == "silent":
            who = ", ".join(f"worker {rank} on {host}" for rank, host in event["ranks"].items())
            self.line.say(
                f"{who or 'the network between the workers'} did not answer for {event['timeout_s']} s; starting anew"
            )
        elif kind == "storage":
            self.line.say(event["reason"])
        elif kind == "eager":
            self.line.say("compile: torch.compile finds no compiler here (a C++ one, Triton on GPUs); running eager")
        elif kind == "pageless":
            self.line.say(f"report.html could not be made ({event['reason']}); jobs/report.py --run makes it again")
        elif kind == "alarm":
            self.line.say(f"at {seen:,} images: {event['text']}")
        elif kind == "wandb":
            self.line.say(event["text"])
        elif kind == "noticed":
            self.line.say("a host will be taken away: a checkpoint is saved")
        elif kind == "stopping":
            self.line.say("saving a checkpoint; Ctrl-C again stops at once")
        elif kind == "evaluated":
            self.kid = event["metric/kid"]
        elif kind == "progress":
            now = time.monotonic()
            self.first = self.first or (now, seen)
            pace = (seen - self.first[1]) / (now - self.first[0]) if now > self.first[0] else 0
            self.line.update(
                f"{seen:,}/{self.config.total_images:,} images",
                f"{duration((self.config.total_images - seen) / pace)} left" if pace else "? left",
                f"{event['time/images_per_s']:.0f} img/s",
                "" if self.kid is None else f"KID {self.kid:.3g}",
                f"D {event['loss/D']:.2f} G {event['loss/G']:.2f}",
                force=seen >= self.config.total_images,
            )

    def summary(self, done: dict[str, Any]) -> None:
        best = done["best"]
        which = "last" if self.config.private else "best"
        print(f"done: {done['images_seen']:,} images, {which} KID {best['kid']:.4g} at {best['images_seen']:,} images")
        if "epsilon" in done:
            print(
                f"privacy spent: epsilon {done['epsilon']:.3g} at delta {self.config.privacy.dp.delta:.1e}, by patient"
            )
        print(f"of the time, evaluations took {done['evaluate_share']:.0%} and checkpoints {done['save_share']:.1%}")
        for name, what in (
            ("report.html", "figures, samples and curves; open it in a browser"),
            ("generator/", f"the {which} generator"),
            ("samples/", "sample grids over time"),
            ("metrics.jsonl", "every figure"),
            ("checkpoints/", "to train on"),
        ):
            print(f"  {self.out}/{name:<15} {what}")
        print(f"next: python jobs/generate.py --run {self.out} --out OUT --count 100")


def settings() -> str:
    """Every dotted key with its default and its meaning; those of one model only say of which."""
    lines: list[str] = []
    shared = configs.ConvModel

    def tell(prefix: str, section: type[configs.Section]) -> None:
        below: list[tuple[str, type[configs.Section]]] = []
        for key, info in section.model_fields.items():
            inherited = section is not shared and issubclass(section, shared) and key in shared.model_fields
            if isinstance(info.default, configs.Section):
                below.append((f"{prefix}{key}.", type(info.default)))
            elif not inherited:
                lines.append(f"{prefix}{key} = {info.default}\n    {info.description}")
        for name, part in below:
            if name == "model.":
                tell(name, shared)
                for model in configs.MODELS:
                    tell(f"with model.name={model.model_fields['name'].default}: model.", model)
            else:
                tell(name, part)

    tell("", configs.Config)
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(command(main))
