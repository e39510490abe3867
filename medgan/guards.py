"""What goes wrong in training while every number is finite: samples that become one image, a D that learns by heart.

Neither ends a run: the best checkpoint is kept by KID, and an alarm says where to look.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medgan.config import Config
from medgan.metrics.classifiers import auc
from medgan.pixels import to_images
from medgan.state import TrainState
from medgan.step import augmented

COLLAPSED = 0.5
"""Of the highest diversity seen: what is below is alarming."""
NARROW = 0.2
"""Of the real images' spread: what a generator may have without alarm until it has learnt for GROWN evaluations."""
GROWN = 4
BY_HEART = 0.75
"""How often D gives a training image a larger logit than a held-out one. Half is chance: of 27 images a side that it
knows equally little, 0.75 is three standard errors from it."""


class Guard:
    """Looks at every evaluation's figures and says what is alarming, each thing once until it is over."""

    def __init__(self) -> None:
        self.highest, self.looks = 0.0, 0
        self.said: set[str] = set()

    def look(self, row: dict[str, float]) -> dict[str, str]:
        """{what: a sentence} of what is newly alarming in a row of metric/*."""
        found = {}
        diversity, overfit = row.get("metric/diversity"), row.get("metric/overfit")
        if diversity is not None:
            self.highest, self.looks = max(self.highest, diversity), self.looks + 1
            fell = diversity < COLLAPSED * self.highest and self.highest >= NARROW
            if fell or (diversity < NARROW and self.looks >= GROWN):
                found["collapse"] = (
                    f"samples are alike (spread {diversity:.2f} of the real ones', at most it was {self.highest:.2f}); "
                    "a larger loss.r1_gamma or smaller optim.lr_d may help, the best checkpoint is kept"
                )
        if overfit is not None and overfit > BY_HEART:
            found["overfit"] = (
                f"D knows its training images by heart (it prefers them to held-out ones {overfit:.0%} of the time, "
                "chance is 50%); augment.name=diffaugment, or ada with a smaller augment.target, helps with few images"
            )
        new = {what: text for what, text in found.items() if what not in self.said}
        self.said = set(found)
        return new


@torch.no_grad()
def overfit(state: TrainState, sides: dict[str, tuple[Tensor, Tensor]], rows: np.ndarray, n: int) -> float | None:
    """How often D gives a training image a larger logit than a held-out one: 0.5 by chance, 1 where it knows them by
    heart. By ranks, since means of logits, as in arXiv:2006.06676 (eq. 1, r_v), follow a few large ones.

    sides: {train, held-out: (uint8 pixels (m, C, R, R), labels (m, K)) of this rank}, which stand at `rows` among all n
    of a side. D judges them augmented as in training: it knows no others, and G learns from no others. Every rank calls
    it, rank 0 gets it. None elsewhere, and where D normalises over a batch or no group of images is whole.
    """
    if not comparable(state.config):
        return None
    train, held_out = (state.world.gather_rows(judged(state, side, *some, rows, n)) for side, some in sides.items())
    return auc(train.numpy(), held_out.numpy()) if train is not None and held_out is not None and len(train) else None


def judged(state: TrainState, side: str, pixels: Tensor, labels: Tensor, rows: np.ndarray, n: int) -> Tensor:
    """D's logits of images augmented as in training, as many as are in whole groups, for D looks at those: (m,).

    pixels, labels, rows, n: as `overfit` has them of a side.
    """
    world, group = state.world, state.config.sample_group
    whole, logits = len(rows) // group * group, [torch.zeros(0, dtype=state.dtype, device=world.device)]
    for first in range(0, whole, 64):
        some = slice(first, min(first + 64, whole))
        images = to_images(pixels[some].to(world.device), state.dtype)
        images = augmented(state, rows[some], images, f"judged/{side}", of=n)
        logits.append(state.discriminator.module(images, labels[some].to(world.device, state.dtype)))
    return torch.cat(logits)


def comparable(config: Config) -> bool:
    """Whether D judges an image without regard to the rest of the batch, but for its minibatch-stddev group."""
    return getattr(config.model, "norm_d", "none") == "none"
