"""One training step: one D update, one G update, one EMA update, on this rank's share of the global batch.

Every rank draws the z of the whole global batch and takes its rows, and a local loss is
sum(own samples) * W / global_batch, so that DDP's mean over ranks is the mean over the global batch, also where
shares are uneven. W ranks therefore follow one process (see tests/test_exactness.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medgan.augment import DRAWS, augment
from medgan.config import KINDS, Config
from medgan.data.loader import Batch, rank_rows
from medgan.losses import LOSSES, gradient_penalty, path_lengths, squared_gradient
from medgan.models import z_size
from medgan.pixels import to_images
from medgan.state import Player, TrainState
from medgan.streams import stream

SCALARS = (
    *("loss/D", "loss/G", "logits/real", "logits/fake", "logits/sign"),
    *("penalty/r1", "penalty/r2", "penalty/gp", "penalty/path"),
)
"""logits/sign: mean sign of D's logits at real images, which goes to 1 where D knows them by heart."""


def parts(config: Config, images_seen: int) -> frozenset[str]:
    """Which of SCALARS the step that starts at images_seen has: penalties are lazy, G may learn less often than D."""
    step, loss = images_seen // config.global_batch, config.loss
    lazy, learns = step % loss.r1_interval == 0, (step + 1) % loss.critic_steps == 0
    having = {
        "loss/G": learns,
        "penalty/r1": lazy and loss.r1_gamma != 0,
        "penalty/r2": lazy and loss.r2_gamma != 0,
        "penalty/gp": loss.name == "wgan-gp",
        "penalty/path": loss.path_weight > 0 and learns and step // loss.critic_steps % loss.path_interval == 0,
    }
    return frozenset(name for name in SCALARS if having.get(name, True))


@dataclass(frozen=True)
class Piece:
    """This rank's part of one of the optim.accumulation pieces of a global batch."""

    rows: np.ndarray
    """Places in the global batch, int64 (n,): of the generated images."""
    labels: Tensor
    """(n, K), times their strength: of the generated images."""
    real: Tensor
    """(m, C, R, R) in [-1, 1] before augmentation."""
    real_labels: Tensor
    """(m, K), times their strength."""
    beside: np.ndarray | slice
    """Which of the n generated images D sees beside each of the m real ones: each beside its own, m = n, but in
    private training."""


def train_step(state: TrainState, batch: Batch) -> Tensor:
    """One D update, one G update where it is G's turn, one EMA update. Mutates state.

    Returns this rank's share of SCALARS, float64 (9,), on the device and detached: their sum over ranks is the mean
    over the global batch. What the step does not have (see `parts`) is 0.
    """
    config, generator, discriminator = state.config, state.generator, state.discriminator
    having = parts(config, state.images_seen)
    pieces, learns = cut(state, batch), "loss/G" in having
    # One batch of fakes serves both players, so that G's forward pass, with its sums over ranks, is paid for once.
    # In several pieces its graph would have to be kept for all of them: then G draws again.
    whole = len(pieces) == 1
    seen = torch.zeros(len(SCALARS), dtype=torch.float64, device=state.world.device)

    discriminator.optimizer.zero_grad(set_to_none=True)
    for piece in pieces:
        fakes = draw(state, piece, having, learning=learns and whole)
        with discriminator.summing(piece is pieces[-1]):
            seen += learn_discriminator(state, piece, fakes, having)
    discriminator.step(config, state.images_seen)
    if state.ledger is not None:
        state.ledger.charge(1)

    if learns:
        generator.optimizer.zero_grad(set_to_none=True)
        for piece in pieces:
            with discriminator.judging(), generator.summing(piece is pieces[-1]):
                if not whole:
                    fakes = draw(state, piece, having, learning=True)
                seen += learn_generator(state, piece, fakes, having)
        generator.step(config, state.images_seen)
        state.follow_paths()

    seen /= config.global_batch
    if config.augment.name == "ada":
        sign = float(state.world.sum(seen[SCALARS.index("logits/sign")]))
        state.strength.follow(sign, config.augment, config.global_batch)
    state.images_seen += config.global_batch
    state.update_ema()
    return seen


def cut(state: TrainState, batch: Batch) -> list[Piece]:
    """A rank's batch as images, in as many pieces as the config says."""
    config, world = state.config, state.world
    real = to_images(world.put(batch.pixels), state.dtype)
    real = real.contiguous(memory_format=torch.channels_last)
    strength = config.label_strength(state.images_seen)
    labels = world.put(batch.labels).to(state.dtype) * strength
    rows = rank_rows(config, world.rank, world.size)
    if batch.places is not None:
        (whole,) = rows
        return [Piece(whole, strength * even_labels(state, whole), real, labels, batch.places - whole[0])]
    sizes = [len(mine) for mine in rows]
    pieces = zip(rows, labels.split(sizes), real.split(sizes), strict=True)
    return [Piece(some, hot, images, hot, slice(None)) for some, hot, images in pieces]


def even_labels(state: TrainState, rows: np.ndarray) -> Tensor:
    """Labels of generated images that say nothing of the real ones: one class each, all equally often; (n, K)."""
    config = state.config
    classes, random = len(config.data.classes or ()), stream(config.seed, "labels", state.images_seen)
    if not classes:
        return torch.zeros(len(rows), 0, dtype=state.dtype, device=state.world.device)
    chosen = torch.randint(0, classes, (config.global_batch,), generator=random)
    return state.world.put(torch.eye(classes, dtype=state.dtype)[chosen[rows]])


def draw(state: TrainState, piece: Piece, having: frozenset[str], learning: bool) -> tuple[Tensor, Tensor | None]:
    """Generated images (n, C, R, R), and where path lengths are due the w (n, levels, w_dim) they come from."""
    z = drawn(state, piece.rows, "z", z_size(state.config), normal=True)
    network = state.generator.ddp if learning else state.generator.bare
    lengths = learning and "penalty/path" in having
    with passing(state, state.generator, twice=lengths), torch.set_grad_enabled(learning):
        if lengths:
            images, w = network(z, piece.labels, with_w=True)
            return images.to(z.dtype), w
        return network(z, piece.labels).to(z.dtype), None


def learn_discriminator(
    state: TrainState, piece: Piece, fakes: tuple[Tensor, Tensor | None], having: frozenset[str]
) -> Tensor:
    """D's gradients from one piece: the DDP wrapper of D, one backward. Returns sums of its SCALARS, float64 (9,)."""
    config, network = state.config, state.discriminator.ddp
    loss, dtype = LOSSES[config.loss.name], state.dtype
    r1, r2 = "penalty/r1" in having, "penalty/r2" in having
    real = augmented(state, piece.rows[piece.beside], piece.real, "real").detach()
    fake = augmented(state, piece.rows, fakes[0].detach(), "fake")[piece.beside].detach()
    labels = piece.labels[piece.beside]
    if not len(real):  # nobody was drawn here
        state.discriminator.nobody()
        return torch.zeros(len(SCALARS), dtype=torch.float64, device=state.world.device)
    passes = [(real, piece.real_labels, r1), (fake, labels, r2)]
    if config.one_pass and r1 == r2:
        # Half the calls, and larger ones. Private training, which has neither penalties nor BatchNorm in D, needs it:
        # of two passes Opacus would take the gradients of one for the other's.
        passes = [(torch.cat([real, fake]), torch.cat([piece.real_labels, labels]), r1)]
    judged = []
    for images, hot, penalised in passes:
        with passing(state, state.discriminator, twice=penalised):
            judged.append(network(images.requires_grad_(penalised), hot).to(dtype))
    real_logits, fake_logits = torch.cat(judged).chunk(2)
    found = {"loss/D": loss.discriminator(real_logits, fake_logits)}
    total = found["loss/D"]
    if r1 or r2:
        # A penalty differentiates the rank's unscaled logits and joins the one backward.
        slopes = [
            squared_gradient(images, logits) if penalised else torch.zeros_like(logits)
            for (images, _, penalised), logits in zip(passes, judged, strict=True)
        ]
        at_real, at_fake = torch.cat(slopes).chunk(2)
        if r1:
            found["penalty/r1"] = at_real
            total = total + at_real * config.gradient_weight("r1", state.images_seen)
        if r2:
            found["penalty/r2"] = at_fake
            total = total + at_fake * config.gradient_weight("r2", state.images_seen)
    if "penalty/gp" in having:
        between = torch.lerp(real, fake, drawn(state, piece.rows, "between", 1, 1, 1)).requires_grad_()
        with passing(state, state.discriminator, twice=True):
            logits = network(between, labels).to(dtype)
        found["penalty/gp"] = gradient_penalty(between, logits)
        total = total + found["penalty/gp"] * config.loss.gp_weight
    state.discriminator.backward(total.sum())
    if config.private:
        state.discriminator.pair()
    found |= {"logits/real": real_logits, "logits/fake": fake_logits, "logits/sign": (real_logits - loss.middle).sign()}
    return sums(found)


def learn_generator(
    state: TrainState, piece: Piece, fakes: tuple[Tensor, Tensor | None], having: frozenset[str]
) -> Tensor:
    """G's gradients from one piece: D bare. Returns sums of its SCALARS, float64 (9,)."""
    config, judge = state.config, state.discriminator.bare
    images, w = fakes
    loss, dtype, labels = LOSSES[config.loss.name], images.dtype, piece.labels
    # Augmented outside of autocast, as D saw them: within, places to sample from would be in half precision.
    fake = augmented(state, piece.rows, images, "fake")
    real = augmented(state, piece.rows, piece.real, "real") if loss.paired else None
    with passing(state, state.discriminator):
        beside = images.new_zeros(len(images))
        if real is not None:
            with torch.no_grad():
                beside = judge(real, labels).to(dtype)
        found = {"loss/G": loss.generator(beside, judge(fake, labels).to(dtype))}
    total = found["loss/G"]
    if w is not None:
        direction = drawn(state, piece.rows, "direction", *images.shape[1:], normal=True)
        found["penalty/path"] = state.path_deviation(path_lengths(images, w, direction))
        total = total + found["penalty/path"] * (config.loss.path_weight * config.loss.path_interval)
    state.generator.backward(total.sum())
    return sums(found)


def augmented(state: TrainState, rows: np.ndarray, images: Tensor, side: str, of: int | None = None) -> Tensor:
    """Images as D sees them. rows: their places in the global batch, or among so many; side: real, fake or what else
    has draws of its own."""
    config = state.config
    kinds = config.augmentations
    if not kinds:
        return images
    strength = state.strength.of(config.augment, state.images_seen)
    padding = "zeros" if config.augment.name == "diffaugment" else "reflection"
    draws = drawn(state, rows, f"augment/{side}", len(KINDS), DRAWS, of=of)
    return augment(images, draws, strength, kinds, padding)


def drawn(
    state: TrainState, rows: np.ndarray, name: str, *shape: int, normal: bool = False, of: int | None = None
) -> Tensor:
    """Some places of what is drawn for the global batch, or for so many: uniform in [0, 1) or standard normal, on the
    device."""
    config = state.config
    random, kind = stream(config.seed, name, state.images_seen), torch.randn if normal else torch.rand
    numbers = kind(of or config.global_batch, *shape, generator=random, dtype=state.dtype)
    return state.world.put(numbers[rows])


def sums(found: dict[str, Tensor]) -> Tensor:
    """Of each of SCALARS over the samples: float64 (9,), detached."""
    some = next(iter(found.values()))
    return torch.stack(
        [
            found[name].detach().double().sum() if name in found else some.new_zeros((), dtype=torch.float64)
            for name in SCALARS
        ]
    )


@contextmanager
def passing(state: TrainState, player: Player, twice: bool = False) -> Iterator[None]:
    """Forward passes of a player: in bfloat16 or float16 where the run's precision says so, compiled if it says so.

    twice: they will be differentiated twice, as penalties are: eager, and not in float16, whose range is too small for
    slopes that no scaler has lifted. In bfloat16 gradients of penalties are as near as those of losses: a few % off.
    """
    halves = {"bfloat16": torch.bfloat16, "float16": None if twice else torch.float16}
    dtype = halves.get(state.config.precision)
    with player.twice(twice), torch.autocast(state.world.device.type, dtype=dtype, enabled=dtype is not None):
        yield
