"""A run without Ray: its folder, resuming bit for bit, the best generator, what happens when it diverges."""

import io
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medgan import config as configs
from medgan import run
from medgan import state as states
from medgan.data import shards
from medgan.data.loader import Batch, Order, open_split
from medgan.distributed import World
from medgan.folder import CheckpointError, RunFolder, Stuck
from medgan.lease import Lease, Lost
from medgan.loop import Diverged, Meter, due
from medgan.state import TrainState, ema_decay, open_checkpoint
from medgan.step import SCALARS, train_step
from medgan.tracking import read_rows

from .conftest import fill_up, small_disk, write_phantoms

pytestmark = pytest.mark.usefixtures("coarse_features")


def train(config, data, out, on_event=lambda event: None, **options):
    """What jobs/train.py does, on one process without Ray."""
    folder, manifest = RunFolder(str(out)), shards.read_manifest(data)[0]
    config = run.settled(config, manifest, gpu=False)
    folder.write("config.yaml", configs.to_yaml(config))
    folder.write("manifest.json", manifest.to_json())
    run.train(config, data, str(out), World(), on_event, **options)
    return folder


def last_checkpoint(folder):
    newest = folder.checkpoints()[-1]
    return open_checkpoint(folder.read(f"checkpoints/{newest:012d}.pt"))


def untimed_rows(folder):
    """The rows of a run without what the clock says."""
    rows = read_rows(Path(folder.location) / "metrics.jsonl")
    timed = ("time/", "resume/")
    return [
        {key: value for key, value in row.items() if not key.startswith(timed)}
        for row in rows
        if "resume/lost_s" not in row
    ]


def leaves(value, path=""):
    """Every tensor and number below a nested checkpoint."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from leaves(below, f"{path}.{key}")
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from leaves(below, f"{path}.{index}")
    else:
        yield path, value


def assert_same_bits(one, other):
    one, other = dict(leaves(one)), dict(leaves(other))
    assert one.keys() == other.keys()
    for key, value in one.items():
        same = torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        assert same, key


@pytest.mark.parametrize("preset", configs.PRESETS)
def test_a_run_leaves_the_folder_that_is_promised(preset, tiny, phantoms, tmp_path):
    events = []
    folder = train(tiny(preset), phantoms, tmp_path / "run", events.append)
    names = {"config.yaml", "metrics.jsonl", "samples", "checkpoints", "generator", "report.html"}
    assert names <= set(folder.names())
    assert folder.names("generator") == ["README.md", "config.yaml", "model.safetensors", "samples.png"]
    assert "real.png" not in folder.names("samples")
    rows = read_rows(tmp_path / "run/metrics.jsonl")
    assert rows[0]["images_seen"] == 0
    assert {"metric/kid", "metric/fid", "floor/kid", "floor/fid"} <= rows[0].keys()
    assert [row["images_seen"] for row in rows if "metric/kid" in row] == [0, 128, 256]
    assert [row["images_seen"] for row in rows if "loss/D" in row] == list(range(32, 257, 32))
    assert {"loss/G", "logits/real", "logits/fake", "time/images_per_s", "time/data_wait_s"} <= rows[1].keys()
    assert events[-1]["event"] == "done"
    assert not any("patient" in key or "image_id" in key for row in rows for key in row)
    assert "`phantom_cxr`" in (tmp_path / "run/generator/README.md").read_text()


@pytest.mark.parametrize("preset", configs.AXES["model.name"])
def test_a_run_that_stopped_anywhere_goes_on_bit_for_bit(preset, tiny, phantoms, tmp_path):
    config = tiny(preset)

    class Killed(BaseException):
        pass

    def kill_at(images):
        def on_event(event):
            if event["event"] == "progress" and event["images_seen"] == images:
                raise Killed

        return on_event

    whole = train(config, phantoms, tmp_path / "whole")
    for images in (96, 224):  # once before a checkpoint is due, once after an evaluation
        with pytest.raises(Killed):
            train(config, phantoms, tmp_path / "killed", kill_at(images))
    resumed = train(config, phantoms, tmp_path / "killed")
    assert_same_bits(last_checkpoint(whole), last_checkpoint(resumed))
    assert untimed_rows(whole) == untimed_rows(resumed)
    assert whole.read("generator/model.safetensors") == resumed.read("generator/model.safetensors")


def test_a_longer_run_is_the_same_as_one_that_was_asked_for_at_once(tiny, phantoms, tmp_path):
    train(tiny(total_images=128), phantoms, tmp_path / "twice")
    twice = train(tiny(total_images=256), phantoms, tmp_path / "twice")
    once = train(tiny(total_images=256), phantoms, tmp_path / "once")
    a, b = last_checkpoint(once), last_checkpoint(twice)
    assert_same_bits({k: a[k] for k in a if k != "config"}, {k: b[k] for k in b if k != "config"})


def test_a_run_may_start_from_anothers_weights(tiny, phantoms, tmp_path):
    first = train(tiny(), phantoms, tmp_path / "first")
    figures = {}
    for name, options in (("fresh", {}), ("tuned", {"init": first.location})):
        train(tiny(seed=1, total_images=128), phantoms, tmp_path / name, **options)
        figures[name] = read_rows(tmp_path / name / "metrics.jsonl")[0]
        assert figures[name]["images_seen"] == 0
    last = read_rows(tmp_path / "first/metrics.jsonl")[-1]["metric/kid"]
    assert figures["tuned"]["metric/kid"] == pytest.approx(last, rel=0.2)
    assert figures["tuned"]["metric/kid"] != figures["fresh"]["metric/kid"]
    folder = train(tiny(seed=1, total_images=256), phantoms, tmp_path / "tuned")
    sha256 = shards.read_manifest(phantoms)[1]
    assert last_checkpoint(folder)["begun_with"] == [sha256]
    assert f"begun with weights trained on manifest (SHA-256) | {sha256}" in folder.read("generator/README.md").decode()


@pytest.mark.parametrize("damage", ["cut short", "a bit flipped"])
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_is_taken(damage, tiny, phantoms, tmp_path):
    whole = train(tiny(), phantoms, tmp_path / "whole")
    folder = train(tiny(total_images=192), phantoms, tmp_path / "run")
    newest = tmp_path / "run/checkpoints/000000000192.pt"
    content = bytearray(newest.read_bytes())
    tensor = open_checkpoint(bytes(content))["generator_optimizer"]["state"][0]["exp_avg"]
    content[content.index(bytes(tensor.untyped_storage()))] ^= 1  # it opens all the same
    assert open_checkpoint(bytes(content))["images_seen"] == 192
    newest.write_bytes(content if damage == "a bit flipped" else content[:500])
    events = []
    train(tiny(), phantoms, tmp_path / "run", events.append)
    said = {event["event"]: event["images_seen"] for event in events if event["event"] in ("damaged", "resumed")}
    assert said == {"damaged": 192, "resumed": 128}
    assert "SHA-256" in next(event["reason"] for event in events if event["event"] == "damaged")
    assert (tmp_path / "run/checkpoints/000000000192.pt.damaged").exists()
    a, b = last_checkpoint(whole), last_checkpoint(folder)
    assert_same_bits(a["generator"], b["generator"])


def test_checkpoints_of_another_medgan_are_refused_and_nothing_is_touched(tiny, phantoms, tmp_path, monkeypatch):
    train(tiny(total_images=128), phantoms, tmp_path / "run")
    files = {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()}
    monkeypatch.setattr(states, "SCHEMA_VERSION", states.SCHEMA_VERSION + 1)
    with pytest.raises(Stuck, match="at 128 images: checkpoint schema 3, this medgan reads 4; go on with the medgan"):
        train(tiny(total_images=128), phantoms, tmp_path / "run")
    assert {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()} == files


def test_a_run_whose_every_checkpoint_is_damaged_does_not_begin_anew(tiny, phantoms, tmp_path):
    folder = train(tiny(total_images=128), phantoms, tmp_path / "run")
    rows, names = folder.read("metrics.jsonl"), sorted((tmp_path / "run/checkpoints").glob("*.pt"))
    whole = {path: path.read_bytes() for path in names}
    for path in names:
        path.write_bytes(b"PK")
    for _ in range(2):  # and is not forgotten by the next command
        with pytest.raises(Stuck, match=r"no checkpoint opens; set aside: checkpoints/000000000064.pt.damaged, .*128"):
            train(tiny(), phantoms, tmp_path / "run")
    assert folder.read("metrics.jsonl") == rows
    for path in names:
        path.write_bytes(whole[path])
    events = []
    train(tiny(), phantoms, tmp_path / "run", events.append)
    assert {"event": "resumed", "images_seen": 128} in events


def test_checksums_are_those_of_sha256sum_and_go_with_their_checkpoints(tiny, phantoms, tmp_path):
    train(tiny(checkpoint__keep=1), phantoms, tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert [name.partition(".")[0] for name in names[::2]] == [name.partition(".")[0] for name in names[1::2]]
    checked = subprocess.run(
        ["sha256sum", "-c", *(name for name in names if name.endswith("sha256"))],
        cwd=tmp_path / "run/checkpoints",
        capture_output=True,
        text=True,
        check=True,
    )
    assert checked.stdout.count(": OK") == len(names) // 2


def test_a_storage_that_fills_ends_the_run_with_one_line_and_the_last_good_checkpoint_opens(tiny, phantoms, tmp_path):
    with small_disk(tmp_path / "disk", "size=20m") as disk:
        events = []

        def fill(event):
            events.append(event)
            if event["event"] == "saved" and event["images_seen"] == 128:
                fill_up(disk)

        folder = train(tiny(total_images=2560), phantoms, disk / "run", fill)
        assert events[-1]["event"] == "failed"
        assert events[-1]["reason"] == f"{disk}/run cannot be written: No space left on device"
        assert max(event.get("images_seen", 0) for event in events) <= 320  # it stopped at its next report
        assert last_checkpoint(folder)["images_seen"] == 128
        (disk / "others").unlink()
        train(tiny(), phantoms, disk / "run", events.append)
        assert events[-1]["event"] == "done"


@pytest.mark.parametrize("root", ["", "file://"])
def test_a_run_whose_lease_is_lost_saves_nothing_more(root, tiny, phantoms, tmp_path):
    folder, events = RunFolder(f"{root}{tmp_path}/run"), []
    theirs = ("metrics.jsonl", "order.jsonl", "report.html", "generator/README.md", "samples/000000.png")

    def overtake(event):
        events.append(event)
        if event["event"] == "saved" and event["images_seen"] == 128:
            folder.write(".lease/first.beat", "ended")
            assert Lease(folder, "second").renew()
            for name in theirs:
                folder.write(name, "the successor's")

    assert Lease(folder, "other").renew()
    with pytest.raises(Lost, match="another command took the run over"):
        train(tiny(), phantoms, folder.location, owner="first")
    folder.delete(".lease")
    config = tiny(total_images=2560, tracking__sample_ids=True)
    train(config, phantoms, folder.location, overtake, owner="first")
    assert (events[-1]["event"], events[-1]["kind"]) == ("failed", "Lost")
    assert [folder.read(name) for name in theirs] == [b"the successor's"] * len(theirs)
    assert folder.names("samples") == ["000000.png"]
    assert "took the run over" in events[-1]["reason"]
    assert folder.checkpoints()[-1] == 128


def test_a_notice_saves_a_checkpoint_between_reports_and_the_run_goes_on(tiny, phantoms, tmp_path):
    whole, asked, events = train(tiny(), phantoms, tmp_path / "whole"), [], []

    def noticed():
        asked.append(len(asked))
        return len(asked) == 3  # every step asks until the first report: here the third, at 48 images

    config = tiny(tracking__interval_kimg=0.128, checkpoint__interval_kimg=0.128)
    folder = train(config, phantoms, tmp_path / "run", events.append, noticed=noticed)
    saved = [event["images_seen"] for event in events if event["event"] == "saved"]
    assert saved == [48, 128, 256]
    assert events[-1]["event"] == "done"
    assert whole.read("generator/model.safetensors") == folder.read("generator/model.safetensors")


def test_the_rows_that_steps_used_are_written_down_with_their_checkpoints(tiny, phantoms, tmp_path):
    class Killed(BaseException):
        pass

    def kill(event):
        if event["event"] == "progress" and event["images_seen"] == 224:
            raise Killed

    config = tiny(tracking__sample_ids=True)
    with pytest.raises(Killed):
        train(config, phantoms, tmp_path / "run", kill)
    assert read_rows(tmp_path / "run/order.jsonl")[-1]["images_seen"] == 176  # the checkpoint is at 192
    train(config, phantoms, tmp_path / "run")
    lines = read_rows(tmp_path / "run/order.jsonl")
    assert [line["images_seen"] for line in lines] == list(range(0, 256, 16))
    split = open_split(phantoms, "train")
    order = Order(split.labels, 0)
    assert [line["rows"] for line in lines] == [order.batch(seen, 16).tolist() for seen in range(0, 256, 16)]
    assert len({row for line in lines for row in line["rows"]}) == len(split)  # an epoch has 192


def test_a_generator_that_only_gets_worse_is_exported_all_the_same(tiny, phantoms, tmp_path, monkeypatch):
    scores = iter([0.0, 1.0, 2.0, 3.0])  # the floor, untrained, and after
    monkeypatch.setattr(run, "fidelity", lambda real, fake: {"kid": next(scores), "fid": 1.0})
    folder = train(tiny(), phantoms, tmp_path / "run")
    assert last_checkpoint(folder)["best"]["images_seen"] == 128
    assert "model.safetensors" in folder.names("generator")


def test_the_newest_checkpoints_and_the_best_stay(tiny, phantoms, tmp_path):
    config = tiny(checkpoint__keep=1, total_images=512)
    folder = train(config, phantoms, tmp_path / "run")
    best = last_checkpoint(folder)["best"]
    assert folder.checkpoints() == sorted({512, best["images_seen"]} - {0})
    figures = {
        r["images_seen"]: r["metric/kid"] for r in read_rows(tmp_path / "run/metrics.jsonl") if "metric/kid" in r
    }
    assert best["kid"] == min(figures.values())
    assert figures[best["images_seen"]] == best["kid"]


def test_a_run_that_diverges_stops_and_keeps_the_last_good_checkpoint(tiny, phantoms, tmp_path, monkeypatch):
    original = run.loop.train_step

    def poisoned(state, batch):
        scalars = original(state, batch)
        if state.images_seen == 208:
            with torch.no_grad():
                next(state.generator.module.parameters()).fill_(float("nan"))
        return scalars

    monkeypatch.setattr(run.loop, "train_step", poisoned)
    with pytest.raises(Diverged, match="at 224 images"):
        train(tiny(), phantoms, tmp_path / "run")
    folder = RunFolder(str(tmp_path / "run"))
    assert folder.checkpoints()[-1] == 192
    assert all(v.isfinite().all() for _, v in leaves(last_checkpoint(folder)) if isinstance(v, torch.Tensor))


def test_a_run_may_be_a_uri(tiny, phantoms, tmp_path):
    uri = f"file://{tmp_path}/run"
    folder = train(tiny(total_images=128), phantoms, uri)
    assert folder.checkpoints() == [64, 128]
    assert len(read_rows(tmp_path / "run/metrics.jsonl")) == 6
    train(tiny(), phantoms, uri)
    seen = [row["images_seen"] for row in read_rows(tmp_path / "run/metrics.jsonl")]
    assert seen == sorted(seen)
    assert seen[-1] == 256


def test_a_run_that_ends_early_this_time_keeps_its_length(tiny, phantoms, tmp_path):
    events, config = [], tiny(total_images=128)
    folder = train(config, phantoms, tmp_path / "run", events.append, until=64)
    assert (events[-1]["event"], events[-1]["images_seen"]) == ("done", 64)
    assert last_checkpoint(folder)["config"] == config.dump()
    train(config, phantoms, tmp_path / "run", events.append, until=192)
    assert (events[-1]["event"], events[-1]["images_seen"]) == ("done", 128)


def test_a_checkpoint_opens_without_running_code_and_damage_is_said(tiny):
    state = TrainState.create(tiny(), World())
    content = state.save()
    assert open_checkpoint(content)["images_seen"] == 0
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        open_checkpoint(content[: len(content) // 2])


def test_loading_restores_every_tensor(tiny):
    state, other = TrainState.create(tiny(), World()), TrainState.create(tiny(seed=1), World())
    other.load(state.save())
    assert_same_bits(
        {k: v for k, v in open_checkpoint(state.save()).items() if k != "config"},
        {k: v for k, v in open_checkpoint(other.save()).items() if k != "config"},
    )


def test_ema_follows_its_formula():
    ema = configs.Ema(half_life_kimg=1, ramp_up=0)
    assert ema_decay(ema, 100, 5000) ** 10 == pytest.approx(0.5)
    ramped = configs.Ema(half_life_kimg=1, ramp_up=0.05)
    assert ema_decay(ramped, 100, 2000) == pytest.approx(0.5 ** (100 / 100))
    assert ema_decay(configs.Ema(half_life_kimg=0), 100, 2000) == 0


def test_ema_is_the_weighted_mean_of_the_weights(tiny):
    state = TrainState.create(tiny(ema__half_life_kimg=0.016, ema__ramp_up=0), World())
    start = [p.clone() for p in state.ema.parameters()]
    with torch.no_grad():
        for p in state.generator.module.parameters():
            p.add_(1)
    state.update_ema()  # one batch of 16 images is one half-life
    for before, after in zip(start, state.ema.parameters(), strict=True):
        assert torch.allclose(after, before + 0.5)


def test_what_is_due_happens_at_the_first_batch_at_or_past_the_interval():
    assert [n for n in range(0, 640, 64) if due(0.1, n, n + 64)] == [64, 192, 256, 384, 448, 576]
    assert due(0.1, 99, 100)
    assert not due(0.1, 100, 199)


def test_a_rows_mean_is_over_the_steps_that_had_it():
    meter = Meter()
    for step in range(4):
        penalised = step % 2 == 0
        scalars = {"loss/D": 1.0 + step, "penalty/r1": 3.0 if penalised else 0.0}
        having = [name for name in scalars if name == "loss/D" or penalised]
        meter.add(torch.tensor([scalars.get(name, 0.0) for name in SCALARS], dtype=torch.float64), 16, having)
    row = meter.read(meter.total.tolist())
    assert {name: value for name, value in row.items() if name in SCALARS} == {"loss/D": 2.5, "penalty/r1": 3.0}


def test_figures_of_another_identity_start_a_new_search_for_the_best(tiny, phantoms, tmp_path):
    train(tiny(total_images=128), phantoms, tmp_path / "run")
    folder = train(tiny(total_images=256, evaluate__n=20), phantoms, tmp_path / "run")
    best = last_checkpoint(folder)["best"]
    assert best["identity"]["n"] == 20
    assert best["images_seen"] == 256


@pytest.mark.parametrize(
    ("flags", "gpu", "precision"),
    [("sse avx512_bf16", False, "bfloat16"), ("sse avx2", False, "float32"), ("sse", True, "bfloat16")],
)
def test_precision_is_settled_by_the_hardware(tmp_path, flags, gpu, precision):
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    assert run.precision_of("auto", gpu, tmp_path / "cpuinfo") == precision
    assert run.precision_of("float64", gpu, tmp_path / "cpuinfo") == "float64"


def test_a_half_written_last_row_is_cut(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps({"images_seen": 1}) + '\n{"images_se')
    assert read_rows(file) == [{"images_seen": 1}]


def test_labels_are_annealed_in_and_no_best_is_chosen_before_they_have_their_full_strength(tiny, phantoms, tmp_path):
    annealed = tiny(model__anneal_from_kimg=0.064, model__anneal_to_kimg=0.192)
    assert [annealed.label_strength(seen) for seen in (0, 64, 128, 192, 256)] == [0, 0, 0.5, 1, 1]
    folder = train(annealed, phantoms, tmp_path / "run")
    best = last_checkpoint(folder)["best"]["images_seen"]
    assert best == 256  # evaluated at 128, at half strength, and at 256
    early = train(tiny(model__anneal_to_kimg=0.24), phantoms, tmp_path / "early", stopping=lambda: True)
    assert not early.exists("generator/model.safetensors")


def test_without_strength_labels_change_neither_network(tiny):
    config = tiny(model__anneal_from_kimg=0.1, model__anneal_to_kimg=0.2)
    weights = []
    for hot in (0, 1):
        state = TrainState.create(config, World())
        random = torch.Generator().manual_seed(0)
        for _ in range(3):
            pixels = torch.randint(0, 256, (16, 1, 32, 32), dtype=torch.uint8, generator=random)
            train_step(state, Batch(pixels, torch.eye(2)[[hot] * 16], None))
        weights.append(torch.cat([p.flatten() for p in state.generator.module.parameters()]))
    assert torch.equal(*weights)


def test_rare_classes_can_be_shown_more_often(tiny, phantoms, tmp_path, monkeypatch):
    config = tiny(data__balance=1.0)
    assert config.data.balance == 1.0  # filling in what DATA has keeps it
    asked = []

    def order(labels, seed, balance):
        asked.append(balance)
        return Order(labels, seed, balance)

    monkeypatch.setattr(run, "Order", order)
    train(config, phantoms, tmp_path / "run")
    assert asked == [1.0]
    assert read_rows(tmp_path / "run/metrics.jsonl")[-1]["images_seen"] == 256


@pytest.mark.heavy
def test_figures_by_class_stand_beside_the_overall_one(tiny, tmp_path):
    data = str(write_phantoms(tmp_path / "data", count=600))
    manifest, sha256 = shards.read_manifest(data)
    config = configs.for_data(
        tiny(evaluate__n=64).model_copy(update={"data": configs.Data()}),
        resolution=32,
        channels=1,
        classes=manifest.classes,
        manifest_sha256=sha256,
    )
    train(config, data, tmp_path / "run")
    first = read_rows(tmp_path / "run/metrics.jsonl")[0]
    for name in manifest.classes:
        assert first[f"metric/kid/{name}"] > 10 * abs(first[f"floor/kid/{name}"])


def test_real_images_are_written_only_when_asked_for(tiny, phantoms, tmp_path):
    folder = train(tiny(tracking__real_images=True, tracking__grid_columns=4), phantoms, tmp_path / "run")
    shown = np.asarray(Image.open(io.BytesIO(folder.read("samples/real.png"))))
    split = open_split(phantoms, "train")
    assert shown.shape == (2 * 34 + 2, 4 * 34 + 2)
    tile = shown[2:34, 2:34]
    rows = [index for index, image in enumerate(split.pixels) if np.array_equal(image[0], tile)]
    assert rows
    assert split.labels[rows[0], 0] == 1
