"""Private training: what one patient's images can change in the networks is bounded (DP-SGD, arXiv:1607.00133).

Only D sees real images, so only D's updates are made private; G learns from D and from labels drawn evenly, and costs
nothing more. In every step each patient takes part with the same probability, with one image drawn from theirs,
judged beside one of the step's generated images, drawn too. The gradient of both together is clipped as one, so that a
patient is charged once a step. Whom a step draws and what noise it adds comes from the operating system, and is
nowhere kept: a run that is gone on with is as private, but not the same to the bit.

Clipping, noise and accounting are Opacus's. Class counts of DATA are taken as known to everybody, and figures that
people look at while they choose settings are not covered: see the card.
"""

from __future__ import annotations

import copy
import math
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from opacus.accountants import RDPAccountant
from opacus.accountants.utils import get_noise_multiplier
from opacus.distributed import DifferentiallyPrivateDistributedDataParallel
from opacus.grad_sample import GradSampleModule, register_grad_sampler
from opacus.grad_sample.conv import compute_conv_grad_sample
from opacus.optimizers import DistributedDPOptimizer, DPOptimizer
from torch import nn

from medgan.config import Config, ConfigError, validate
from medgan.data.loader import Batch, Split, rank_rows
from medgan.distributed import World
from medgan.models.convolution import Conv2d

SPARE = 4
"""A ledger looks ahead for so many times the steps of a run: some are lost on the way and taken again."""


@dataclass
class Ledger:
    """What the steps so far have cost each patient of train."""

    noise: float
    rate: float
    """The probability with which a patient takes part in a step."""
    delta: float
    most: int
    """So many steps cost no more than the budget; one more would, or it is more than a run can need."""
    steps: int = 0

    @property
    def spent(self) -> bool:
        """Whether the next step would cost more than the budget."""
        return self.steps >= self.most

    def epsilon(self) -> float:
        """An upper bound, at delta."""
        return epsilon(self.noise, self.rate, self.steps, self.delta)

    def charge(self, steps: int) -> None:
        """Count steps; also those whose outcome was lost, since somebody may have seen it."""
        self.steps += steps


def epsilon(noise: float, rate: float, steps: int, delta: float) -> float:
    """What so many steps cost by Opacus's accountant of Renyi divergences (arXiv:1908.10530), from above."""
    accountant = RDPAccountant()
    accountant.history = [(noise, rate, steps)]
    with _quiet():
        return float(accountant.get_epsilon(delta)) if steps else 0.0


@contextmanager
def _quiet() -> Iterator[None]:
    """The accountant says where more orders could give a tighter bound: no news for a user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Optimal order is the", UserWarning)
        yield


def settled(config: Config, patients: int) -> Config:
    """The config of a private run with delta and noise filled in. patients: of train.

    Raises ConfigError where there are fewer patients than places in a batch, or the budget is too low.
    """
    dp = config.privacy.dp
    if config.global_batch > patients:
        raise ConfigError(
            f"global_batch={config.global_batch}: train has {patients} patients, of whom so many take part in a step; "
            "set a smaller one"
        )
    delta = 0.1 / patients if dp.delta is None else dp.delta
    steps, noise = math.ceil(config.total_images / config.global_batch), dp.noise
    if noise is None:
        rate = config.global_batch / patients
        budget = {"target_epsilon": dp.epsilon, "target_delta": delta, "sample_rate": rate, "steps": steps}
        try:
            with _quiet():
                noise = get_noise_multiplier(**budget, accountant="rdp")
        except ValueError:
            raise ConfigError(
                f"privacy.dp.epsilon={dp.epsilon:g}: no noise keeps {steps:,} steps below it: raise it, or train on "
                "fewer images or with smaller batches"
            ) from None
    tree = config.dump()
    tree["privacy"]["dp"] |= {"delta": delta, "noise": noise}
    return validate(tree)


def opened(config: Config, patients: int) -> Ledger:
    """A ledger without entries for a settled config. Raises ConfigError where not one step fits the budget."""
    dp, rate = config.privacy.dp, config.global_batch / patients
    assert dp.noise is not None
    assert dp.delta is not None
    low, high = 0, SPARE * math.ceil(config.total_images / config.global_batch)
    if epsilon(dp.noise, rate, high, dp.delta) <= dp.epsilon:
        low = high
    while high - low > 1:
        middle = (low + high) // 2
        fits = epsilon(dp.noise, rate, middle, dp.delta) <= dp.epsilon
        low, high = (middle, high) if fits else (low, middle)
    if not low:
        raise ConfigError(f"privacy.dp.noise={dp.noise:g}: one step costs more than privacy.dp.epsilon={dp.epsilon:g}")
    return Ledger(dp.noise, rate, dp.delta, low)


def lots(split: Split, patients: np.ndarray, config: Config, world: World) -> Iterator[Batch]:
    """What a rank takes of each step's lot, without end. patients: int64 (N,), the patient of each row.

    Every patient is in a lot with probability global_batch / patients (Poisson sampling), with one image, beside one
    place of the batch of generated images; the rank that draws the image of that place takes the pair. All of these
    choices are made for each patient independently of the others. Every rank calls it.
    """
    random = np.random.default_rng(world.broadcast(secrets.randbits(128)))
    order = np.argsort(patients, kind="stable")
    counts = np.bincount(patients)
    first = np.cumsum(counts) - counts
    mine = np.concatenate(rank_rows(config, world.rank, world.size))
    rate = config.global_batch / len(counts)
    while True:
        taken = random.random(len(counts)) < rate
        images = (first + random.random(len(counts)) * counts).astype(np.int64)
        places = random.integers(0, config.global_batch, len(counts))
        here = taken & (places >= mine[0]) & (places <= mine[-1])
        rows = order[images[here]]
        yield Batch(
            torch.from_numpy(split.pixels[rows]),
            torch.from_numpy(split.labels[rows].astype(np.float32)),
            rows,
            places[here],
        )


@register_grad_sampler(Conv2d)
def by_sample(
    layer: nn.Conv2d, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[nn.Parameter, torch.Tensor]:
    """Opacus's gradients of a convolution by sample, which are wrong without a word where channels come last: it
    unfolds the memory of an image as if they came first."""
    own = copy.copy(layer)
    own.__class__ = nn.Conv2d  # the very type that Opacus asks for
    return compute_conv_grad_sample(own, [images.contiguous() for images in activations], backprops)


def guarded(
    module: nn.Module, optimizer: torch.optim.Optimizer, config: Config, world: World
) -> tuple[nn.Module, torch.optim.Optimizer, GradSampleModule]:
    """(a wrapper of D, its optimizer that clips, adds noise and sums over ranks, and what keeps gradients by sample).

    Losses are to be backpropagated as sums over samples: the optimizer divides by the expected number of them.
    """
    # Images and labels need no gradient, and the hooks want that of outputs alone.
    warnings.filterwarnings("ignore", "Full backward hook is firing when gradients are computed", UserWarning)
    dp, device = config.privacy.dp, next(module.parameters()).device
    keeper = GradSampleModule(module, loss_reduction="sum")
    wrapped, kind = keeper, DPOptimizer
    if world.size > 1:
        wrapped, kind = DifferentiallyPrivateDistributedDataParallel(keeper), DistributedDPOptimizer
    private = kind(
        optimizer,
        noise_multiplier=dp.noise,
        max_grad_norm=dp.clip,
        expected_batch_size=config.global_batch / world.size,
        generator=unforeseen(device),
    )
    return wrapped, private, keeper


MT19937 = slice(24, 24 + 624 * 8)
"""Where the state of torch's CPU generator holds its 624 words of 32 bits, each in 64."""


def unforeseen(device: torch.device) -> torch.Generator:
    """A generator of noise that nobody can draw again. On a CPU torch takes 32 bits of a seed, few enough to try them
    all: there its whole state comes from the operating system."""
    generator = torch.Generator(device)
    if device.type != "cpu":
        return generator.manual_seed(secrets.randbits(64))
    state = generator.get_state().numpy().copy()
    state[MT19937].view(np.uint64)[:] = np.frombuffer(secrets.token_bytes(624 * 4), np.uint32)
    generator.set_state(torch.from_numpy(state))
    return generator
