"""One training step: one D update, one G update, one EMA update, on this rank's slice of the global batch.

Every rank draws the z of the whole global batch and takes its slice, and a local loss is
sum(own samples) * W / global_batch, so that DDP's mean over ranks is the mean over the global batch, also where
slices are uneven. W ranks therefore follow one process (see tests/test_exactness.py).
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from medgan.config import Config
from medgan.data.loader import Batch, rank_slice
from medgan.losses import LOSSES, gradient_penalty, squared_gradient
from medgan.models import z_size
from medgan.pixels import to_images
from medgan.state import Player, TrainState
from medgan.streams import stream

SCALARS = ("loss/D", "loss/G", "logits/real", "logits/fake", "penalty/r1", "penalty/r2", "penalty/gp")


def parts(config: Config, images_seen: int) -> frozenset[str]:
    """Which of SCALARS the step that starts at images_seen has: penalties are lazy, G may learn less often than D."""
    step, loss = images_seen // config.global_batch, config.loss
    lazy = step % loss.r1_interval == 0
    having = {
        "loss/G": (step + 1) % loss.critic_steps == 0,
        "penalty/r1": lazy and loss.r1_gamma > 0,
        "penalty/r2": lazy and loss.r2_gamma > 0,
        "penalty/gp": loss.name == "wgan-gp",
    }
    return frozenset(name for name in SCALARS if having.get(name, True))


def train_step(state: TrainState, batch: Batch) -> Tensor:
    """One D update, one G update where it is G's turn, one EMA update. Mutates state.

    Returns this rank's share of SCALARS, float64 (7,), on the device and detached: their sum over ranks is the mean
    over the global batch. What the step does not have (see `parts`) is 0.
    """
    config, world = state.config, state.world
    generator, discriminator = state.generator, state.discriminator
    loss, having = LOSSES[config.loss.name], parts(config, state.images_seen)
    r1, r2, gp, learns = (name in having for name in ("penalty/r1", "penalty/r2", "penalty/gp", "loss/G"))

    dtype = next(generator.module.parameters()).dtype
    real = to_images(batch.pixels.to(world.device), dtype).contiguous(memory_format=torch.channels_last)
    labels = batch.labels.to(world.device, dtype) * config.label_strength(state.images_seen)
    share = 1.0 / config.global_batch
    nothing = real.new_zeros(len(real))

    # One batch of fakes serves both players: G's forward pass, with its sums over ranks, is paid for once.
    with autocast(state), torch.set_grad_enabled(learns):
        network = generator.ddp if learns else generator.module
        fake = network(latents(state, dtype), labels).to(dtype)

    # D learns: the DDP wrapper of D. Penalties are second derivatives: float32 all the way.
    shown = fake.detach().requires_grad_(r2)
    real.requires_grad_(r1)
    with autocast(state, enabled=not r1):
        real_logits = discriminator.ddp(real, labels).to(dtype)
    with autocast(state, enabled=not r2):
        fake_logits = discriminator.ddp(shown, labels).to(dtype)
    loss_d = loss.discriminator(real_logits, fake_logits)
    # A penalty differentiates the rank's unscaled logits and joins the one backward.
    penalties = {
        "penalty/r1": squared_gradient(real, real_logits) if r1 else nothing,
        "penalty/r2": squared_gradient(shown, fake_logits) if r2 else nothing,
        "penalty/gp": nothing,
    }
    if gp:
        between = torch.lerp(real, shown, uniform(state, "between", dtype)).requires_grad_()
        penalties["penalty/gp"] = gradient_penalty(between, discriminator.ddp(between, labels).to(dtype))
    lazy = config.gamma_factor(state.images_seen) / 2 * config.loss.r1_interval
    total = (
        loss_d
        + penalties["penalty/r1"] * (config.loss.r1_gamma * lazy)
        + penalties["penalty/r2"] * (config.loss.r2_gamma * lazy)
        + penalties["penalty/gp"] * config.loss.gp_weight
    )
    update(discriminator, total.sum() * (share * world.size), config, state.images_seen)

    # G learns: D bare.
    loss_g = nothing
    if learns:
        discriminator.module.requires_grad_(False)
        with autocast(state):
            beside = nothing
            if loss.paired:
                with torch.no_grad():
                    beside = discriminator.module(real, labels).to(dtype)
            loss_g = loss.generator(beside, discriminator.module(fake, labels).to(dtype))
        update(generator, loss_g.sum() * (share * world.size), config, state.images_seen)
        discriminator.module.requires_grad_(True)

    state.images_seen += config.global_batch
    state.update_ema()
    scalars = torch.stack([loss_d, loss_g, real_logits, fake_logits, *penalties.values()]).detach().double()
    return scalars.sum(1) * share


def update(player: Player, loss: Tensor, config: Config, images_seen: int) -> None:
    """One step of a player's optimizer down the loss, at the learning rate of this moment."""
    player.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if config.optim.clip:
        torch.nn.utils.clip_grad_norm_(player.module.parameters(), config.optim.clip)
    for group in player.optimizer.param_groups:
        group["lr"] = player.lr * config.lr_factor(images_seen)
    player.optimizer.step()


def latents(state: TrainState, dtype: torch.dtype) -> Tensor:
    """This rank's slice of the global batch's z: (n, z_size) standard normal."""
    config = state.config
    random = stream(config.seed, "z", state.images_seen)
    return mine(state, torch.randn(config.global_batch, z_size(config), generator=random, dtype=dtype))


def uniform(state: TrainState, name: str, dtype: torch.dtype) -> Tensor:
    """This rank's slice of a number from 0 to 1 for each image of the global batch: (n, 1, 1, 1)."""
    random = stream(state.config.seed, name, state.images_seen)
    return mine(state, torch.rand(state.config.global_batch, 1, 1, 1, generator=random, dtype=dtype))


def mine(state: TrainState, draws: Tensor) -> Tensor:
    """This rank's slice of what was drawn for the global batch, on the device."""
    config, world = state.config, state.world
    return draws[rank_slice(config.global_batch, config.sample_group, world.rank, world.size)].to(world.device)


def autocast(state: TrainState, enabled: bool = True) -> AbstractContextManager[None]:
    """bfloat16 where the run's precision says so."""
    on = enabled and state.config.precision == "bfloat16"
    return torch.autocast(state.world.device.type, dtype=torch.bfloat16, enabled=on)
