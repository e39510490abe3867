"""Images that two splits share: the same file, or a copy that was cropped, shifted, brightened or encoded again.

A coarse look proposes pairs: the correlation of 8x8 thumbnails, also of their middles. It then has to be confirmed
for each: the two images are laid over each other as well as scaling and shifting allow, and what is left of their fine
structure is correlated. Different patients' films correlate too, so what counts as a copy follows from how strongly
the images of this data set do.

Difference hashes of 64 bits were tried for the proposal and are too coarse for films: of copies cropped by up to 3 %
on every side they put 80 % among the 8 nearest of 4,222 films, thumbnails 100 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 32
CHUNK = 1024
"""Images that are taken into memory as floats at a time."""
COARSE = 8
BLUR = 5
"""Fine structure is what differs from the mean of so many pixels squared."""
MIDDLES = (1.0, 0.94, 0.88)
"""Of either image of a pair the whole or such a share of its side is compared."""
PROPOSALS = 4
ROUNDS = ((2, 3), (2, 10))
"""(how many pairs of an image are kept, after so many steps of laying one over the other)"""
LIMITS = torch.tensor([[0.78, 0.78, -0.2, -0.2], [1.28, 1.28, 0.2, 0.2]])
"""How far an image may be scaled and shifted (in half sides) to lie over another."""
OVERLAP = 0.6
"""Share of the image in which the two must lie over each other."""
DEVIATIONS = 4.5
LEAST, SURE = 0.9, 0.98
"""The threshold lies between them, whatever the images look like."""
FEW = 100


@dataclass(frozen=True)
class Images:
    """What is compared of N images. thumbnails: uint8 (N, 32, 32); ids: the keyed id of each one's bytes."""

    thumbnails: np.ndarray
    ids: list[str]

    @staticmethod
    def of(pixels: np.ndarray, ids: Sequence[str]) -> Images:
        """pixels: uint8 (N, C, R, R), colours become their mean."""
        thumbnails = [np.zeros((0, SIDE, SIDE), np.uint8)]
        for first in range(0, len(pixels), CHUNK):
            grey = torch.from_numpy(np.array(pixels[first : first + CHUNK])).float().mean(1, keepdim=True)
            small = F.interpolate(grey, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
            thumbnails.append(small[:, 0].round().to(torch.uint8).numpy())
        return Images(np.concatenate(thumbnails), list(ids))

    @staticmethod
    def together(several: Sequence[Images]) -> Images:
        nothing = np.zeros((0, SIDE, SIDE), np.uint8)
        thumbnails = np.concatenate([nothing, *(images.thumbnails for images in several)])
        return Images(thumbnails, [name for images in several for name in images.ids])

    def some(self, rows: np.ndarray) -> Images:
        return Images(self.thumbnails[rows], [self.ids[row] for row in rows])

    def __len__(self) -> int:
        return len(self.ids)


Nearest = Callable[[Images, Images], tuple[np.ndarray, np.ndarray]]


def copies(images: Images, others: Images, find: Nearest | None = None) -> dict[int, str]:
    """Rows of `images` of which `others` holds the same or a near-copy -> which of the two, as words.

    find: `nearest`, or the same in another place.
    """
    find = find or nearest
    if not len(images) or not len(others):
        return {}
    theirs, mine = set(others.ids), set(images.ids)
    found = {row: "the same file as" for row, name in enumerate(images.ids) if name in theirs}
    asking, left = np.arange(len(others)), np.arange(len(images))
    limit = None
    while len(asking) and len(left):  # each finds a few at a time: who found one asks again without them
        likeness, partner = find(others.some(asking), images.some(left))
        if limit is None:
            limit = threshold(likeness[[name not in mine for name in others.ids]].max(1, initial=-1))
        near = left[partner[likeness > limit]]
        found = dict.fromkeys(near.tolist(), "a near-copy of") | found
        asking = asking[(likeness > limit).any(1)]
        left = np.setdiff1d(left, near)
    return found


def threshold(likeness: np.ndarray) -> float:
    """The likeness above which a pair is one image: 4.5 deviations above the median of what pairs here have.

    likeness: that of each image to the most alike of other patients, float (N,). Median and deviation are of Fisher's
    z and robust, so that copies among them do not count; with fewer than 100 there is no distribution: 0.95.
    """
    if len(likeness) < FEW:
        return 0.95
    z = np.arctanh(np.clip(likeness, -0.999, 0.999))
    middle, high = np.quantile(z, [0.5, 0.9])
    deviation = (high - middle) / 1.2816  # the 90th percentile of a normal distribution
    return float(np.clip(math.tanh(middle + DEVIATIONS * deviation), LEAST, SURE))


def nearest(images: Images, others: Images, proposals: int = PROPOSALS) -> tuple[np.ndarray, np.ndarray]:
    """(likeness float (N, K), rows of others int (N, K)): for each image those of the others that look most alike.

    proposals: how many that look alike coarsely are laid over each image; more find what was shifted further.
    """
    theirs = torch.from_numpy(others.thumbnails).float()
    coarse = {middle: _coarse(_middle(theirs, middle)) for middle in MIDDLES}
    fine = _fine(theirs)
    likeness, partner = [], []
    for some in torch.from_numpy(images.thumbnails).split(64):
        mine = some.float()
        rows, scales = _propose(mine, coarse, proposals)
        for keep, steps in ROUNDS:
            count = rows.shape[1]
            mine_fine = _fine(mine).repeat_interleave(count, 0)
            found = _confirm(mine_fine, fine[rows.flatten()], scales.flatten(), steps).view(rows.shape)
            found, best = found.topk(min(keep, count), 1)
            rows, scales = rows.gather(1, best), scales.gather(1, best)
        likeness.append(found)
        partner.append(rows)
    return torch.cat(likeness).numpy(), torch.cat(partner).numpy()


def _propose(mine: Tensor, coarse: dict[float, Tensor], proposals: int) -> tuple[Tensor, Tensor]:
    """Rows (N, K) of the others that look alike coarsely, and the scale (N, K) at which each does."""
    whole = _coarse(mine)
    scores, scales = [], []
    for middle, theirs in coarse.items():
        scores.append(whole @ theirs.T)
        scales.append(middle)
        if middle < 1:
            scores.append(_coarse(_middle(mine, middle)) @ coarse[1.0].T)
            scales.append(1 / middle)
    score, which = torch.stack(scores).max(0)
    rows = score.topk(min(proposals, score.shape[1]), 1).indices
    return rows, torch.tensor(scales)[which.gather(1, rows)]


def _confirm(mine: Tensor, theirs: Tensor, scales: Tensor, steps: int) -> Tensor:
    """The highest correlation (P,) on the way to laying `theirs` over `mine` (P, 32, 32), pair by pair.

    Lucas and Kanade's registration (IJCAI 1981) with damping: Gauss-Newton steps for two scales and two shifts from
    the given scale of both axes. The correlation is of the pixels where the two overlap.
    """
    pairs = len(mine)
    place = torch.stack([scales, scales, torch.zeros(pairs), torch.zeros(pairs)], 1)
    slope_x = (theirs.roll(-1, 2) - theirs.roll(1, 2)) * (SIDE / 4)
    slope_y = (theirs.roll(-1, 1) - theirs.roll(1, 1)) * (SIDE / 4)
    stack = torch.stack([theirs, slope_x, slope_y], 1)
    axis = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    inner = F.pad(torch.ones(SIDE - 4, SIDE - 4), (2, 2, 2, 2)).bool()
    best = torch.full((pairs,), -1.0)
    for _ in range(steps):
        at_x = place[:, 0, None, None] * x + place[:, 2, None, None]
        at_y = place[:, 1, None, None] * y + place[:, 3, None, None]
        laid = F.grid_sample(stack, torch.stack([at_x, at_y], -1), align_corners=False)
        inside = ((at_x.abs() < 1) & (at_y.abs() < 1) & inner).float()
        one, other = _centred(mine, inside), _centred(laid[:, 0], inside)
        length, other_length = (image.flatten(1).norm(dim=1) + 1e-6 for image in (one, other))
        likeness = (one * other).sum((1, 2)) / length / other_length
        enough = inside.sum((1, 2)) > OVERLAP * inner.sum()
        best = torch.where(enough, torch.maximum(best, likeness), best)
        left = (one * (other_length / length)[:, None, None] - other).flatten(1)
        slopes = torch.stack([laid[:, 1] * x, laid[:, 2] * y, laid[:, 1], laid[:, 2]], 1) * inside[:, None]
        slopes = slopes.flatten(2)
        square = slopes @ slopes.transpose(1, 2)
        square = square + torch.diag_embed(square.diagonal(dim1=1, dim2=2) * 0.01 + 1e-3)
        step = torch.linalg.solve(square, slopes @ left[:, :, None])[:, :, 0]
        place = (place + step.clamp(-0.05, 0.05)).clamp(LIMITS[0], LIMITS[1])
    return best


def _centred(images: Tensor, inside: Tensor) -> Tensor:
    mean = (images * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    return (images - mean[:, None, None]) * inside


def _coarse(images: Tensor) -> Tensor:
    """(N, 32, 32) -> unit vectors (N, 64) without a mean: the thumbnail whose products are correlations."""
    small = F.avg_pool2d(images[:, None], SIDE // COARSE).flatten(1)
    return F.normalize(small - small.mean(1, keepdim=True), dim=1)


def _middle(images: Tensor, share: float) -> Tensor:
    """The middle of (N, 32, 32), at the same size."""
    if share == 1:
        return images
    turn = torch.tensor([[share, 0.0, 0.0], [0.0, share, 0.0]]).expand(len(images), 2, 3)
    where = F.affine_grid(turn, [len(images), 1, SIDE, SIDE], align_corners=False)
    return F.grid_sample(images[:, None], where, align_corners=False)[:, 0]


def _fine(images: Tensor) -> Tensor:
    padded = F.pad(images[:, None], (BLUR // 2,) * 4, mode="reflect")
    return images - F.avg_pool2d(padded, BLUR, 1)[:, 0]
