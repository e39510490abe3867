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
from medgan.losses import LOSSES, r1_penalty
from medgan.models import z_size
from medgan.pixels import to_images
from medgan.state import TrainState
from medgan.streams import stream

SCALARS = ("loss/D", "loss/G", "logits/real", "logits/fake", "penalty/r1")


def train_step(state: TrainState, batch: Batch) -> Tensor:
    """One D update, one G update, one EMA update. Mutates state.

    Returns this rank's share of SCALARS, float64 (5,), on the device and detached: their sum over ranks is the mean
    over the global batch. penalty/r1 is 0 in steps without one.
    """
    config, world = state.config, state.world
    generator, discriminator = state.generator, state.discriminator
    loss = LOSSES[config.loss.name]
    with_r1 = takes_penalty(config, state.images_seen)

    dtype = next(generator.module.parameters()).dtype
    real = to_images(batch.pixels.to(world.device), dtype).contiguous(memory_format=torch.channels_last)
    labels = batch.labels.to(world.device, dtype) * config.label_strength(state.images_seen)
    share = 1.0 / config.global_batch

    # One batch of fakes serves both players: G's forward pass, with its sums over ranks, is paid for once.
    with autocast(state):
        fake = generator.ddp(latents(state, dtype), labels).to(dtype)

    # D learns: the DDP wrapper of D.
    real.requires_grad_(with_r1)
    with autocast(state, enabled=not with_r1):  # a penalty is a second derivative: float32 all the way
        real_logits = discriminator.ddp(real, labels).to(dtype)
    with autocast(state):
        fake_logits = discriminator.ddp(fake.detach(), labels).to(dtype)
    loss_d = loss.discriminator(real_logits, fake_logits)
    # The penalty differentiates the rank's unscaled logits and joins the one backward.
    r1 = r1_penalty(real, real_logits) if with_r1 else torch.zeros_like(loss_d)
    total = (loss_d + r1 * (config.loss.r1_gamma / 2 * config.loss.r1_interval)).sum()
    discriminator.optimizer.zero_grad(set_to_none=True)
    (total * (share * world.size)).backward()
    discriminator.optimizer.step()

    # G learns: D bare.
    discriminator.module.requires_grad_(False)
    with autocast(state):
        loss_g = loss.generator(discriminator.module(fake, labels).to(dtype))
    generator.optimizer.zero_grad(set_to_none=True)
    (loss_g.sum() * (share * world.size)).backward()
    generator.optimizer.step()
    discriminator.module.requires_grad_(True)

    state.images_seen += config.global_batch
    state.update_ema()
    scalars = torch.stack([loss_d, loss_g, real_logits, fake_logits, r1]).detach().double()
    return scalars.sum(1) * share


def takes_penalty(config: Config, images_seen: int) -> bool:
    """Whether the step that starts at images_seen takes the R1 penalty."""
    return config.loss.r1_gamma > 0 and images_seen // config.global_batch % config.loss.r1_interval == 0


def latents(state: TrainState, dtype: torch.dtype) -> Tensor:
    """This rank's slice of the global batch's z: (n, z_size) standard normal."""
    config, world = state.config, state.world
    part = rank_slice(config.global_batch, config.sample_group, world.rank, world.size)
    random = stream(config.seed, "z", state.images_seen)
    z = torch.randn(config.global_batch, z_size(config), generator=random, dtype=dtype)
    return z[part].to(world.device)


def autocast(state: TrainState, enabled: bool = True) -> AbstractContextManager[None]:
    """bfloat16 where the run's precision says so."""
    on = enabled and state.config.precision == "bfloat16"
    return torch.autocast(state.world.device.type, dtype=torch.bfloat16, enabled=on)
