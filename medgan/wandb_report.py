"""W&B Reports of a search and of two runs, made with wandb-workspaces: what they hold is written here, W&B draws it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from medgan import config as configs
from medgan.folder import RunFolder, SearchFolder
from medgan.names import markdown, part

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr

LICENCE = "Synthetic images are not for diagnosis. The data keep the licence of their source; medgan is MIT."
AXES = ("model.name", "loss.name", "optim.lr_g", "optim.lr_d", "loss.r1_gamma", "model.width", "global_batch")


def search_report(folder: SearchFolder, entity: str, project: str) -> wr.Report:
    """Question, winner, KID by architecture, parallel coordinates, importance, grids, finalists, evidence, data."""
    import wandb_workspaces.reports.v2 as wr

    settings = folder.settings()
    assert settings is not None
    name = folder.location.rstrip("/").rpartition("/")[2]
    records = folder.trials()
    summary = folder.summary()
    runset = partial(wr.Runset, entity=entity, project=project)
    runs = runset(name=name, filters=f"Metric('Group') == {_literal(name)}")
    models = sorted({record["settings"].get("model.name", "?") for record in records})
    by_model = [
        runset(name=model, filters=f"Metric('Group') == {_literal(name)} and Tags() in [{_literal(model)}]")
        for model in models
    ]
    config, run = _first_run(folder, records)
    classes = tuple(config.data.classes or ()) if config is not None else ()
    ranks = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(key), log=key.startswith("optim.lr")) for key in AXES]
    kid = wr.SummaryMetric("metric/kid.min")
    blocks: list[Any] = [
        wr.TableOfContents(),
        wr.H1("Question"),
        wr.P(f"Which architecture, loss and settings draw images nearest to {_source(run)}, by {_goals(settings)}?"),
        wr.P(_counts(records)),
        wr.H1("Winner"),
        wr.MarkdownBlock(_winner(summary)),
        wr.H1("KID by architecture"),
        wr.PanelGrid(
            runsets=by_model,
            panels=[wr.LinePlot(title="KID", x="images_seen", y=["metric/kid"], log_y=True, layout=_wide(wr, 0))],
        ),
        wr.H1("What was searched and what mattered"),
        wr.PanelGrid(
            runsets=[runs],
            panels=[
                wr.ParallelCoordinatesPlot(
                    columns=[*ranks, wr.ParallelCoordinatesPlotColumn(metric=kid, display_name="KID", log=True)],
                    layout=_wide(wr, 0),
                ),
                wr.ParameterImportancePlot(with_respect_to="metric/kid.min", layout=_wide(wr, 8)),
            ],
        ),
        wr.MarkdownBlock(_importance(summary)),
        wr.H1("Samples"),
        wr.PanelGrid(runsets=[runs], panels=[_grids(wr, classes)]),
        wr.H1("Finalists"),
        wr.MarkdownBlock(_finalists(summary)),
        wr.H1("Evidence"),
        wr.MarkdownBlock(_evidence(config, records)),
        wr.H1("Data and licence"),
        wr.MarkdownBlock(_data(run, settings)),
        wr.H1("How to reproduce"),
        wr.CodeBlock(
            code=f"{settings.get('command', '')}\npython jobs/train.py --config best.yaml --data DATA --out RUN"
        ),
    ]
    return wr.Report(
        entity=entity, project=project, title=f"Search {name}", description=_counts(records), blocks=blocks
    )


def pair_report(first: RunFolder, second: RunFolder, entity: str, project: str) -> wr.Report:
    """Two runs side by side: what differs, figures, curves, grids."""
    import wandb_workspaces.reports.v2 as wr

    names = [folder.location.rstrip("/").rpartition("/")[2] for folder in (first, second)]
    loaded = [config for folder in (first, second) if (config := folder.config()) is not None]
    runset = partial(wr.Runset, entity=entity, project=project)
    sets = [
        runset(name=name, filters=f"Metric('Name') == {_literal(f'{config.model.name} {config.loss.name} {name}')}")
        for name, config in zip(names, loaded, strict=True)
    ]
    classes = tuple(loaded[0].data.classes or ())
    line = lambda title, keys, row: wr.LinePlot(title=title, x="images_seen", y=keys, layout=_wide(wr, row))
    blocks: list[Any] = [
        wr.H1("What differs"),
        wr.MarkdownBlock(_difference(names, loaded)),
        wr.H1("Figures over real images shown"),
        wr.PanelGrid(
            runsets=sets,
            panels=[
                line("KID", ["metric/kid"], 0),
                line("coverage", ["metric/coverage"], 8),
                line("losses", ["loss/D", "loss/G"], 16),
                wr.RunComparer(diff_only="split", layout=_wide(wr, 24)),
            ],
        ),
        wr.H1("Samples"),
        wr.PanelGrid(runsets=sets, panels=[_grids(wr, classes)]),
        wr.H1("Data and licence"),
        wr.MarkdownBlock(_data(first, {"manifest_sha256": loaded[0].data.manifest_sha256})),
    ]
    return wr.Report(entity=entity, project=project, title=f"{names[0]} against {names[1]}", blocks=blocks)


def _literal(name: str) -> str:
    """A name in a filter, which is read as Python once its signs of comparison, in names too, were rewritten."""
    return "'" + "".join(one if one.isalnum() or one in " -_." else f"\\U{ord(one):08x}" for one in name) + "'"


def _wide(wr: Any, row: int) -> Any:
    return wr.Layout(x=0, y=row, w=24, h=8)


def _grids(wr: Any, classes: Sequence[str]) -> Any:
    keys = [f"samples/{part(name)}" for name in classes] or ["samples"]
    return wr.MediaBrowser(title="samples by class over time", media_keys=keys, num_columns=2, layout=_wide(wr, 0))


def _first_run(
    folder: SearchFolder, records: Sequence[dict[str, Any]]
) -> tuple[configs.Config | None, RunFolder | None]:
    for record in records:
        run = folder.run(record)
        if run.exists("config.yaml"):
            return run.config(), run
    return None, None


def _source(run: RunFolder | None) -> str:
    if run is None or not run.exists("manifest.json"):
        return "the data"
    manifest = run.manifest()
    return f"{manifest.source} at {manifest.resolution}x{manifest.resolution}"


def _goals(settings: dict[str, Any]) -> str:
    names = {"kid": "KID of the averaged generator", "images_per_s": "speed", "coverage": "coverage"}
    return " and ".join(names[name] for name in settings["search"]["objectives"])


def _counts(records: Sequence[dict[str, Any]]) -> str:
    trials = [record for record in records if record["kind"] == "trial"]
    kinds = sorted({record["status"] for record in trials})
    told = ", ".join(f"{sum(record['status'] == kind for record in trials)} {kind}" for kind in kinds)
    return f"{len(trials)} trials: {told}; {sum(record['images_seen'] for record in records):,} real images shown."


def _winner(summary: dict[str, Any]) -> str:
    best = summary.get("winner")
    if not best:
        return "No trial has a KID yet."
    model, loss, why = (markdown(best[key]) for key in ("model", "loss", "why"))
    return f"**Trial {best['name']}** ({model}, {loss}): {why}."


def _importance(summary: dict[str, Any]) -> str:
    rows = sorted(summary.get("importance", {}).items(), key=lambda item: -item[1])
    if not rows:
        return "Too few trials to tell what mattered."
    return "\n".join(
        ["| setting | importance (PED-ANOVA) |", "|---|---|", *(f"| {markdown(k)} | {v:.3f} |" for k, v in rows)]
    )


def _finalists(summary: dict[str, Any]) -> str:
    if not summary.get("finalists"):
        return "No finalists were trained: the winner's figure is of one seed, and flatters."
    lines = ["| trial | mean KID | 95 % interval | seeds |", "|---|---|---|---|"]
    for row in summary["finalists"]:
        interval = "" if row["low"] is None else f"{row['low']:.4g} to {row['high']:.4g}"
        lines.append(f"| {row['name']} | {row['mean']:.4g} | {interval} | {len(row['kids'])} |")
    return "\n".join(lines)


def _evidence(config: configs.Config | None, records: Sequence[dict[str, Any]]) -> str:
    floor = next((record["floor"] for record in records if record.get("floor") is not None), None)
    if config is None:
        return "No trial has begun."
    text = f"KID of {config.evaluate.n} generated images against the val split, {config.evaluate.extractor} features, "
    text += "the same latents, labels and real images for every trial."
    if floor is not None:
        text += f" Real images score {floor:.3g} against other real ones: nobody does better."
    return text + " Whether the images help a classifier, and whether they copy a patient: jobs/evaluate.py."


def _data(run: RunFolder | None, settings: dict[str, Any]) -> str:
    lines = [f"Manifest SHA-256 `{settings['manifest_sha256']}`."]
    if run is not None and run.exists("manifest.json"):
        manifest = run.manifest()
        lines.append(f"Source {markdown(manifest.source)}; split by patient.")
        lines += ["", "| split | images | patients |", "|---|---|---|"]
        lines += [f"| {s} | {manifest.rows(s):,} | {manifest.patients.get(s, 0):,} |" for s in manifest.splits]
    return "\n".join([*lines, "", LICENCE])


def _difference(names: Sequence[str], loaded: Sequence[configs.Config]) -> str:
    one, other = (configs.flatten(config.dump()) for config in loaded)
    keys = [key for key in sorted({**one, **other}) if one.get(key) != other.get(key)]
    rows = [("setting", *names), ("---",) * 3, *((key, one.get(key, ""), other.get(key, "")) for key in keys)]
    return "\n".join(f"| {' | '.join(markdown(str(cell)) for cell in row)} |" for row in rows)
