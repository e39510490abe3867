"""The search without a cluster: what is drawn, who is stopped, who wins; on objectives with a known best."""

import io
import json
import math
import runpy
import statistics
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from ray.exceptions import GetTimeoutError, RayActorError

from medgan import config as configs
from medgan.config import Refused
from medgan.folder import RunFolder, SearchFolder
from medgan.lease import Lease, Lost
from medgan.ray_train import Outcome
from tune import schedulers, search
from tune.algorithms import Draws, trial_name
from tune.spaces import Range, Space, space
from tune.trial import LOST_WORKER, Plan, Training, Trial, Wish, reason_of, seized, take_over

SPACE = space(True, ["model.name=dcgan,cgan", "global_batch=16"])


def fake_kid(settings):
    """Best at cgan with lr_g = 1e-3 and hinge; lr_d does not matter."""
    kid = 0.1 + abs(math.log10(settings["optim.lr_g"] / 1e-3))
    return kid + 0.7 * (settings["model.name"] != "cgan") + 0.3 * (settings["loss.name"] != "hinge")


def searched(algorithm, trials=60, seed=0, objectives=("kid",), objective=fake_kid, at_once=2):
    """Records of a search on a made-up objective, with trials that run beside each other."""
    draws, records, running = Draws(SPACE, algorithm, objectives, seed), [], []
    for number in range(trials):
        settings, drawn = draws.draw(number)
        record = search.new_record(trial_name(number), "trial", settings, 1000, draws=drawn)
        running.append(
            record | {"status": "done", "kid": objective(settings), "coverage": settings["optim.lr_g"] * 100}
        )
        if len(running) == at_once or number == trials - 1:
            for done in running:
                draws.tell(done)
            records += running
            running = []
    return records


@pytest.mark.heavy
def test_tpe_finds_the_known_best_more_often_than_chance():
    later = {
        algorithm: [
            statistics.mean(record["kid"] for record in searched(algorithm, seed=seed)[30:]) for seed in range(3)
        ]
        for algorithm in ("random", "tpe")
    }
    assert max(later["tpe"]) < 0.8 * min(later["random"])
    best = min(searched("tpe"), key=lambda record: record["kid"])
    assert best["settings"]["model.name"] == "cgan"
    assert best["settings"]["loss.name"] == "hinge"
    assert best["settings"]["optim.lr_g"] == pytest.approx(1e-3, rel=0.5)


def test_two_objectives_reach_both_ends_of_the_front():
    # coverage grows with lr_g, KID is best at 1e-3: the front runs from there upwards.
    records = searched("tpe", objectives=("kid", "coverage"))
    rates = [record["settings"]["optim.lr_g"] for record in records[30:]]
    assert statistics.median(rates) > 1.2e-3
    assert min(record["kid"] for record in records) < 0.5


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_a_search_that_goes_on_draws_what_one_that_was_not_stopped_would_have(algorithm):
    whole = searched(algorithm, trials=24)
    draws = Draws(SPACE, algorithm, ("kid",), 0)
    draws.restore(json.loads(json.dumps(whole[:20])))
    assert draws.draw(20)[0] == whole[20]["settings"]
    assert len({json.dumps(record["settings"]) for record in whole}) == 24


def test_records_with_draws_of_another_space_are_refused_in_one_line():
    whole = searched("tpe", trials=2)
    for forged, words in (
        ({}, "has no draw of "),
        ({**whole[0]["draws"], "optim.lr_g": "\x1b[2J"}, "has draws of another space"),
        ({**whole[0]["draws"], "other": 1}, "has draws of another space"),
    ):
        with pytest.raises(Refused, match=f"^trial 000: its record {words}") as caught:
            Draws(SPACE, "tpe", ("kid",), 0).restore([whole[0] | {"draws": forged}])
        assert "\x1b" not in str(caught.value)


def test_a_search_that_goes_on_with_cut_trials_ends_with_the_study_of_one_that_was_not_stopped():
    whole = searched("tpe", trials=16)
    cut = [record | ({"status": "interrupted"} if record["name"] in ("012", "014") else {}) for record in whole]
    draws = Draws(SPACE, "tpe", ("kid",), 0)
    draws.restore(cut)
    assert [trial.state.name for trial in draws.study.trials].count("RUNNING") == 2
    for record in whole:
        if record["name"] in ("012", "014"):
            draws.tell(record)
    undisturbed = Draws(SPACE, "tpe", ("kid",), 0)
    undisturbed.restore(whole)
    assert [t.values for t in draws.study.trials] == [t.values for t in undisturbed.study.trials]
    assert draws.draw(16)[0] == undisturbed.draw(16)[0]


def test_two_trials_that_start_together_are_not_the_same():
    draws = Draws(SPACE, "tpe", ("kid",), 0)
    draws.restore(searched("tpe", trials=30))
    assert draws.draw(30)[0] != draws.draw(31)[0]


def test_a_trial_that_failed_is_told_as_worse_than_any_and_one_that_was_cut_as_running():
    draws = Draws(SPACE, "tpe", ("kid", "images_per_s"), 0)
    settings, drawn = draws.draw(0)
    record = search.new_record("000", "trial", settings, 10, draws=drawn)
    draws.tell(record | {"status": "failed"})
    draws.restore([record | {"name": "001", "status": "interrupted"}])
    assert [(trial.state.name, trial.values) for trial in draws.study.trials] == [
        ("COMPLETE", [10.0, 0.0]),
        ("RUNNING", None),
    ]


def test_the_leaderboard_ranks_trials_and_says_why_one_failed(capsys):
    view = runpy.run_path(str(Path(__file__).parent.parent / "jobs/search.py"), run_name="job")["View"]
    board = view(search.Request("d", "o", 4, fixed={"total_images": 100}))
    records = searched("random", trials=3)
    records[0] |= {"status": "failed", "reason": "loss/D is nan at 192 images"}
    for record in records:
        board.show(record)
    shown = capsys.readouterr().out.splitlines()
    assert "failed (loss/D is nan at 192 images)" in shown[0]
    lines = board.board()
    assert "1 failed" in lines[0]
    best, other = sorted(records[1:], key=lambda record: record["kid"])
    assert [line.split()[0] for line in lines[2:]] == [best["name"], other["name"]]
    assert f"{best['kid']:.4g}" in lines[2]


def test_the_leaderboard_of_a_search_that_goes_on_has_the_earlier_trials(capsys):
    view = runpy.run_path(str(Path(__file__).parent.parent / "jobs/search.py"), run_name="job")["View"]
    board, records = view(search.Request("d", "o", 4)), searched("random", trials=3)
    board.earlier({record["name"]: record for record in records[:2]})
    board.show(records[2])
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert {line.split()[0] for line in board.board()[2:]} == {record["name"] for record in records}


# -- schedulers --------------------------------------------------------------------------------------------------------

TOTAL = 12000
STEPS = range(1000, TOTAL + 1, 1000)


class Fake:
    def __init__(self, name, curve):
        self.trial_id, self.name = f"Ray's {id(self)}", name
        self.config = {"job": {"name": name}}
        self.curve, self.history = curve, []


def halved(fakes, at_once=2, past=()):
    """Run fake trials as Tune would: some at a time, one interval each in turn. Returns images seen by each."""
    scheduler = schedulers.asha(TOTAL, past)
    waiting, running = list(fakes), []
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(waiting.pop(0))
            scheduler.on_trial_add(None, running[-1])
        for fake in list(running):
            seen = STEPS[len(fake.history)]
            fake.history.append([seen, fake.curve(seen)])
            if scheduler.on_trial_result(None, fake, {"images_seen": seen, "kid": fake.curve(seen)}) == "STOP":
                scheduler.on_trial_complete(None, fake, {"images_seen": seen, "kid": fake.curve(seen)})
                running.remove(fake)
    return {fake.name: fake.history[-1][0] for fake in fakes}


def test_asha_sees_under_half_of_the_images_and_its_winner_is_among_the_best_two():
    shares = []
    for seed in range(20):
        levels = np.random.default_rng(seed).permutation(np.linspace(0.1, 3, 12))
        fakes = [Fake(str(i), lambda seen, level=level: level + 4000 / seen) for i, level in enumerate(levels)]
        seen = halved(fakes)
        shares.append(sum(seen.values()) / 12 / TOTAL)
        ended = [fake for fake in fakes if seen[fake.name] == TOTAL]
        winner = min(ended, key=lambda fake: fake.history[-1][1])
        assert levels[int(winner.name)] in np.sort(levels)[:2]
    assert statistics.mean(shares) < 0.42
    assert sum(share < 0.5 for share in shares) >= 16


def test_asha_takes_up_the_rungs_of_an_earlier_search():
    good = [{"name": str(i), "history": [[seen, 0.1 + i / 100] for seen in STEPS]} for i in range(6)]
    bad = [Fake("bad", lambda seen: 2.0)]
    assert halved(bad) == {"bad": TOTAL}
    assert halved([Fake("bad", lambda seen: 2.0)], past=good) == {"bad": 1000}


def test_a_trial_that_goes_on_stands_on_its_rungs_with_the_kid_it_had_there():
    curve = lambda seen: 5.0 - seen / 2000
    earlier = {"name": "000", "history": [[seen, curve(seen)] for seen in STEPS[:6]]}
    scheduler, again = schedulers.asha(TOTAL, [earlier]), Fake("000", curve)
    scheduler.on_trial_add(None, again)
    assert scheduler.on_trial_result(None, again, {"images_seen": 7000, "kid": curve(7000)}) == "CONTINUE"
    rungs = dict(scheduler._brackets[0]._rungs)
    assert rungs == {4000: {"000": -curve(4000)}, 1000: {"000": -curve(1000)}}


def test_who_takes_over_keeps_its_name_and_its_settings_stay_in_range():
    ranges = {"optim.lr_g": Range(1e-3, 1.1e-3), "loss.r1_gamma": Range(0.1, 0.2)}
    population = schedulers.Population(ranges, 1000, 0)
    trials = [Fake(name, None) for name in ("000", "001")]
    for trial in trials:
        trial.config = {"job": {"name": trial.name, "settings": {"optim.lr_g": 1e-3, "loss.r1_gamma": 0.2, "seed": 0}}}
    drawn = [population._get_new_config(trials[0], trials[1])[0]["job"] for _ in range(50)]
    assert {job["name"] for job in drawn} == {"000"}
    for job in drawn:
        assert all(ranges[key].low <= job["settings"][key] <= ranges[key].high for key in ranges)
        assert job["settings"]["seed"] == 0
    assert len({job["settings"]["optim.lr_g"] for job in drawn}) > 1
    assert trials[1].config["job"]["settings"]["optim.lr_g"] == 1e-3


class Controller:
    """As much of Tune's controller as a population needs."""

    search_alg = None

    def __init__(self, trials):
        self.trials = trials

    def get_trials(self):
        return self.trials

    def _schedule_trial_save(self, trial, result):
        return trial.level

    def pause_trial(self, trial, should_checkpoint):
        assert not should_checkpoint


class Member(Fake):
    """Learns the faster the nearer its lr is to 1e-3."""

    def __init__(self, name, rate):
        super().__init__(name, None)
        self.config = {"job": {"name": name, "settings": {"optim.lr_g": rate}}}
        self.status, self.level, self.taken = "RUNNING", 10.0, 0
        self.run_metadata = SimpleNamespace(checkpoint_manager=self)
        self.experiment_tag, self.checkpoint_config = "", SimpleNamespace(num_to_keep=None)

    @property
    def rate(self):
        return self.config["job"]["settings"]["optim.lr_g"]

    def is_finished(self):
        return False

    def set_config(self, config):
        self.config = config

    def set_experiment_tag(self, tag):
        pass

    @property
    def _latest_checkpoint_result(self):
        raise AssertionError

    @_latest_checkpoint_result.setter
    def _latest_checkpoint_result(self, result):
        self.level, self.taken = result.checkpoint, self.taken + 1


def test_a_population_moves_to_the_known_best_and_takes_over_the_best_weights():
    apart = lambda members: statistics.median(abs(math.log10(member.rate / 1e-3)) for member in members)
    for seed in range(3):
        random, domain = np.random.default_rng(seed), Range(1e-6, 1e-1)
        members = [Member(f"{number:03d}", domain.draw(random)) for number in range(8)]
        start = apart(members)
        population, controller = schedulers.Population({"optim.lr_g": domain}, 1000, seed), Controller(members)
        for member in members:
            population.on_trial_add(controller, member)
        for step in range(1, 21):
            for member in members:
                member.level -= 0.3 * math.exp(-2 * abs(math.log10(member.rate / 1e-3)))
                population.on_trial_result(controller, member, {"images_seen": step * 1000, "kid": member.level})
        assert sum(member.taken for member in members) > 5
        assert apart(members) < 0.5 * start
        assert max(member.level for member in members) < 8  # a member that learns nothing takes over one that does
        assert {member.config["job"]["name"] for member in members} == {f"{number:03d}" for number in range(8)}


def test_weights_are_taken_over_from_a_member_that_was_nobodys_best_when_it_reported():
    members = [Member(name, 1e-3) for name in ("000", "001", "002")]
    population, controller = schedulers.Population({"optim.lr_g": Range(1e-6, 1e-1)}, 1000, 0), Controller(members)
    for member in members:
        population.on_trial_add(controller, member)
    for member, kid in zip(members, (1.0, 2.0, 3.0), strict=True):  # the first reports while nobody else is known
        member.level = kid
        population.on_trial_result(controller, member, {"images_seen": 1000, "kid": kid})
    assert [member.level for member in members] == [1.0, 1.0, 1.0]


# -- records and results -----------------------------------------------------------------------------------------------


def made_up(tmp_path, tiny, kids, finals=()):
    """A search folder with such trials, and finalists as (trial, kid)."""
    folder = SearchFolder(str(tmp_path / "search"))
    records = [
        search.new_record(f"{i:03d}", "trial", {"optim.lr_g": 1e-3 * (i + 1)}, 256) | {"kid": kid, "status": "done"}
        for i, kid in enumerate(kids)
    ]
    for index, (of, kid) in enumerate(finals):
        name = f"{of}-seed{index}"
        records.append(
            search.new_record(name, "finalist", {"seed": index}, 256, of=of) | {"kid": kid, "status": "done"}
        )
    folder.write("search.yaml", yaml.safe_dump({"search": search.Request("", "", 9).identity, "manifest_sha256": "0"}))
    for record in records:
        overrides = {key.replace(".", "__"): value for key, value in record["settings"].items()}
        RunFolder(folder.run(record).location).write("config.yaml", configs.to_yaml(tiny(**overrides)))
        folder.write_trial(record)
    return folder, records


def test_the_winner_is_chosen_by_the_mean_over_fresh_seeds_not_by_its_own_figure(tmp_path, tiny):
    finals = [("000", 0.9), ("000", 1.1), ("001", 0.6), ("001", 0.7), ("001", 0.8)]
    folder, records = made_up(tmp_path, tiny, [0.1, 0.5, 0.6], finals)
    rows = search.finalists(records)
    assert [row["name"] for row in rows] == ["001", "000"]
    # Student's t with two degrees of freedom: 4.3027 * 0.1 / sqrt(3)
    assert rows[0]["high"] - rows[0]["mean"] == pytest.approx(4.30265 * 0.1 / math.sqrt(3), rel=1e-4)
    record, why = search.winner(records)
    assert (record["of"], record["kid"]) == ("001", 0.6)
    assert "overlaps that of trial 000" in why
    search.write_results(folder, records, SPACE)
    best = (tmp_path / "search/best.yaml").read_text()
    assert best.startswith(f"# {why}")
    assert configs.load(file=tmp_path / "search/best.yaml").seed == 2
    table = pq.read_table(io.BytesIO(folder.read("results.parquet"))).to_pylist()
    assert len(table) == 8
    assert table[1]["optim.lr_g"] == 2e-3
    assert table[1]["kid"] == 0.5


def test_a_setting_that_is_a_number_here_and_a_word_there_is_a_column_of_words(tmp_path):
    folder = SearchFolder(str(tmp_path))
    settings = [{"loss.r1_gamma": 0.1, "seed": 1}, {"loss.r1_gamma": "auto", "seed": 2}, {"seed": 3}]
    records = [search.new_record(f"{i:03d}", "trial", each, 256) for i, each in enumerate(settings)]
    table = pq.read_table(io.BytesIO(search.results_table(folder, records))).to_pylist()
    assert [row["loss.r1_gamma"] for row in table] == ["0.1", "auto", None]
    assert [row["seed"] for row in table] == [1, 2, 3]


def test_importance_finds_what_the_objective_depends_on():
    found = search.importance(searched("random", trials=120), SPACE)
    assert sum(found.values()) == pytest.approx(1)
    assert set(sorted(found, key=found.get)[-2:]) == {"optim.lr_g", "model.name"}  # as in fake_kid
    assert search.importance(searched("random", trials=7), SPACE) == {}


def test_without_finalists_the_winner_is_said_to_flatter(tmp_path, tiny):
    _, records = made_up(tmp_path, tiny, [0.4, 0.2])
    record, why = search.winner(records)
    assert record["name"] == "001"
    assert "of one seed" in why
    assert search.winner([record | {"status": "failed", "kid": None}]) is None


def test_another_search_is_refused_by_the_keys_that_differ():
    request = search.Request("d", "o", 4, fixed={"total_images": 100})
    stored = {"search": request.identity}
    more = search.Request("d", "o", 40, workers=2, fixed={"total_images": 100}, finalists=5)
    search.check_same(stored, more.identity, "o")
    other = search.Request("d", "o", 4, fixed={"total_images": 200}, algorithm="random")
    with pytest.raises(Refused, match=r"another search: algorithm=random \(it has tpe\), fixed.total_images=200"):
        search.check_same(stored, other.identity, "o")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (
            ["--algorithm", "pbt", "--space", "model.name=cgan", "--finalists", "1"],
            "--finalists: --algorithm pbt has none",
        ),
        (
            ["--algorithm", "pbt", "--space", "model.name=cgan", "--scheduler", "none"],
            "--scheduler: --algorithm pbt has",
        ),
        (["--set", "data.resolution=64"], "data.resolution=64: DATA has 32"),
        (["--space", "model.name=cgan", "--space", "model.name=dcgan"], "--space model.name: given twice"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(phantoms, tmp_path, flags, reason):
    main = runpy.run_path(str(Path(__file__).parent.parent / "jobs/search.py"), run_name="job")["main"]
    with pytest.raises(Refused, match=reason):
        main(["--data", phantoms, "--out", str(tmp_path / "search"), "--trials", "2", *flags])
    assert list(tmp_path.iterdir()) == []


def test_what_lost_its_worker_twice_at_the_same_place_is_not_trained_again(tmp_path):
    folder = SearchFolder(str(tmp_path))
    lost = {"status": "failed", "reason": LOST_WORKER, "images_seen": 640}
    folder.write_trial(search.new_record("000", "trial", {}, 1000) | lost)
    ledger = search.Ledger(folder, print)
    assert ledger.records["000"]["status"] == "interrupted"
    ledger.add(ledger.records["000"] | lost)
    again = search.Ledger(folder, print).records["000"]
    assert again["status"] == "failed"
    assert "twice at the same place" in again["reason"]
    folder.write_trial(again | lost | {"images_seen": 960})  # it got further
    assert search.Ledger(folder, print).records["000"]["status"] == "interrupted"


def test_the_identity_of_a_search_survives_yaml():
    request = search.Request("d", "o", 4, fixed={"total_images": 100}, space=("model.name=cgan",))
    search.check_same(yaml.safe_load(yaml.safe_dump({"search": request.identity})), request.identity, "o")


def test_trials_are_packed_and_never_more_than_there_is_room_for():
    assert search.slots({"CPU": 8.0}, 1) == (8, "CPU")
    assert search.slots({"CPU": 8.0}, 3) == (2, "CPU")
    assert search.slots({"CPU": 64.0, "GPU": 4.0}, 2) == (2, "GPU")
    assert search.slots({"CPU": 64.0, "GPU": 4.0}, 2, use="cpu") == (32, "CPU")
    assert search.slots({"CPU": 8.0}, 1, at_once=3) == (3, "CPU")
    with pytest.raises(Refused, match="--workers-per-trial 3: the cluster has 2 CPUs"):
        search.slots({"CPU": 2.0}, 3)


def test_where_an_autoscaler_has_yet_to_make_room_it_has_to_be_said_for_what_and_how_much():
    for resources in ({}, {"CPU": 0.0}):
        with pytest.raises(
            Refused, match="no CPU and no GPU yet: say which to wait for, such as --use gpu --at-once 8"
        ):
            search.slots(resources, 1)
    with pytest.raises(Refused, match="--workers-per-trial 1: the cluster has 0 GPUs"):
        search.slots({"CPU": 2.0}, 1, use="gpu")
    assert search.slots({}, 2, use="gpu", at_once=8) == (8, "GPU")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", "out of memory"),
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate", "out of memory"),
        ("ActorDiedError: The actor died unexpectedly", "lost its worker"),
        ("ValueError: something else", "ValueError: something else"),
    ],
)
def test_the_reason_of_a_failure_is_told_in_few_words(error, reason):
    assert reason_of(error).startswith(reason)


class Gone:
    """A flag whose host died, as Ray tells of it."""

    read = SimpleNamespace(remote=lambda: None)


@pytest.mark.parametrize("error", [RayActorError(), GetTimeoutError()])
def test_a_trial_trains_on_where_the_flag_does_not_answer(error, monkeypatch):
    def get(reference, timeout):
        raise error

    monkeypatch.setattr("ray.get", get)
    wish = Wish(Gone())
    assert not wish.asked
    wish.asked = True
    assert wish.asked


def test_the_same_command_goes_on_with_what_lost_its_worker_and_leaves_other_failures(tmp_path):
    folder = SearchFolder(str(tmp_path))
    for name, reason in (("000", reason_of("ActorDiedError: node died")), ("001", "loss/D is nan")):
        record = search.new_record(name, "trial", {}, 256)
        folder.write_trial(record | {"status": "failed", "reason": reason, "images_seen": 64})
    lost, diverged = search.Ledger(folder, print).of_kind("trial")
    assert (lost["status"], lost["reason"], lost["images_seen"]) == ("interrupted", "", 64)
    assert diverged["status"] == "failed"


def test_what_w_and_b_did_not_take_is_told_once_for_all_trials(tmp_path):
    told = []
    ledger = search.Ledger(SearchFolder(str(tmp_path)), told.append)
    for name in ("000", "001"):
        ledger.add(search.new_record(name, "trial", {}, 1920))
        result = {"images_seen": 640, "kid": 1.0, "wandb": "W&B did not take everything"}
        ledger.on_trial_result(1, [], Fake(name, None), result)
    assert [line for line in told if isinstance(line, str)] == [
        "trial 000, maybe others too: W&B did not take everything"
    ]
    assert "wandb" not in ledger.records["000"]


def test_a_record_has_the_images_that_its_run_came_to(tmp_path):
    folder = SearchFolder(str(tmp_path))
    for name, kept, seen in (("000", 640, 704), ("001", 1920, 1920), ("002", 0, None)):
        folder.write_trial(search.new_record(name, "trial", {}, 1920) | {"images_seen": kept, "status": "stopped"})
        if seen is not None:
            lines = "".join(json.dumps({"images_seen": at}) + "\n" for at in (0, 640, seen))
            folder.write(f"trials/{name}/metrics.jsonl", lines + '{"images_s')
    search.Ledger(folder, print).settle()
    assert [record["images_seen"] for record in folder.trials()] == [704, 1920, 0]


def test_a_child_gets_the_donors_weights_figures_and_generator(tmp_path):
    donor, child = RunFolder(str(tmp_path / "a")), RunFolder(str(tmp_path / "b"))
    for seen in (100, 200):
        donor.write(f"checkpoints/{seen:012d}.pt", f"weights {seen}")
    donor.write("generator/model.safetensors", "g")
    donor.write("metrics.jsonl", "{}\n")
    assert take_over(donor, 100, child) == 100
    assert child.checkpoints() == [100]
    assert child.read("checkpoints/000000000100.pt") == b"weights 100"
    assert child.read("generator/model.safetensors") == b"g"
    assert take_over(donor, 50, RunFolder(str(tmp_path / "c"))) == 200  # dropped by the donor: its newest


def test_a_trial_has_the_figures_of_its_best_evaluation_so_far(tmp_path):
    trial = Trial.__new__(Trial)
    trial.setup({"job": {"name": "000", "settings": {}}}, Plan("data", str(tmp_path), "{}", "", 1, False), None)
    for seen, kid in ((100, 0.5), (200, 0.2), (300, 0.4)):
        others = {f"metric/{name}": seen for name in ("fid", "precision", "recall", "coverage")}
        trial._note({"images_seen": seen, "metric/kid": kid, "floor/kid": 0.01, **others})
    row = trial.row
    assert (row["images_seen"], row["kid_now"], row["floor"]) == (300, 0.4, 0.01)
    assert (row["kid"], row["kid_at"], row["fid"], row["coverage"]) == (0.2, 200, 200, 200)


@pytest.mark.parametrize("figures", [True, False])
def test_a_member_that_took_over_weights_goes_on_with_its_own_settings_wherever_the_search_ended(tmp_path, figures):
    """Between the takeover and its next figures too: its record still has its settings of before then."""
    plan = Plan("data", str(tmp_path), "{}", "", 1, False, segment=100)
    donor, folder = RunFolder(str(tmp_path / "trials/001")), SearchFolder(str(tmp_path))
    donor.write("checkpoints/000000000100.pt", "weights")
    donor.write("metrics.jsonl", "{}\n")
    seen = {"images_seen": 100, "kid": 0.5, "run": "001", "parent": "", "generation": 0, "settings": {"optim.lr_g": 3}}
    before, after = {"optim.lr_g": 1}, {"optim.lr_g": 2}

    def began(settings):
        trial = Trial.__new__(Trial)
        trial.setup({"job": {"name": "000", "settings": settings}}, plan, None)
        return trial

    trial = began(after)
    trial.load_checkpoint({"run": donor.location, "images_seen": 100, "row": seen})
    assert trial.row == seen | {"run": "000-after1", "parent": "001 at 100", "generation": 1, "settings": after}
    ledger = search.Ledger(folder, lambda change: None)
    ledger.add(search.new_record("000", "trial", before, 1000))
    tuned = SimpleNamespace(config={"job": {"name": "000"}})
    if figures:
        ledger.on_trial_result(0, [], tuned, trial._end("interrupted"))
    again = began(ledger.records["000"]["settings"])
    assert (again.settings, again.parent, again.place(again.generation)) == (after, "001 at 100", trial.place(1))
    ledger.on_trial_result(0, [], tuned, again._end("interrupted") | again._who())
    (step,) = ledger.records["000"]["lineage"]
    assert step == {"run": "000-after1", "from": "001 at 100", "settings": after, "before": before}
    assert ledger.records["000"]["settings"] == after


def test_a_trial_that_was_given_up_cannot_take_the_lease_of_the_one_after_it(tmp_path, tiny, monkeypatch):
    folder, plan = RunFolder(str(tmp_path / "run")), Plan("", "", "{}", "", 1, False)
    after: list[Lease] = []

    def fit(config, data, out, workers, on_event, *, owner, **more):
        worker = Lease(folder, owner)
        assert worker.renew()
        after.append(Lease(folder, seized(folder)))  # the search has given this trial up and begun it again
        assert after[-1].renew()
        with pytest.raises(Lost, match="took the run over"):
            worker.check()
        assert not worker.renew()
        return Outcome()

    monkeypatch.setattr("tune.trial.fit", fit)
    given_up = Training(tiny(), folder.location, plan, None)
    given_up.run()
    assert given_up.outcome == Outcome()
    after[0].check()
    after[0].end()
    assert folder.names(".lease") == []


def test_the_whole_space_is_the_default():
    assert Space().cells == space(True).cells
