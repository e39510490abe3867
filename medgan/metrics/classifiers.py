"""Classifiers of real images, for what they say of generated ones: how they are trained, and how their answers score.

One budget of steps for every arm and every amount of data, so that arms differ in nothing but their images. Nothing
is chosen on held-out images that an answer depends on: no early end, no threshold. Where a score is read at a given
specificity, that of the scored images themselves is meant, as on a ROC curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medgan.pixels import to_images
from medgan.streams import stream, stream_seed

BATCH = 64
STEPS = 800
SPECIFICITY = 0.9
"""At which sensitivity is read."""
SCORES = {
    "auc": ("AUC", "mean over classes: larger is better"),
    "balanced_accuracy": ("balanced accuracy", "mean sensitivity over classes: larger is better"),
    "macro_f1": ("macro F1", "mean over classes: larger is better"),
    "rare_sensitivity": ("rare-class sensitivity", f"at specificity {SPECIFICITY}: larger is better"),
    "calibration_error": ("calibration error", "expected, over ten bins: smaller is better"),
}


def small_cnn(channels: int, resolution: int, classes: int) -> nn.Module:
    """Four convolutions, about 60,000 weights; its last maps are averaged, so that any resolution will do."""
    layers: list[nn.Module] = []
    for below, width in pairwise((channels, 16, 32, 64, 64)):
        layers += [nn.Conv2d(below, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.MaxPool2d(2), nn.ReLU()]
    side = min(4, resolution // 16)
    layers += [nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * side**2, classes)]
    return nn.Sequential(*layers)


def resnet18(channels: int, resolution: int, classes: int) -> nn.Module:
    """torchvision's, untrained, with a first layer for so many channels, which keeps films of 64 pixels and less."""
    from torchvision import models

    network = models.resnet18(weights=None, num_classes=classes)
    fine = resolution <= 64
    network.conv1 = nn.Conv2d(channels, 64, 3 if fine else 7, 1 if fine else 2, 1 if fine else 3, bias=False)
    if fine:
        network.maxpool = nn.MaxPool2d(2)
    return network


NETWORKS = {"small-cnn": small_cnn, "resnet18": resnet18}


@dataclass(frozen=True)
class Images:
    """What a classifier learns from. pixels: uint8 (N, C, R, R); labels: uint8 (N, K), one-hot or multi-hot."""

    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def some(self, rows: np.ndarray) -> Images:
        return Images(self.pixels[rows], self.labels[rows])

    @staticmethod
    def together(several: Sequence[Images]) -> Images:
        return Images(
            np.concatenate([images.pixels for images in several]), np.concatenate([images.labels for images in several])
        )


def exclusive(labels: np.ndarray) -> bool:
    """Whether every image is of exactly one class: then a classifier chooses one, else it says yes or no to each."""
    return bool((labels.sum(1) == 1).all())


def train(
    images: Images,
    network: str,
    seed: int,
    *,
    single: bool,
    steps: int = STEPS,
    augment: bool = False,
    mirror: bool = False,
    weights: np.ndarray | None = None,
    begin: nn.Module | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A network trained for so many batches of 64: Adam, learning rate 1e-3 along a cosine to 0.

    single: one class per image. augment: classical augmentation; mirror: also left to right. weights: how often each
    row comes, relative to others, float (N,); None: equally. begin: a network to go on from. Draws come from the seed
    alone.
    """
    channels, resolution, classes = *images.pixels.shape[1:3], images.labels.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "classifier", 0))
        model = begin if begin is not None else NETWORKS[network](channels, resolution, classes)
        model.to(device).to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        random = np.random.default_rng(stream_seed(seed, "classifier/rows", 0))
        share = None if weights is None else weights / weights.sum()
        order = np.zeros(0, np.int64)
        for step in range(steps):
            while len(order) < BATCH:
                more = random.permutation(len(images)) if share is None else random.choice(len(images), BATCH, p=share)
                order = np.concatenate([order, more])
            rows, order = order[:BATCH], order[BATCH:]
            inputs = to_images(torch.from_numpy(images.pixels[rows]))
            if augment:
                inputs = augmented(inputs, stream(seed, "classifier/augment", step), mirror=mirror)
            targets = torch.from_numpy(images.labels[rows]).to(device, torch.float32)
            logits = model(inputs.to(device, memory_format=torch.channels_last))
            loss = F.cross_entropy(logits, targets) if single else F.binary_cross_entropy_with_logits(logits, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def augmented(images: Tensor, random: torch.Generator, *, mirror: bool = False) -> Tensor:
    """Classical augmentation: up to 10 degrees, 10 % of scale, 8 % of shift, 20 % of contrast, 0.1 of brightness.

    mirror: every other image left to right, where such an image is still one of its kind (see Manifest.mirror); in a
    film of the chest the heart is on one side.
    """
    count = len(images)
    draw = torch.rand(6, count, generator=random) * 2 - 1
    angle, scale = draw[0] * 10 / 180 * torch.pi, 1 + draw[1] * 0.1
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    side = torch.where(torch.rand(count, generator=random) < 0.5, -1.0, 1.0) if mirror else torch.ones(count)
    turn = torch.stack([cosine * side, -sine, draw[2] * 0.16, sine * side, cosine, draw[3] * 0.16], 1).view(count, 2, 3)
    where = F.affine_grid(turn, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, where, padding_mode="border", align_corners=False)
    changed = moved * (1 + draw[4] * 0.2)[:, None, None, None] + (draw[5] * 0.1)[:, None, None, None]
    return changed.clamp(-1, 1)


@torch.no_grad()
def predict(model: nn.Module, pixels: np.ndarray, *, single: bool) -> np.ndarray:
    """Probabilities, float32 (N, K), of uint8 (N, C, R, R)."""
    device = next(model.parameters()).device
    answers = []
    for first in range(0, len(pixels), 256):
        logits = model(to_images(torch.from_numpy(np.array(pixels[first : first + 256])).to(device)))
        answers.append((logits.softmax(1) if single else logits.sigmoid()).cpu())
    return torch.cat(answers).numpy()


def scores(answers: np.ndarray, labels: np.ndarray, rare: int, *, single: bool) -> dict[str, float]:
    """SCORES of probabilities (N, K) against labels (N, K); classes that labels lack, or that all have, are left out,
    but for the sensitivity of what is there. NaN: nothing is left to tell.

    Where an image has one class the most probable is the answer, else each class from 0.5 on.
    """
    truth = labels > 0
    said = answers == answers.max(1, keepdims=True) if single else answers >= 0.5
    known = [index for index in range(truth.shape[1]) if 0 < truth[:, index].sum() < len(truth)]
    sensitivity, f1 = [], []
    for index in range(truth.shape[1]):
        hit = float((said[:, index] & truth[:, index]).sum())
        if truth[:, index].any():
            sensitivity.append(hit / truth[:, index].sum())
        if not single and index in known:  # the other answer to a yes-or-no question is a class too
            sensitivity.append(float((~said & ~truth)[:, index].sum() / (~truth[:, index]).sum()))
        if index in known:
            f1.append(2 * hit / (said[:, index].sum() + truth[:, index].sum()))
    return {
        "auc": _mean([auc(answers[truth[:, k], k], answers[~truth[:, k], k]) for k in known]),
        "balanced_accuracy": _mean(sensitivity),
        "macro_f1": _mean(f1),
        "rare_sensitivity": rate_at(answers[truth[:, rare], rare], answers[~truth[:, rare], rare], 1 - SPECIFICITY)
        if rare in known
        else float("nan"),
        "calibration_error": _calibration(answers, truth, single),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The chance that a positive scores above a negative; ties count half (Mann and Whitney 1947)."""
    values = np.concatenate([positive, negative])
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[where]
    n = len(positive)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * len(negative)))


def rate_at(positive: np.ndarray, negative: np.ndarray, false_rate: float) -> float:
    """Share of positives above a threshold that at most such a share of negatives is above."""
    allowed = int(false_rate * len(negative) + 1e-9)  # 1 - 0.9 is a little less than a tenth
    threshold = np.sort(negative)[::-1][allowed] if allowed < len(negative) else -np.inf
    return float((positive > threshold).mean())


def _calibration(answers: np.ndarray, truth: np.ndarray, single: bool) -> float:
    """How far probabilities are from shares: of the class that is said, or of every class where there are several."""
    if single:
        sure = answers.max(1)
        right = truth[np.arange(len(truth)), answers.argmax(1)]
    else:
        sure, right = answers.ravel(), truth.ravel()
    bins = np.minimum((sure * 10).astype(int), 9)
    gaps = [abs(sure[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return float(np.sum(gaps))
