"""jobs/search.py on a cluster: a trial is a run, trials fail and are cut, the same command goes on."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from medgan import config as configs
from medgan.data import shards
from medgan.folder import RunFolder, SearchFolder
from medgan.state import packed
from tune import search

from .test_ray import ROOT, Job, head, run_job, settings, until  # noqa: F401
from .test_run import assert_same_bits, last_checkpoint

pytestmark = pytest.mark.ray
TRIALS = 3


def command(data, out, *more, trials=TRIALS, **overrides):
    length = {"total_images": 1920, "evaluate__interval_kimg": 0.64, "tracking__interval_kimg": 0.064}
    length |= {"checkpoint__interval_kimg": 0.32, "global_batch": 16} | overrides
    fixed = settings(**length)
    space = ["--space", "model.name=dcgan,cgan", "--algorithm", "random"]
    return ["--data", data, "--out", out, "--trials", trials, *space, *fixed, *more]


@pytest.fixture(scope="module")
def whole(phantoms, tmp_path_factory):
    """A search that nothing disturbed, with two finals of one finalist, and a cache of its own beside it."""
    out = tmp_path_factory.mktemp("searches") / "whole"
    asked, cache = command(phantoms, out, "--finalists", 1, "--seeds", 2), out.parent / "cache"
    code, output = run_job("search", *asked, env={"MEDGAN_CACHE": str(cache)})
    assert code == 0, output
    return SearchFolder(str(out)), output


def by_name(folder):
    return {record["name"]: record for record in folder.trials()}


def test_a_search_leaves_its_trials_the_best_config_and_a_table(whole, phantoms):
    folder, output = whole
    trials = by_name(folder)
    assert set(trials) == {"000", "001", "002"} | {r["name"] for r in trials.values() if "of" in r}
    assert {record["status"] for record in trials.values()} <= {"done", "stopped"}
    assert any(record["status"] == "stopped" for record in trials.values())
    for record in trials.values():
        run = folder.run(record)
        assert run.exists("generator/model.safetensors")
        assert record["images_seen"] == 1920 or record["status"] == "stopped"
    finals = [record for record in trials.values() if record["kind"] == "finalist"]
    ranked = search.ranking([record for record in trials.values() if record["kind"] == "trial"])
    assert [record["of"] for record in finals] == [ranked[0]["name"]] * 2
    assert sorted(folder.run(record).config().seed for record in finals) == [1, 2]
    for words in ("winner: trial", "mean KID", "best.yaml", "others were better"):
        assert words in output
    for noise in ("Traceback", "WARNING", "ray", "Ray", "wandb:"):
        assert noise not in output.replace("starting Ray on this host ...", "")
    assert not (Path(folder.location) / ".ray").exists()


def test_the_winner_trained_again_by_jobs_train_has_the_same_bits(whole, phantoms, tmp_path):
    folder, _ = whole
    record, _ = search.winner(folder.trials())
    again = ["--config", f"{folder.location}/best.yaml", "--data", phantoms, "--out", tmp_path / "run", "--workers", 1]
    code, output = run_job("train", *again)
    assert code == 0, output
    assert_same_bits(last_checkpoint(folder.run(record)), last_checkpoint(RunFolder(str(tmp_path / "run"))))


def test_the_same_command_has_nothing_left_to_do_and_more_trials_go_on(whole, phantoms):
    folder, _ = whole
    before = by_name(folder)
    code, output = run_job("search", *command(phantoms, folder.location, "--finalists", 1, "--seeds", 2))
    assert code == 0, output
    assert by_name(folder) == before
    code, output = run_job("search", *command(phantoms, folder.location, "--finalists", 0, trials=4))
    assert code == 0, output
    assert set(by_name(folder)) - set(before) == {"003"}
    code, output = run_job("search", *command(phantoms, folder.location, seed=1))
    assert code == 2
    assert "another search: fixed.seed=1" in output


def test_a_search_killed_at_any_moment_goes_on_and_draws_and_trains_nothing_twice(whole, phantoms, tmp_path):
    undisturbed, _ = whole
    folder = SearchFolder(str(tmp_path / "whole"))  # a search's name is in its trials' configs
    arguments = command(phantoms, folder.location, "--scheduler", "none", "--finalists", 0)
    job = Job("search", *arguments)
    try:
        until(lambda: seen_by(folder) > 640, what="two figures")
        os.kill(job.process.pid, signal.SIGKILL)
        job.process.wait()
    finally:
        job.end()
        job.process.stdout.close()
    assert not any(record["status"] == "failed" for record in folder.trials())
    code, output = run_job("search", *arguments)
    assert code == 0, output
    trials = by_name(folder)
    assert {record["status"] for record in trials.values()} == {"done"}
    for name, record in trials.items():
        assert record["settings"] == by_name(undisturbed)[name]["settings"]
        seen = [row["images_seen"] for row in rows(folder.run(record)) if "loss/D" in row]
        assert seen == list(range(64, 1921, 64))
    for name, record in by_name(undisturbed).items():
        if name in trials and record["status"] == "done":
            assert_same_bits(last_checkpoint(undisturbed.run(record)), last_checkpoint(folder.run(trials[name])))


def rows(run):
    from medgan.tracking import rows_of

    return rows_of(run)


def seen_by(folder):
    """Images that a search's trials have seen together."""
    if not Path(folder.location, "trials").exists():
        return 0
    return sum(record["images_seen"] for record in folder.trials())


def test_ctrl_c_leaves_a_usable_result_and_says_how_to_go_on(phantoms, tmp_path):
    folder = SearchFolder(str(tmp_path / "search"))
    job = Job("search", *command(phantoms, folder.location, "--scheduler", "none", total_images=64000))
    try:
        until(lambda: seen_by(folder) >= 1280, what="two figures")
        os.killpg(job.process.pid, signal.SIGINT)
        began = time.monotonic()
    finally:
        code, output = job.wait()
    assert time.monotonic() - began < 60
    assert code == 130, output
    assert "Traceback" not in output
    assert "to go on: python" in output.strip().splitlines()[-1]
    assert {record["status"] for record in folder.trials()} <= {"interrupted", "waiting"}
    for record in folder.trials():
        if record["status"] == "interrupted":
            assert folder.run(record).checkpoints()
    assert configs.load(file=Path(folder.location) / "best.yaml")
    assert (Path(folder.location) / "results.parquet").exists()


def test_a_trial_that_fails_or_loses_its_worker_is_marked_and_the_search_goes_on(phantoms, tmp_path):
    # Trial 001 diverges: it goes on from a checkpoint in which weights are too large to be added up.
    folder = SearchFolder(str(tmp_path / "search"))
    arguments = command(phantoms, folder.location, "--scheduler", "none", "--finalists", 0, total_images=6400)
    job = Job("search", *arguments)
    try:
        until(
            lambda: seen_by(folder) and by_name(folder).get("001", {}).get("images_seen"), what="a figure of trial 001"
        )
        os.killpg(job.process.pid, signal.SIGINT)
    finally:
        job.wait()
    run = folder.run(by_name(folder)["001"])
    saved = last_checkpoint(run)
    next(iter(saved["generator"].values())).fill_(3e38)
    run.save_checkpoint(run.checkpoints()[-1], packed(saved), keep=9, best=None)  # with a checksum that fits
    job = Job("search", *arguments)
    try:
        until(lambda: by_name(folder)["001"]["status"] == "failed", what="the failure")
        until(lambda: job.pids("Trainable.train"), what="another trial's step")
        os.kill(job.pids("Trainable.train")[0], signal.SIGKILL)
    finally:
        code, output = job.wait()
    assert code == 0, output
    trials = by_name(folder)
    assert (trials["001"]["status"], "nan" in trials["001"]["reason"]) == ("failed", True)
    assert [trials[name]["status"] for name in ("000", "002")] == ["done"] * 2  # the lost one was begun again
    assert "trial 001" in output
    assert "Traceback" not in output


def test_two_workers_per_trial_are_refused_where_there_is_one_core_and_train_where_there_are(phantoms, tmp_path):
    out = tmp_path / "search"
    many = os.cpu_count() + 1
    arguments = command(phantoms, out, "--workers-per-trial", many, global_batch=4 * many)  # of groups of 4
    code, output = run_job("search", *arguments)
    assert code == 2, output
    assert output.strip().endswith(f"--workers-per-trial {many}: the cluster has {os.cpu_count()} CPUs")
    assert not out.exists()
    if os.cpu_count() < 2:
        pytest.skip("one core")
    more = ["--workers-per-trial", 2, "--finalists", 0]
    code, output = run_job("search", *command(phantoms, out, *more, trials=1, total_images=640))
    assert code == 0, output
    assert by_name(SearchFolder(str(out)))["000"]["status"] == "done"


def test_data_and_real_features_are_prepared_once_before_trials_start(whole, phantoms):
    out = Path(whole[0].location)
    features = sorted(out.parent.glob(f"cache/{shards.read_manifest(phantoms)[1][:32]}/features-*"))
    assert len(features) == 2  # val and train
    first = min(out.glob("trials/*/config.yaml"), key=lambda path: path.stat().st_mtime)
    assert all(file.stat().st_mtime < first.stat().st_mtime for file in features)


def test_records_are_whole_files(whole):
    folder, _ = whole
    for record in folder.trials():
        assert json.loads(folder.read(f"trials/{record['name']}.json")) == record


def test_a_member_of_a_population_takes_over_weights_and_images_seen_of_a_better_one(phantoms, tmp_path):
    folder = SearchFolder(str(tmp_path / "search"))
    ranges = ["--space", "optim.lr_g=1e-9..5e-3"]  # by this seed one of the two learns nothing
    more = ["--algorithm", "pbt", "--space", "model.name=cgan", *ranges, "--search-seed", 3]
    fixed = settings(
        total_images=2560, evaluate__interval_kimg=0.64, checkpoint__keep=99, tracking__interval_kimg=0.064
    )
    code, output = run_job("search", "--data", phantoms, "--out", folder.location, "--trials", 2, *more, *fixed)
    assert code == 0, output
    trials = by_name(folder)
    assert {record["status"] for record in trials.values()} == {"done"}
    takeovers = [step for record in trials.values() for step in record.get("lineage", [])]
    assert takeovers
    for step in takeovers:
        donor, _, images = step["from"].partition(" at ")
        parent, child = (RunFolder(f"{folder.location}/trials/{name}") for name in (donor, step["run"]))
        assert child.checkpoints()[0] == int(images) > 0
        name = f"checkpoints/{int(images):012d}.pt"
        assert child.read(name) == parent.read(name)
        assert child.config().optim.lr_g == step["settings"]["optim.lr_g"] != parent.config().optim.lr_g
        seen = [row["images_seen"] for row in rows(child) if "loss/D" in row]
        assert seen == list(range(64, seen[-1] + 1, 64))
    assert max(folder.run(record).checkpoints()[-1] for record in trials.values()) == 2560


def test_a_search_may_be_submitted_as_a_job(head, phantoms, tmp_path):  # noqa: F811
    env, _ = head
    folder = SearchFolder(str(tmp_path / "search"))
    more = ["--scheduler", "none", "--finalists", 0]
    words = command(phantoms, folder.location, *more, trials=2, total_images=640)
    submit = ["ray", "job", "submit", "--working-dir", ".", "--", "python", "jobs/search.py", *map(str, words)]
    result = subprocess.run(submit, env=env, capture_output=True, text=True, timeout=280, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "winner: trial" in result.stdout
    assert [(record["status"], record["images_seen"]) for record in folder.trials()] == [("done", 640)] * 2
    assert configs.load(file=tmp_path / "search/best.yaml").total_images == 640
