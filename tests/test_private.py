"""Private training: what a patient adds is clipped as one, hidden in noise, drawn independently and accounted for."""

import secrets

import numpy as np
import pytest
import torch
from opacus.accountants import RDPAccountant

from jobs import train as job
from medgan import config as configs
from medgan import private, run, step
from medgan.config import ConfigError, Refused
from medgan.data import shards
from medgan.data.loader import Split
from medgan.distributed import World
from medgan.folder import RunFolder
from medgan.losses import LOSSES
from medgan.private import Ledger
from medgan.state import TrainState, open_checkpoint
from medgan.step import cut, draw, learn_discriminator, train_step
from medgan.tracking import read_rows

from . import ranks
from .conftest import PRIVATE, TINY
from .test_run import train

pytestmark = pytest.mark.usefixtures("coarse_features")
SILENT = 1e-12
PATIENTS, BATCH = 40, 8
HAVING = frozenset({"loss/D", "loss/G"})


def config_of(model="cgan", **overrides):
    group = {} if model == "dcgan" else {"model.stddev_group": 1}
    norm = {"model.norm_d": "none"} if model == "dcgan" else {}
    chosen = {**TINY, "model.name": model, "precision": "float64", "global_batch": BATCH, **group, **norm}
    chosen |= {f"privacy.dp.{key}": value for key, value in PRIVATE.items()}
    chosen |= {key.replace("__", "."): value for key, value in overrides.items()}
    return configs.for_data(
        configs.load(overrides=chosen), resolution=32, channels=1, classes=("a", "b"), manifest_sha256="0" * 64
    )


def films():
    """(a split of 60 images, the patient of each: the last twenty of 40 have two)."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (60, 1, 32, 32), dtype=np.uint8)
    labels = np.eye(2, dtype=np.uint8)[random.integers(0, 2, 60)]
    return Split(pixels, labels, "train", None), np.concatenate([np.arange(40), np.arange(20, 40)])


def a_lot(config, world=None):
    """A batch with somebody in it."""
    split, patients = films()
    return next(batch for batch in private.lots(split, patients, config, world or World()) if len(batch.rows) > 2)


def by_sample(state, batch):
    """D's gradients from a batch before the step, by sample: {name: (m, ...)}."""
    (piece,) = cut(state, batch)
    state.discriminator.optimizer.zero_grad(set_to_none=True)
    learn_discriminator(state, piece, draw(state, piece, HAVING, learning=False), HAVING)
    return {name: p.grad_sample.clone() for name, p in state.discriminator.module.named_parameters()}


@pytest.mark.parametrize("loss", ["bce", "hinge"])
@pytest.mark.parametrize("model", configs.AXES["model.name"])
def test_the_pair_of_a_patient_is_clipped_as_one(model, loss):
    """What the optimizer is given, against each sample's gradient by plain autograd, clipped by hand."""
    clip = 0.05
    config = config_of(model, loss__name=loss, privacy__dp__noise=SILENT, privacy__dp__clip=clip)
    state = TrainState.create(config, World())
    batch = a_lot(config)
    (piece,) = cut(state, batch)
    fakes, w = draw(state, piece, HAVING, learning=False)
    state.discriminator.optimizer.zero_grad(set_to_none=True)
    learn_discriminator(state, piece, (fakes, w), HAVING)
    state.discriminator.optimizer.pre_step()
    plain = TrainState.create(config.model_copy(update={"privacy": configs.Privacy()}), World()).discriminator.module
    weights, norms = list(plain.parameters()), []
    wanted = [torch.zeros_like(weight) for weight in weights]
    for index, place in enumerate(piece.beside):
        real = plain(piece.real[index : index + 1], piece.real_labels[index : index + 1])
        fake = plain(fakes[place : place + 1], piece.labels[place : place + 1])
        gradients = torch.autograd.grad(LOSSES[loss].discriminator(real, fake).sum(), weights, allow_unused=True)
        gradients = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients, strict=True)]
        norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
        for total, gradient in zip(wanted, gradients, strict=True):
            total += gradient * min(1.0, clip / (norms[-1] + 1e-6)) / BATCH
    assert max(norms) > clip
    for ours, by_hand in zip(state.discriminator.module.parameters(), wanted, strict=True):
        assert torch.allclose(ours.grad, by_hand, rtol=1e-6, atol=1e-10)


def test_every_weight_steps_by_its_own_gradient():
    """Adam's first step is lr * g / (|g| + eps), also where a weight's gradient lies in another memory order."""
    config = config_of("cgan", privacy__dp__noise=SILENT)
    state = TrainState.create(config, World())
    for _ in range(2):  # the second time after a checkpoint was taken up
        (piece,) = cut(state, a_lot(config))
        before = [p.detach().clone() for p in state.discriminator.module.parameters()]
        state.discriminator.optimizer.zero_grad(set_to_none=True)
        learn_discriminator(state, piece, draw(state, piece, HAVING, learning=False), HAVING)
        fresh = state.save()
        state.discriminator.step(config, 0)
        for parameter, old in zip(state.discriminator.module.parameters(), before, strict=True):
            wanted = -config.optim.lr_d * parameter.grad / (parameter.grad.abs() + config.optim.eps)
            assert torch.allclose(parameter.detach() - old, wanted, rtol=0, atol=1e-6)
        state = TrainState.create(config, World())
        state.load(fresh)


def test_nobody_else_changes_what_a_patient_adds():
    config = config_of()
    whole = a_lot(config)
    alone = private.Batch(whole.pixels[1:2], whole.labels[1:2], whole.rows[1:2], whole.places[1:2])
    together, single = (by_sample(TrainState.create(config, World()), batch) for batch in (whole, alone))
    for name, gradient in single.items():
        assert torch.allclose(together[name][1:2], gradient, rtol=1e-9, atol=1e-12), name
        assert len(together[name]) == len(whole.rows)


def test_noise_has_the_deviation_that_is_accounted_for_and_comes_from_the_operating_system():
    noise, clip = 3.0, 0.5
    drawn = []
    for _ in range(2):
        state = TrainState.create(config_of(privacy__dp__noise=noise, privacy__dp__clip=clip), World())
        state.discriminator.optimizer.zero_grad(set_to_none=True)
        state.discriminator.nobody()
        state.discriminator.optimizer.pre_step()
        drawn.append(torch.cat([p.grad.flatten() for p in state.discriminator.module.parameters()]) * BATCH)
    assert len(drawn[0]) > 2000
    for some in drawn:
        assert abs(float(some.std()) / (noise * clip) - 1) < 5 / (2 * len(some)) ** 0.5
        assert abs(float(some.mean())) < 5 * noise * clip / len(some) ** 0.5
    assert abs(float(torch.corrcoef(torch.stack(drawn))[0, 1])) < 0.1


def test_every_patient_is_drawn_as_often_with_one_of_their_images_whoever_else_is():
    config = config_of()
    split, patients = films()
    lots, steps = private.lots(split, patients, config, World()), 4000
    seen = np.zeros((steps, PATIENTS), int)
    images, places, choices = np.zeros(60, int), np.zeros(BATCH, int), np.zeros((steps, 2), int)
    for number in range(steps):
        batch = next(lots)
        np.add.at(seen[number], patients[batch.rows], 1)
        np.add.at(images, batch.rows, 1)
        np.add.at(places, batch.places, 1)
        choices[number] = (batch.rows >= 40).sum(), (batch.rows >= 20).sum()  # second images, of patients with two
        assert np.array_equal(batch.pixels.numpy(), split.pixels[batch.rows])
    rate = BATCH / PATIENTS
    assert seen.max() == 1
    assert np.abs(seen.mean(0) - rate).max() < 5 * (rate * (1 - rate) / steps) ** 0.5
    sizes = seen.sum(1)
    assert abs(sizes.var() / (PATIENTS * rate * (1 - rate)) - 1) < 0.15  # binomial: drawn independently
    two = images[20:40] / (images[20:40] + images[40:])
    assert np.abs(two - 0.5).max() < 5 * 0.5 / (rate * steps) ** 0.5
    second, of = choices.T
    assert abs(((second - of / 2) ** 2).sum() / (of / 4).sum() - 1) < 0.15  # which image, too: each for itself
    assert np.abs(places / places.sum() - 1 / BATCH).max() < 0.01


def test_the_ledger_agrees_with_opacus_and_ends_before_the_budget():
    config = private.settled(config_of(privacy__dp__noise=None, privacy__dp__delta=None, total_images=800), PATIENTS)
    dp = config.privacy.dp
    assert dp.delta == pytest.approx(0.1 / PATIENTS)
    ledger = private.opened(config_of(privacy__dp__noise=2.0, privacy__dp__epsilon=9.0, total_images=800), PATIENTS)
    accountant = RDPAccountant()
    for _ in range(ledger.most):
        assert not ledger.spent
        ledger.charge(1)
        accountant.step(noise_multiplier=2.0, sample_rate=BATCH / PATIENTS)
    assert ledger.spent
    assert ledger.epsilon() == accountant.get_epsilon(1e-5) <= 9.0
    ledger.charge(1)
    assert ledger.epsilon() > 9.0


def test_noise_is_the_least_with_which_all_images_fit_into_the_budget():
    config = config_of(privacy__dp__noise=None, privacy__dp__epsilon=5.0, total_images=800)
    config = private.settled(config, PATIENTS)
    ledger = private.opened(config, PATIENTS)
    assert ledger.most >= 100
    assert 4.95 < Ledger(ledger.noise, ledger.rate, ledger.delta, ledger.most, steps=100).epsilon() <= 5.0
    with pytest.raises(ConfigError, match="global_batch=8: train has 7 patients"):
        private.settled(config, 7)
    with pytest.raises(ConfigError, match=r"privacy.dp.noise=0.1: one step costs more than privacy.dp.epsilon=0.5"):
        private.opened(config_of(privacy__dp__noise=0.1, privacy__dp__epsilon=0.5), PATIENTS)


def some_steps(out, world):
    """Twelve steps in which everybody draws the same, almost without noise."""
    config = config_of(privacy__dp__noise=SILENT, global_batch=4)
    state = TrainState.create(config, world)
    state.ledger = Ledger(1.0, 0.1, 1e-5, 100)
    split, patients = films()
    lots = private.lots(split, patients, config, world)
    sizes = []
    for _ in range(12):
        batch = next(lots)
        sizes.append(len(batch.rows))
        train_step(state, batch)
    networks = {"G": state.generator.module, "D": state.discriminator.module}
    weights = {f"{n}.{k}": v for n, network in networks.items() for k, v in network.state_dict().items()}
    torch.save({"weights": weights, "sizes": sizes, "steps": state.ledger.steps}, f"{out}.{world.rank}")


def worker(rank, out):
    secrets.randbits = lambda bits: 7
    secrets.token_bytes = lambda count: np.random.default_rng(7).bytes(count)
    world = World.current()
    some_steps(out, world)
    # Noise is added once, whatever the number of workers.
    state = TrainState.create(config_of(privacy__dp__noise=3.0), world)
    state.discriminator.optimizer.zero_grad(set_to_none=True)
    state.discriminator.nobody()
    state.discriminator.optimizer.pre_step()
    if world.size > 1:
        state.discriminator.optimizer.reduce_gradients()
    noise = torch.cat([p.grad.flatten() for p in state.discriminator.module.parameters()])
    torch.save(noise, f"{out}.noise.{rank}")


@pytest.mark.heavy
def test_two_workers_train_and_account_as_one(tmp_path):
    found, noise = {}, {}
    for size in (1, 2):
        out = tmp_path / str(size)
        ranks.run(size, worker, str(out))
        found[size] = [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(size)]
        noise[size] = [torch.load(f"{out}.noise.{rank}", weights_only=True) for rank in range(size)]
    (one,), (first, second) = found[1], found[2]
    assert [a + b for a, b in zip(first["sizes"], second["sizes"], strict=True)] == one["sizes"]
    assert 0 in first["sizes"] + second["sizes"], "a worker without anybody is part of the test"
    for key, weight in one["weights"].items():
        assert torch.allclose(first["weights"][key], weight, rtol=0, atol=1e-9), key
        assert torch.equal(first["weights"][key], second["weights"][key]), key
    assert one["steps"] == first["steps"] == second["steps"] == 12
    assert torch.allclose(noise[1][0], noise[2][0], rtol=1e-12)
    assert torch.equal(*noise[2])


def test_noise_comes_from_more_than_the_32_bits_that_torch_takes_of_a_seed(monkeypatch):
    count = 100_000
    first, second = (torch.randn(count, generator=private.unforeseen(torch.device("cpu"))) for _ in range(2))
    assert abs(float(first @ second)) / count < 0.02
    assert float(first.mean()) == pytest.approx(0, abs=0.02)
    assert float(first.var()) == pytest.approx(1, abs=0.02)
    state = private.unforeseen(torch.device("cpu")).get_state().numpy()
    words = state[private.MT19937].view(np.uint64)
    assert len(np.unique(words)) > 620
    assert words.max() < 2**32
    own = np.random.default_rng(0).bytes(624 * 4)
    for changed in (0, 623):  # every word counts
        other = bytearray(own)
        other[4 * changed + 3] ^= 128
        drawn = []
        for content in (own, bytes(other)):
            monkeypatch.setattr(private.secrets, "token_bytes", lambda _, content=content: content)
            drawn.append(torch.rand(2000, generator=private.unforeseen(torch.device("cpu"))))
        assert not torch.equal(*drawn)


@pytest.fixture
def strict(tiny):
    """strict(key=value, ...) -> a settled private config for the phantoms."""

    def make(patients, **overrides):
        chosen = {"privacy__dp__epsilon": 20.0, "precision": "auto", "model__stddev_group": 1, **overrides}
        config = tiny(loss__r1_gamma=0.0, **chosen)
        return run.settled(config, shards.Manifest("", (), 32, 1, {}, patients={"train": patients}), gpu=False)

    return make


@pytest.mark.parametrize(("manifest", "before"), [("same", []), ("0" * 64, ["same"]), ("0" * 64, ["1" * 64])])
def test_it_may_not_begin_with_weights_learnt_from_the_same_images(strict, tiny, tmp_path, manifest, before):
    config = strict(1000)
    known = [config.data.manifest_sha256 if one == "same" else one for one in (manifest, *before)]
    data = config.data.model_copy(update={"manifest_sha256": known[0]})
    other = config.model_copy(update={"data": data, "privacy": tiny().privacy})
    folder = RunFolder(str(tmp_path / "other"))
    folder.write("config.yaml", configs.to_yaml(other))
    state = TrainState.create(other, World())
    state.begun_with = known[1:]
    folder.save_checkpoint(64, state.save(), 2, None)
    if config.data.manifest_sha256 in known:
        with pytest.raises(Refused, match="learnt from these very images, which epsilon would not count"):
            job.check_init(folder, config)
        job.check_init(folder, other)  # not private: as it likes
    else:
        job.check_init(folder, config)
        folder.save_checkpoint(128, b"cut", 2, None)
        with pytest.raises(Refused, match="other: its newest checkpoint: "):
            job.check_init(folder, config)


def test_a_private_run_ends_within_its_budget_and_exports_its_last_generator(strict, phantoms, tmp_path):
    patients = shards.read_manifest(phantoms)[0].patients["train"]
    budget = private.epsilon(1.0, 16 / patients, 9, 0.1 / patients) + 1e-6
    config = strict(patients, privacy__dp__noise=1.0, privacy__dp__epsilon=budget)
    assert config.precision == "float32"
    events = []
    folder = train(config, phantoms, tmp_path / "run", events.append)
    seen = folder.checkpoints()[-1]
    assert seen == 9 * 16 < config.total_images
    done = events[-1]
    assert done["event"] == "done"
    assert done["best"]["images_seen"] == seen
    rows = [row for row in read_rows(folder.fetch("metrics.jsonl")) if "privacy/epsilon" in row]
    spent = private.epsilon(1.0, config.global_batch / patients, seen // config.global_batch, config.privacy.dp.delta)
    assert rows[-1]["privacy/epsilon"] == done["epsilon"] == spent <= budget
    card = folder.read("generator/README.md").decode()
    assert f"epsilon {spent:.4g} at delta" in card
    assert "Not covered: class counts" in card
    page = folder.read("report.html").decode()
    assert f"exports the last generator, at {seen:,} images" in page
    assert "The best is by KID" not in page
    again = []
    train(config, phantoms, tmp_path / "run", again.append)
    assert folder.checkpoints()[-1] == seen
    assert again[-1]["event"] == "done"


def test_the_ledger_survives_a_resume_and_charges_what_was_lost(strict, phantoms, tmp_path):
    patients = shards.read_manifest(phantoms)[0].patients["train"]
    config = strict(patients, privacy__dp__noise=1.0, privacy__dp__epsilon=1000.0, checkpoint__keep=9)
    reports = iter([False] * 4 + [True] * 100)
    folder = train(config, phantoms, tmp_path / "run", stopping=lambda: next(reports))
    seen = folder.checkpoints()[-1]
    assert 64 < seen < 256
    steps = open_checkpoint(folder.read_checkpoint(seen))["private_steps"]
    assert steps == seen // config.global_batch
    folder.delete(f"checkpoints/{seen:012d}.pt")
    left = folder.checkpoints()[-1]
    train(config, phantoms, tmp_path / "run")
    last = open_checkpoint(folder.read_checkpoint(folder.checkpoints()[-1]))
    assert last["images_seen"] == 256
    assert last["private_steps"] == (256 + seen - left) // config.global_batch


def test_what_is_lost_twice_is_charged_twice(strict, phantoms, tmp_path):
    patients = shards.read_manifest(phantoms)[0].patients["train"]
    config = strict(
        patients,
        **{"privacy__dp__noise": 1.0, "privacy__dp__epsilon": 1000.0},
        **{"checkpoint__interval_kimg": 10, "evaluate__interval_kimg": 10},
    )

    def crash():
        raise MemoryError

    reports = iter([False] * 4 + [True])
    folder = train(config, phantoms, tmp_path / "run", stopping=lambda: next(reports))
    (kept,) = folder.checkpoints()
    steps = kept // config.global_batch
    for _ in range(2):
        answers = iter([lambda: False] * 4 + [crash])
        with pytest.raises(MemoryError):
            train(config, phantoms, tmp_path / "run", stopping=lambda answers=answers: next(answers)())
        assert folder.checkpoints() == [kept]
        told = read_rows(folder.fetch("metrics.jsonl"))[-1]["images_seen"]
        assert kept < told < 256
        steps += (told - kept) // config.global_batch
    train(config, phantoms, tmp_path / "run")
    last = open_checkpoint(folder.read_checkpoint(folder.checkpoints()[-1]))
    assert last["private_steps"] == steps + (256 - kept) // config.global_batch


def test_what_g_learns_from_says_nothing_of_who_was_drawn(monkeypatch):
    """G's fakes and labels are the same whoever is in the lot."""
    config = config_of()
    split, patients = films()
    seen = []
    original = step.learn_generator

    def watched(state, piece, fakes, having):
        seen.append((piece.labels.clone(), fakes[0].detach().clone()))
        return original(state, piece, fakes, having)

    monkeypatch.setattr(step, "learn_generator", watched)
    lots = private.lots(split, patients, config, World())
    for _ in range(2):
        train_step(TrainState.create(config, World()), next(lots))
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])
