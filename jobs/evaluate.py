"""Is it faithful, does it help, does it leak: a run's generator, or a finished release, in numbers.

    python jobs/evaluate.py --run runs/demo --data data/phantom_cxr
    python jobs/evaluate.py --synthetic OUT --data data/phantom_cxr --fidelity --privacy
    python jobs/evaluate.py --run RUN --data DATA --utility

Fidelity: KID, FID and others on the test split, overall and by class, each beside the floor that real training images
reach against it. Utility: classifiers with and without synthetic images, tested on real patients. Privacy: what the
samples tell of who was trained on. The work is cut into cells that are kept: the same command goes on where it was.
"""

from __future__ import annotations

import json
import math
import sys
from argparse import BooleanOptionalAction, Namespace
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from medgan import config as configs
from medgan.config import Refused
from medgan.data import shards
from medgan.folder import Folder, holds_generator
from medgan.schemas import Evaluation
from medgan.terminal import Parser, Progress, absolute, command

MOST = 2000
LEAST = 16
"""Images of a side, below which there are no figures."""
QUESTIONS = ("fidelity", "utility", "privacy")
EXTRACTORS = ("efficientnet-lite0", "inception", "xrv", "radiomics")
GRID = {
    "arms": "what classifiers learn from",
    "scenarios": "shares of the train patients, such as 5%%, or 'rare 5%%': of the rarest class's alone",
    "networks": "small-cnn, resnet18",
}


def parser() -> Parser:
    parser = Parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", help="run folder: its best generator draws the images")
    what.add_argument("--synthetic", help="data folder made by jobs/generate.py")
    parser.add_argument("--data", required=True, help="data folder with the real images: a path or a URI")
    parser.add_argument("--fidelity", action="store_true", help="is it faithful (asked where no question is named)")
    parser.add_argument("--utility", action="store_true", help="does it help a classifier: trains several; an hour")
    parser.add_argument("--privacy", action="store_true", help="does it leak who was trained on")
    parser.add_argument("--split", default="test", choices=tuple(shards.SPLITS), help="real images to compare with")
    parser.add_argument("--n", type=int, default=MOST, help=f"at most so many images on each side (default {MOST:,})")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is drawn (default 0)")
    parser.add_argument(
        "--extractor", default=EXTRACTORS[0], choices=EXTRACTORS, help="fidelity: what turns images into features"
    )
    parser.add_argument("--weights", metavar="FILE", help="fidelity: weight file of inception or xrv")
    parser.add_argument("--full", action="store_true", help="every arm, scenario and network; 8 shadows")
    for name, text in GRID.items():
        parser.add_argument(f"--{name}", metavar="A,B", help=f"utility: {text}")
    parser.add_argument("--draws", type=int, help="utility: draws of patients (default 5)")
    parser.add_argument("--seeds", type=int, help="utility: classifiers of each arm and draw (default 2)")
    parser.add_argument(
        "--strict",
        action=BooleanOptionalAction,
        help="utility: a generator for each draw of patients, trained on them alone (default with --run)",
    )
    parser.add_argument(
        "--gan-unlabelled", type=int, default=0, metavar="N", help="--strict: first N of all images, without labels"
    )
    parser.add_argument(
        "--gan-set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting of the trainings of --strict, --shadows; repeatable",
    )
    parser.add_argument("--gan-images", type=int, metavar="N", help="images of each training of --strict, --shadows")
    parser.add_argument("--steps", type=int, help="utility: batches of each classifier (default 800)")
    parser.add_argument("--shadows", type=int, help="privacy: also attack with so many shadow generators")
    parser.add_argument(
        "--neighbours", metavar="FILE.png", help="also a picture of samples beside their nearest real training images"
    )
    parser.add_argument("--workers", type=int, help="cells at once (default: all that fit); 0: here, without Ray")
    parser.add_use("a cell")
    parser.add_argument("--out", help="file to write (default: RUN/evaluation.json, or evaluation.json in --synthetic)")
    parser.add_argument("--verbose", action="store_true", help="show Ray's own messages and tracebacks")
    return parser


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    asked = [name for name in QUESTIONS if getattr(args, name)] or ["fidelity"]
    subject = absolute("--run" if args.run else "--synthetic", args.run or args.synthetic)
    data = absolute("--data", args.data)
    out = absolute("--out", args.out) if args.out else f"{subject}/evaluation.json"
    enough({"--n": args.n}, True)
    for name in ("draws", "seeds", "gan_images", "steps"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise Refused(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least 1")
    shadows = (8 if args.full and args.run else 0) if args.shadows is None else args.shadows
    if args.strict and args.synthetic:
        raise Refused("--strict: a finished release cannot be drawn again for fewer patients; name its --run")
    if args.strict is None:
        args.strict = args.run is not None
    rehearses = args.utility and args.strict
    trains = rehearses or ("privacy" in asked and shadows)
    if args.gan_unlabelled < 0:
        raise Refused(f"--gan-unlabelled {args.gan_unlabelled}: must be at least 0")
    if (args.gan_set or args.gan_images) and not trains:
        raise Refused("--gan-set, --gan-images: nothing that is asked for trains a generator")
    if args.gan_unlabelled and not rehearses:
        raise Refused("--gan-unlabelled: is of --utility --strict, where generators are trained")
    if args.shadows and "privacy" not in asked:
        raise Refused("--shadows: is of --privacy, which is not asked for")
    if shadows and args.synthetic:
        raise Refused("--shadows: a release does not say by which recipe it was made; ask it of its --run")
    neighbours = absolute("--neighbours", args.neighbours) if args.neighbours else None
    # What is handed over as a whole, or the part of a run that is, must not hold what is derived from real images.
    whole = bool(args.synthetic) or not holds_generator(subject)
    shared = subject if whole else f"{subject}/generator"
    if neighbours and neighbours.startswith(f"{shared}/"):
        raise Refused(f"--neighbours {args.neighbours}: shows real images, which do not belong in what is handed over")
    if not whole and out.startswith(f"{shared}/"):
        raise Refused(f"--out {args.out}: what is kept beside it comes from real images; name a place outside {shared}")
    manifest, sha256 = shards.read_manifest(data)
    if manifest.synthetic:
        raise Refused(f"--data {data}: holds synthetic images; name the folder with the real ones")
    if not manifest.splits.get(args.split):
        raise Refused(f"--split {args.split}: {data} has none")
    if args.utility and (not manifest.classes or not manifest.rows("test")):
        raise Refused(f"--utility: {data} has no {'test split' if manifest.classes else 'classes'}")
    if "privacy" in asked and not manifest.rows("val") + manifest.rows("test"):
        raise Refused(f"--privacy: {data} has neither val nor test, whose patients say what is near by chance")
    other = "train" if args.split != "train" else "val"

    from medgan import cells
    from medgan.metrics import privacy, utility
    from medgan.metrics.evidence import Question
    from medgan.metrics.features import EXTRACTORS as BUILDERS
    from medgan.metrics.features import WITH_WEIGHTS

    if shadows and (shadows < privacy.LEAST_SHADOWS or shadows % 2):
        raise Refused(f"--shadows {shadows}: must be an even number, at least {privacy.LEAST_SHADOWS}")
    weights = absolute("--weights", args.weights) if args.weights else None
    if (args.extractor in WITH_WEIGHTS or weights) and "fidelity" in asked:
        if args.extractor not in WITH_WEIGHTS:
            raise Refused(f"--weights {args.weights}: --extractor {args.extractor} has its own")
        BUILDERS[args.extractor]("cpu", weights)
    about, recipe, available, labelled = told_of(args, subject, manifest, sha256)
    grid = grid_of(args, args.gan_images or utility.Grid.images)
    if trains:
        changes = dict(map(configs.parse_override, args.gan_set))
        recipe = configs.load(overrides={**configs.flatten(recipe), **changes}).dump()
        if recipe["privacy"]["dp"]["epsilon"]:
            raise Refused(
                f"--run {subject}: a private training cannot be rehearsed on fewer patients; judge the generator "
                "itself with --no-strict and --shadows 0, or the recipe without its privacy with "
                "--gan-set privacy.dp.epsilon=0"
            )
    sides = {"--split " + args.split: manifest.rows(args.split), f"the {other} split": manifest.rows(other)}
    n = enough({"--n": args.n, f"--synthetic {subject}": available, **sides}, "fidelity" in asked)
    question = Question(
        subject=about,
        data={"location": data, "sha256": sha256},
        classes=manifest.classes if labelled else (),
        split=args.split,
        other=other,
        n=n,
        seed=args.seed,
        extractor=args.extractor,
        weights=weights,
    )
    # Privacy asks of as many samples as were wanted, with classes as frequent as in training.
    sides = {"--n": args.n, f"--synthetic {subject}": available, "the train split": manifest.rows("train")}
    of_train = replace(question, split="train", n=enough(sides, "privacy" in asked or bool(neighbours)))
    wanted: dict[str, cells.Cell] = {}
    if "fidelity" in asked:
        wanted |= question.fidelity()
    if "privacy" in asked:
        wanted |= privacy.plan(of_train, shadows, recipe, grid.images, args.gan_set)
    if "utility" in asked:
        wanted |= utility.plan(question, grid, recipe, args.gan_set)
    if neighbours:
        wanted["neighbours"] = privacy.picture_of(of_train)

    folder_of_cells = f"{subject if whole else out.removesuffix('.json')}.cells"
    compute(list(wanted.values()), folder_of_cells, args)
    found = {name: cell.load(folder_of_cells) for name, cell in wanted.items()}
    if neighbours:
        place, _, name = neighbours.rpartition("/")
        shards.write_file(place, name, found.pop("neighbours")["png"].tobytes())
    settings = {
        **{"subject_sha256": about["sha256"], "manifest_sha256": sha256, "split": args.split, "floor_split": other},
        "seed": args.seed,
    }
    result = assemble(settings, n, found, before=earlier(out, settings))
    folder, _, name = out.rpartition("/")
    shards.write_file(folder, name, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    carry(subject, shared, args, result)
    show(result)
    print(f"written: {out}")
    print(f"kept: {folder_of_cells} (comes from real images: do not pass it on)")
    if neighbours:
        print(f"samples beside real training images (do not pass it on): {neighbours}")


def enough(sides: dict[str, int], needed: bool) -> int:
    """The fewest images that any side has. Raises Refused where that is too few to be asked."""
    name = min(sides, key=lambda side: sides[side])
    if needed and sides[name] < LEAST:
        raise Refused(f"{name}: {sides[name]} images are too few to compare; there must be at least {LEAST}")
    return sides[name]


def same_data(args: Namespace, subject: str, trained_on: str | None, sha256: str) -> None:
    """Raises Refused where a question is about who was trained on, and --data is not what was."""
    given = args.utility and not args.strict
    if trained_on is not None and trained_on != sha256 and (args.privacy or given):
        flag, question = "--run" if args.run else "--synthetic", "--privacy" if args.privacy else "--utility"
        raise Refused(
            f"{question}: {flag} {subject} was trained on other data than --data {args.data} (manifest SHA-256 "
            f"{trained_on}); name that, or ask for --fidelity alone"
        )


def told_of(
    args: Namespace, subject: str, manifest: shards.Manifest, sha256: str
) -> tuple[dict[str, str], dict[str, Any], int, bool]:
    """(what is evaluated, see Question; the recipe of short trainings, as plain types, which a release does not tell;
    how many images it can give; whether they are of DATA's classes).

    Raises Refused where it does not fit DATA or the questions.
    """
    from medgan.sample import Sampler

    if args.run:
        sampler = Sampler.open(subject)
        shape = (sampler.config.data.channels, sampler.config.data.resolution)
        if shape != manifest.shape[:2]:
            raise Refused(f"--run {subject}: draws {shape[1]} pixels a side, --data has {manifest.shape}")
        if sampler.classes and sampler.classes != manifest.classes:
            ours, theirs = (", ".join(names) for names in (sampler.classes, manifest.classes))
            raise Refused(f"--run {subject}: draws {ours}, --data has {theirs}")
        if args.utility and not sampler.classes:
            raise Refused(f"--utility: the generator of {subject} is unconditional, its images have no class")
        same_data(args, subject, sampler.config.data.manifest_sha256, sha256)
        about = {"run": subject, "sha256": sampler.sha256}
        return about, sampler.config.dump(), sys.maxsize, bool(sampler.classes)
    release, digest = shards.read_manifest(subject, "--synthetic")
    if not release.synthetic:
        raise Refused(f"--synthetic {subject}: holds real images; name a folder made by jobs/generate.py")
    if release.shape != manifest.shape:
        raise Refused(f"--synthetic {subject}: images of shape {release.shape}, --data has {manifest.shape}")
    if args.utility and release.classes != manifest.classes:
        raise Refused(f"--utility: the classes of {subject} are not those of --data")
    same_data(args, subject, release.trained_on, sha256)
    about = {"synthetic": subject, "sha256": digest}
    return about, {}, release.rows("train"), release.classes == manifest.classes


def grid_of(args: Namespace, images: int) -> Any:
    """The grid of --utility. Raises Refused."""
    from medgan.metrics import classifiers, utility

    chosen: dict[str, Any] = {}
    for name, known in (("arms", utility.ARMS), ("networks", classifiers.NETWORKS), ("scenarios", None)):
        if given := getattr(args, name):
            parts = tuple(part.strip() for part in given.split(","))
            for part in parts:
                if known is not None and part not in known:
                    raise Refused(f"--{name} {part}: unknown, choose of {', '.join(known)}")
                if known is None:
                    try:
                        utility.parse_scenario(part)
                    except ValueError as error:
                        raise Refused(f"--{name} {error}") from None
            chosen[name] = parts
    chosen |= {key: getattr(args, key) for key in ("draws", "seeds", "steps") if getattr(args, key)}
    return replace(
        utility.FULL if args.full else utility.Grid(),
        strict=args.strict,
        images=images,
        unlabelled=args.gan_unlabelled,
        **chosen,
    )


def compute(wanted: Sequence[Any], folder: str, args: Namespace) -> None:
    """Compute the cells that are not kept yet, with a line of progress."""
    from medgan import cells

    if args.workers is not None and args.workers < 0:
        raise Refused(f"--workers {args.workers}: must be at least 0")
    if not cells.missing(wanted, folder):
        return
    line = Progress(every_s=5)
    progress = cells.shown(line, "evaluate")
    try:
        if args.workers == 0:
            cells.run(wanted, folder, progress)
        else:
            from medgan import ray_tasks
            from medgan.ray_connect import connect

            connect(args.verbose)
            ray_tasks.run(wanted, folder, progress, args.workers, args.use)
    finally:
        line.close()


def earlier(out: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Sections of the file as it is, where they are of the same generator or release, data, split and seed."""
    folder, _, name = out.rpartition("/")
    try:
        before = Folder(folder).checked(Evaluation, name)
    except (OSError, ValueError):
        return {}
    known = before.get("settings", {})
    return before if all(known.get(key) == value for key, value in settings.items()) else {}


def assemble(settings: dict[str, Any], n: int, found: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """evaluation.json: settings, and a section for each question, new or from before."""
    from medgan.metrics.fidelity import identity

    result = {**before, "settings": {**before.get("settings", {}), **settings}}
    if "fidelity" in found:
        measured = found["fidelity"]
        result["settings"] |= identity(measured["identity"], n, settings["split"])
        result["fidelity"] = section = measured["figures"]
        section["class_shift"] = measured.get("shift", 0.0)
        faithful = dict(found.get("faithful", {}))
        for name, figure in faithful.pop("classes", {}).items():
            section["classes"].setdefault(name, {})["class_accuracy"] = figure
        if faithful:
            section["class_accuracy"] = faithful
    if "privacy" in found:
        from medgan.metrics.privacy import claim

        known = before.get("privacy", {}).get("shadows")  # of an earlier call of the same generator
        if known and "changed" not in known:  # and of an earlier version
            known = None
        section = found["privacy"] | ({"shadows": found.get("shadows", known)} if "shadows" in found or known else {})
        result["privacy"] = {**section, "claim": claim(dict(plain(section)))}
    if "utility" in found:
        result["utility"] = found["utility"]
    return dict(plain(result))


def plain(value: Any) -> Any:
    """JSON has no word for what is not a number."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def carry(subject: str, shared: str, args: Namespace, result: dict[str, Any]) -> None:
    """The figures into the card of what was evaluated, and its page. shared: the part of it that is handed over."""
    from medgan import evaluation_page, release, report
    from medgan.folder import Folder, RunFolder

    if args.out:
        return
    try:
        text = shards.read_file(shared, "README.md", inside=True).decode()
    except shards.Unsafe as error:  # a link, as in the Hub's cache
        print(f"note: its card stays as it is: {error.strerror}")
    else:
        shards.write_file(shared, "README.md", release.with_evaluation(text, result).encode())
    if args.synthetic:
        Folder(subject).write("report.html", evaluation_page.release_page(Folder(subject)))
    elif RunFolder(subject).exists("metrics.jsonl"):
        RunFolder(subject).write("report.html", report.run_page(RunFolder(subject)))


def show(result: dict[str, Any]) -> None:
    """Tables for people."""
    from medgan.evaluation_page import SHOWN, gain_of
    from medgan.metrics.fidelity import FIGURES, shifted, told_figure, told_interval

    if "fidelity" in result:
        figures = result["fidelity"]
        where = f"n = {result['settings']['n']}, {result['settings']['extractor']}"
        print(f"{where:<44}{'samples':>10}{'real':>10}")
        for group, values in (("", figures), *figures["classes"].items()):
            for name, (title, _) in FIGURES.items():
                if told_figure(values, name):
                    told, value = f"{title}, {group}" if group else title, values[name]
                    few = f"  (n {value['n']})" if group else ""
                    print(f"  {told:<42}{value['value']:>10.4g}{value['floor']:>10.4g}{few}{told_interval(value)}")
        if warning := shifted(figures):
            print(warning)
    if "utility" in result:
        for row in result["utility"]["differences"]:
            if row["score"] in SHOWN and row["low"] is not None:
                what = f"{row['score']}, {gain_of(row)}, {row['scenario']}, {row['network']}"
                print(f"  {what:<84}{row['value']:>+8.3f} [{row['low']:+.3f}, {row['high']:+.3f}]")
    for name in ("utility", "privacy"):
        if name in result:
            print(result[name]["claim"]["sentence"])


if __name__ == "__main__":
    sys.exit(command(main))
