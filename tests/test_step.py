"""One process's step against the same mathematics written out by hand, and the all-reduce's second derivative."""

import math
import os
import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from medgan import config as configs
from medgan import step as step_module
from medgan.data.loader import Batch
from medgan.distributed import World
from medgan.models import build_gan
from medgan.models.layers import SumOverRanks
from medgan.models.stylegan2 import ModulatedConv
from medgan.plan import random_batch
from medgan.state import TrainState
from medgan.step import SCALARS, parts, train_step
from medgan.streams import stream, stream_seed

from . import ranks


def test_a_step_is_its_mathematics_with_the_penalty_every_second_step(tiny):
    config = tiny(precision="float64", loss__r1_gamma=3.0, loss__r1_interval=2, ema__half_life_kimg=0)
    state = TrainState.create(config, World())
    torch.manual_seed(stream_seed(config.seed, "weights", 0))
    generator, discriminator = (network.double() for network in build_gan(config))
    optim = config.optim
    adams = [
        torch.optim.Adam(network.parameters(), lr=lr, betas=(optim.beta1, optim.beta2), eps=optim.eps)
        for network, lr in ((generator, optim.lr_g), (discriminator, optim.lr_d))
    ]
    size, z_dim = config.global_batch, config.model.z_dim
    for step in range(3):
        pixels = torch.randint(0, 256, (size, 1, 32, 32), dtype=torch.uint8)
        labels = torch.eye(2)[torch.randint(0, 2, (size,))]
        scalars = dict(zip(SCALARS, train_step(state, Batch(pixels, labels, None)).tolist(), strict=True))

        hot, real = labels.double(), (pixels.double() / 127.5 - 1).requires_grad_()
        z = torch.randn(size, z_dim, generator=stream(config.seed, "z", step * size), dtype=torch.float64)
        images = generator(z, hot)
        logits, fake = discriminator(real, hot), discriminator(images.detach(), hot)
        loss_d = (F.softplus(-logits) + F.softplus(fake)).mean()
        total = loss_d
        if step % 2 == 0:
            (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
            penalty = gradient.square().sum((1, 2, 3)).mean()
            total = loss_d + 3.0 / 2 * 2 * penalty  # gamma / 2, and twice as much every second step
            assert abs(scalars["penalty/r1"] - penalty.item()) < 1e-9
        adams[1].zero_grad()
        total.backward()
        adams[1].step()
        loss_g = F.softplus(-discriminator(images, hot)).mean()
        adams[0].zero_grad()
        loss_g.backward()
        adams[0].step()
        assert abs(scalars["loss/D"] - loss_d.item()) < 1e-9
        assert abs(scalars["loss/G"] - loss_g.item()) < 1e-9
    for ours, theirs in ((state.generator.module, generator), (state.discriminator.module, discriminator)):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-9)
    for a, b in zip(state.ema.parameters(), generator.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-9)


def batch_of(config, seed=0):
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (config.global_batch, 1, 32, 32), dtype=torch.uint8, generator=random)
    return Batch(pixels, torch.eye(2)[torch.randint(0, 2, (config.global_batch,), generator=random)], None)


def weights(player):
    return torch.cat([parameter.detach().flatten().clone() for parameter in player.module.parameters()])


def test_a_relativistic_step_with_both_penalties_is_its_mathematics(tiny):
    settings = {"loss__name": "rpgan", "loss__r1_gamma": 2.0, "loss__r2_gamma": 3.0, "loss__r1_interval": 1}
    config = tiny(precision="float64", **settings)
    state, batch = TrainState.create(config, World()), batch_of(tiny())
    torch.manual_seed(stream_seed(config.seed, "weights", 0))
    generator, discriminator = (network.double() for network in build_gan(config))
    hot, real = batch.labels.double(), (batch.pixels.double() / 127.5 - 1).requires_grad_()
    z = torch.randn(len(hot), config.model.z_dim, generator=stream(config.seed, "z", 0), dtype=torch.float64)
    fake = generator(z, hot).detach().requires_grad_()
    logits = [discriminator(images, hot) for images in (real, fake)]
    total = F.softplus(logits[1] - logits[0]).mean()
    for gamma, images, some in ((2.0, real, logits[0]), (3.0, fake, logits[1])):
        (gradient,) = torch.autograd.grad(some.sum(), images, create_graph=True)
        total = total + gamma / 2 * gradient.square().sum((1, 2, 3)).mean()
    total.backward()
    wanted = torch.cat([parameter.grad.flatten() for parameter in discriminator.parameters()])
    scalars = dict(zip(SCALARS, train_step(state, batch).tolist(), strict=True))
    ours = torch.cat([parameter.grad.flatten() for parameter in state.discriminator.module.parameters()])
    assert torch.allclose(ours, wanted, rtol=1e-9, atol=1e-12)
    with torch.no_grad():  # after D's update
        d = state.discriminator.module
        loss_g = F.softplus(d(real, hot) - d(fake, hot)).mean()
    assert abs(scalars["loss/G"] - loss_g.item()) < 1e-9


def test_a_critics_step_is_its_mathematics(tiny):
    config = tiny(precision="float64", loss__name="wgan-gp", loss__r1_gamma=0.0, loss__gp_weight=7.0)
    state, batch = TrainState.create(config, World()), batch_of(tiny())
    torch.manual_seed(stream_seed(config.seed, "weights", 0))
    generator, discriminator = (network.double() for network in build_gan(config))
    hot, real = batch.labels.double(), batch.pixels.double() / 127.5 - 1
    z = torch.randn(len(hot), config.model.z_dim, generator=stream(config.seed, "z", 0), dtype=torch.float64)
    fake = generator(z, hot).detach()
    share = torch.rand(len(hot), 1, 1, 1, generator=stream(config.seed, "between", 0), dtype=torch.float64)
    between = ((1 - share) * real + share * fake).requires_grad_()
    (slope,) = torch.autograd.grad(discriminator(between, hot).sum(), between, create_graph=True)
    penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
    ((discriminator(fake, hot) - discriminator(real, hot)).mean() + 7.0 * penalty).backward()
    train_step(state, batch)
    for ours, theirs in zip(state.discriminator.module.parameters(), discriminator.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


def test_weights_of_penalties_follow_their_schedule_and_their_interval(tiny, monkeypatch):
    """Penalties of 1 for every sample, so that D's and G's losses say what they were multiplied with."""
    config = tiny(
        "stylegan2-lite",
        **{"loss__r1_gamma": 3.0, "loss__r2_gamma": 5.0, "loss__r1_interval": 2, "loss__gamma_kimg": 1},
        **{"loss__path_weight": 2.0, "loss__path_interval": 2, "precision": "float64"},
    )
    for images_seen, share in ((0, 1.0), (512, 0.1 + 0.9 * (1 + math.cos(math.pi * 0.512)) / 2), (10**6, 0.1)):
        assert config.gradient_weight("r1", images_seen) == pytest.approx(3.0 / 2 * 2 * share)
        assert config.gradient_weight("r2", images_seen) == pytest.approx(5.0 / 2 * 2 * share)
    totals, state = [], TrainState.create(config, World())
    monkeypatch.setattr(step_module, "squared_gradient", lambda images, logits: 1 + 0 * logits)
    monkeypatch.setattr(state, "path_deviation", lambda lengths: 1 + 0 * lengths)
    for player in (state.discriminator, state.generator):
        backward = player.backward
        monkeypatch.setattr(player, "backward", lambda loss, on=backward: (totals.append(loss.item()), on(loss)))
    state.images_seen = 512
    scalars = dict(zip(SCALARS, train_step(state, batch_of(config)).tolist(), strict=True))
    of_d, of_g = (total / config.global_batch for total in totals)
    weights_of_d = config.gradient_weight("r1", 512) + config.gradient_weight("r2", 512)
    assert of_d - scalars["loss/D"] == pytest.approx(weights_of_d)
    assert of_g - scalars["loss/G"] == pytest.approx(2.0 * 2)


@pytest.mark.parametrize("loss", ["bce", "rpgan"])
def test_g_learns_from_the_augmented_images_that_d_saw(tiny, monkeypatch, loss):
    """In bfloat16 too: a place to sample from, rounded to it, is off by pixels."""
    config = tiny(precision="bfloat16", augment__name="ramp", augment__p=0.8, augment__kimg=1e-3, loss__name=loss)
    state, seen = TrainState.create(config, World()), {"real": [], "fake": []}
    state.images_seen = config.global_batch
    augmented = step_module.augmented

    def recorded(state, rows, images, side):
        seen[side].append(augmented(state, rows, images, side).detach())
        assert not torch.equal(seen[side][-1], images)
        return seen[side][-1].requires_grad_(images.requires_grad)

    monkeypatch.setattr(step_module, "augmented", recorded)
    train_step(state, batch_of(config))
    assert len(seen["fake"]) == 2
    assert torch.equal(*seen["fake"])
    assert len(seen["real"]) == (2 if loss == "rpgan" else 1)
    assert torch.equal(seen["real"][0], seen["real"][-1])


PASSES = {
    # The penalty's pass, that of generated images, that of G; then both sides in one pass, and that of G.
    "r1": ("discriminator", {"loss__r1_interval": 2}, ["penalty", "half", "half", "half", "half"]),
    # Twice: both sides in one pass, the penalty's, and that of G.
    "gp": ("discriminator", {"loss__name": "wgan-gp", "loss__r1_gamma": 0.0}, ["half", "penalty", "half"] * 2),
    "path": (
        "generator",
        {"preset": "stylegan2-lite", "loss__path_weight": 2.0, "loss__path_interval": 2},
        ["penalty", "half"],
    ),
}


@pytest.mark.parametrize("penalty", PASSES)
@pytest.mark.parametrize(("precision", "of_a_penalty"), [("bfloat16", torch.bfloat16), ("float16", torch.float32)])
def test_half_precision_is_for_every_pass_but_a_penaltys_in_float16(tiny, penalty, precision, of_a_penalty):
    player, settings, passes = PASSES[penalty]
    state, seen = TrainState.create(tiny(precision=precision, **settings), World()), []
    module = getattr(state, player).module
    layer = next(m for m in module.modules() if isinstance(m, (torch.nn.Conv2d, ModulatedConv)))
    layer.register_forward_hook(lambda layer, inputs, out: seen.append(out.dtype))
    for step in range(2):
        train_step(state, batch_of(state.config, step))
    assert seen == [{"penalty": of_a_penalty, "half": getattr(torch, precision)}[one] for one in passes]


PRESETS = configs.AXES["model.name"]
BY_PENALTY = {
    "r1": {"loss__r1_gamma": 1e4},
    "r1 and r2": {"loss__name": "rpgan", "loss__r1_gamma": 1e4, "loss__r2_gamma": 1e4},
    "gp": {"loss__name": "wgan-gp", "loss__r1_gamma": 0.0, "loss__gp_weight": 1e4},
    "path": {"loss__path_weight": 1e4},
}
OF_D = [(preset, penalty) for preset in PRESETS for penalty in list(BY_PENALTY)[:3]]


@pytest.mark.parametrize(("preset", "penalty"), [*OF_D, ("stylegan2-lite", "path")])
def test_a_penaltys_gradient_in_bfloat16_is_that_of_float32_but_for_its_rounding(tiny, monkeypatch, preset, penalty):
    """And it is taken outside of autocast, where products would lose what the passes kept."""
    gradients, cast, grad = [], [], torch.autograd.grad

    def watched(*args, **kwargs):
        cast.append(torch.is_autocast_enabled("cpu"))
        return grad(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", watched)
    for precision in ("float32", "bfloat16"):
        rates = {"optim__lr_g": 1e-9, "optim__lr_d": 1e-9}  # so that G's D is the same
        settings = {"loss__r2_gamma": 0.0, "loss__name": "bce"} | BY_PENALTY[penalty]
        state = TrainState.create(tiny(preset, precision=precision, **rates, **settings), World())
        train_step(state, random_batch(state.config))
        player = state.generator if penalty == "path" else state.discriminator
        gradients.append(torch.cat([weight.grad.flatten() for weight in player.module.parameters()]))
    exact, rounded = gradients
    assert exact.norm() > 10  # as only the penalty makes it
    assert (rounded - exact).norm() < 0.1 * exact.norm()
    assert cast
    assert not any(cast)


@pytest.mark.parametrize("r2", [0.0, 1.0])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("preset", PRESETS)
def test_gradients_lie_in_memory_as_their_weights_do(tiny, preset, precision, r2):
    """Fused Adam reads both in one order, and DDP copies what lies otherwise."""
    gammas = {"loss__r1_gamma": 1.0, "loss__r2_gamma": r2, "loss__r1_interval": 2}
    state = TrainState.create(tiny(preset, precision=precision, **gammas), World())
    batch = random_batch(state.config)
    for _ in range(2):  # with and without the penalty
        train_step(state, batch)
        for network in (state.generator.module, state.discriminator.module):
            for name, weight in network.named_parameters():
                assert weight.grad.stride() == weight.stride(), name


def test_a_critic_learns_more_often_than_its_generator(tiny):
    config = tiny(loss__name="wgan-gp", loss__r1_gamma=0.0, loss__critic_steps=3, ema__half_life_kimg=0)
    state = TrainState.create(config, World())
    for step in range(6):
        before = weights(state.generator), weights(state.discriminator)
        scalars = dict(zip(SCALARS, train_step(state, batch_of(config, step)).tolist(), strict=True))
        learned = step % 3 == 2
        assert torch.equal(before[0], weights(state.generator)) != learned
        assert not torch.equal(before[1], weights(state.discriminator))
        assert (scalars["loss/G"] != 0) == learned == ("loss/G" in parts(config, step * config.global_batch))
        assert scalars["penalty/gp"] > 0


def test_schedules_follow_the_images_and_the_gradient_is_clipped(tiny):
    config = tiny(optim__warmup_kimg=0.032, optim__decay_kimg=0.128, optim__decay_left=0.2, optim__clip=1e-3)
    assert config.lr_factor(0) == 0.5
    assert config.lr_factor(16) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 8)) / 2)
    assert config.lr_factor(64) == pytest.approx(0.6)
    assert config.lr_factor(128) == config.lr_factor(10**6) == pytest.approx(0.2)
    labels = tiny(total_images=10_000, model__anneal_from_kimg=1, model__anneal_to_kimg=3)
    assert [labels.label_strength(images) for images in (0, 1000, 2000, 3000)] == [0, 0, 0.5, 1]
    at_once = tiny(total_images=10_000, model__anneal_from_kimg=2, model__anneal_to_kimg=2)
    assert [at_once.label_strength(images) for images in (0, 1999, 2000)] == [0, 0, 1]
    gamma = tiny(loss__gamma_kimg=1, loss__gamma_left=0.1)
    assert [gamma.gamma_factor(images) for images in (0, 500, 2000)] == pytest.approx([1, 0.55, 0.1])
    assert tiny().lr_factor(10**9) == tiny().gamma_factor(10**9) == 1
    state = TrainState.create(config, World())
    train_step(state, batch_of(config))
    assert state.generator.optimizer.param_groups[0]["lr"] == config.optim.lr_g * 0.5
    for player in (state.generator, state.discriminator):
        total = torch.cat([parameter.grad.flatten() for parameter in player.module.parameters()]).norm()
        assert total <= 1e-3 * (1 + 1e-5)


def test_lazy_penalties_weigh_on_average_what_they_weigh_in_every_step(tiny):
    seen = {}
    for interval in (1, 4):
        config = tiny(loss__r1_gamma=8.0, loss__r1_interval=interval, precision="float64")
        still = {"optim__lr_g": 1e-30, "optim__lr_d": 1e-30}
        state = TrainState.create(tiny(**still, loss__r1_gamma=8.0, loss__r1_interval=interval), World())
        sums = 0.0
        for _ in range(8):
            images = state.images_seen
            train_step(state, batch_of(config))
            sums += torch.cat([p.grad.flatten() for p in state.discriminator.module.parameters()])
            state.images_seen = images + config.global_batch
        seen[interval] = sums / 8
    plain = TrainState.create(tiny(**still, loss__r1_gamma=0.0), World())
    without = 0.0
    for _ in range(8):
        train_step(plain, batch_of(config))
        without = without + torch.cat([p.grad.flatten() for p in plain.discriminator.module.parameters()])
    eager, lazy = (seen[interval] - without / 8 for interval in (1, 4))
    assert eager.norm() > 0
    assert (lazy - eager).norm() < 1e-3 * eager.norm()


def last_gradients(config, batch):
    state = TrainState.create(config, World())
    train_step(state, batch)
    return {
        name: torch.cat([p.grad.flatten() for p in player.module.parameters()])
        for name, player in (("G", state.generator), ("D", state.discriminator))
    }


@pytest.mark.parametrize(
    ("preset", "more"),
    [
        ("resgan", {"loss__r1_gamma": 2.0, "model__blocks": 1}),
        ("stylegan2-lite", {"loss__path_weight": 2.0, "loss__path_interval": 1}),
    ],
)
def test_pieces_add_up_to_the_whole_batch_where_nothing_normalises_over_it(tiny, preset, more):
    settings = {"precision": "float64", "optim__lr_d": 1e-30, **more}
    whole, pieces = (
        last_gradients(tiny(preset, **settings, optim__accumulation=count), batch_of(tiny())) for count in (1, 4)
    )
    for name, gradient in whole.items():
        assert gradient.norm() > 0
        assert torch.allclose(pieces[name], gradient, rtol=1e-9, atol=1e-12)


def test_batch_norm_in_d_keeps_real_and_generated_images_apart(tiny):
    """D sees both in one pass only where nothing in it looks across samples of both."""
    config = tiny("dcgan", precision="float64", model__norm_d="batch", loss__r1_gamma=0)
    state = TrainState.create(config, World())
    generator, discriminator = (network.double() for network in (state.generator.module, state.discriminator.module))
    batch = batch_of(config)
    z = torch.randn(config.global_batch, config.model.z_dim, generator=stream(config.seed, "z", 0), dtype=torch.float64)
    with torch.no_grad():
        real = discriminator(batch.pixels.double() / 127.5 - 1, None)
        fake = discriminator(generator(z, None), None)
    scalars = dict(zip(SCALARS, train_step(state, batch).tolist(), strict=True))
    assert scalars["logits/real"] == pytest.approx(real.mean().item(), abs=1e-12)
    assert scalars["logits/fake"] == pytest.approx(fake.mean().item(), abs=1e-12)


def test_float16_goes_on_from_a_checkpoint_of_an_adam_that_was_not_fused(tiny):
    config = tiny(precision="float16", optim__clip=1e-3)
    state = TrainState.create(config, World())
    train_step(state, batch_of(config))
    for player in (state.generator, state.discriminator):
        player.optimizer.param_groups[0]["fused"] = None
    content = state.save()
    state = TrainState.create(config, World())
    state.load(content)
    assert train_step(state, batch_of(config)).isfinite().all()
    gradients = [parameter.grad for parameter in state.discriminator.module.parameters()]
    assert torch.cat([gradient.flatten() for gradient in gradients]).norm() == pytest.approx(1e-3, rel=1e-3)


def test_float16_trains_with_scaled_gradients_and_skips_what_overflows(tiny):
    config = tiny(precision="float16")
    state = TrainState.create(config, World())
    before = weights(state.generator), weights(state.discriminator)
    for step in range(3):
        assert train_step(state, batch_of(config, step)).isfinite().all()
    assert not torch.equal(before[0], weights(state.generator))
    assert state.finite()
    scale = state.discriminator.scaler.get_scale()
    before = weights(state.discriminator)
    state.discriminator.backward(state.discriminator.module.linear.bias.sum() * float("inf"))
    state.discriminator.step(config, 0)
    assert torch.equal(before, weights(state.discriminator))
    assert state.discriminator.scaler.get_scale() == scale / 2
    again = TrainState.create(config, World())
    again.load(state.save())
    assert again.discriminator.scaler.get_scale() == scale / 2


def test_gamma_follows_resolution_and_batch_unless_it_is_set(tiny):
    assert tiny(loss__r1_gamma="auto").loss.r1_gamma == 0.0004 * 32**2 / 16
    assert tiny(loss__r2_gamma="auto", loss__auto_gamma=0.01).loss.r2_gamma == 0.01 * 32**2 / 16
    assert tiny(loss__r1_gamma=None, loss__r2_gamma=3).loss.r2_gamma == 3
    assert tiny(loss__r1_gamma=8.0, loss__r1_interval=4).gradient_weight("r1", 0) == 16


def second_derivative(rank: int, out: str) -> None:
    x = torch.tensor([float(rank + 1)], dtype=torch.float64, requires_grad=True)
    # Every rank's loss is (x_0 + x_1)^3; the first derivative of their sum is 2 * 3 s^2, the second 2 * 2 * 6 s.
    (first,) = torch.autograd.grad((SumOverRanks.apply(x) ** 3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    if rank == 0:
        torch.save([first.detach(), second], out)


def test_the_sum_over_ranks_can_be_differentiated_twice(tmp_path):
    ranks.run(2, second_derivative, str(tmp_path / "out.pt"))
    first, second = torch.load(tmp_path / "out.pt", weights_only=True)
    assert first.item() == 2 * 3 * 9
    assert second.item() == 2 * 2 * 6 * 3


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # TorchDynamo's own
def test_a_compiled_step_is_the_eager_one_and_penalties_run_eager(tiny):
    settings = {"precision": "float64", "loss__r1_gamma": 2.0, "loss__r1_interval": 2}
    compiled, eager = (TrainState.create(tiny(**settings, compile=on), World()) for on in (True, False))
    for step in range(2):
        for state in (compiled, eager):
            train_step(state, batch_of(state.config, step))
    for name in ("generator", "discriminator"):
        assert torch.allclose(weights(getattr(compiled, name)), weights(getattr(eager, name)), rtol=0, atol=1e-9)


@pytest.mark.heavy
def test_without_a_compiler_it_says_so():
    asked = "import torch; from medgan.run import compiles; print(compiles(torch.device('cpu')))"
    environment = {**os.environ, "CXX": "/no/compiler", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    found = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


FAULTS = """
import resource, threading
import medgan, torch

def faults():
    for _ in range(20):  # until small blocks have settled between
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(48 * 2**18)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=faults)  # as Ray trains in one
thread.start()
thread.join()
"""


@pytest.mark.parametrize(
    ("settings", "kept"),
    [({}, True), ({"MEDGAN_KEEP_MEMORY": "0"}, False), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)],
)
def test_memory_of_a_step_stays_for_the_next_one_unless_told_otherwise(settings, kept):
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("memory is kept by settings of glibc, which is not here")
    environment = os.environ | settings
    found = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
    assert (int(found.stdout) < 10) == kept, "page faults of 48 MB"
