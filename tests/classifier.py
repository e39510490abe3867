"""An independent classifier: a small CNN trained on real images, which reads the class of generated ones."""

from itertools import pairwise

import numpy as np
import torch
from torch import nn

from medgan.data.loader import open_split
from medgan.pixels import to_images


def network(channels: int, resolution: int, classes: int) -> nn.Module:
    widths = [channels, 16, 32, 64]
    layers: list[nn.Module] = []
    for below, width in pairwise(widths):
        layers += [nn.Conv2d(below, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(widths[-1] * (resolution // 8) ** 2, classes)
    )


def fit(data: str, epochs: int = 6, seed: int = 0) -> nn.Module:
    """Train on the train split of a data folder."""
    split = open_split(data, "train")
    torch.manual_seed(seed)
    images = to_images(torch.from_numpy(np.array(split.pixels)))
    targets = torch.from_numpy(split.labels.argmax(1))
    model = network(images.shape[1], images.shape[2], split.labels.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            loss = nn.functional.cross_entropy(model(images[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: str, split: str) -> float:
    """Balanced accuracy on a split."""
    rows = open_split(data, split)
    predicted = torch.cat([model(to_images(chunk)) for chunk in torch.from_numpy(np.array(rows.pixels)).split(256)])
    right = predicted.argmax(1).numpy() == rows.labels.argmax(1)
    return float(np.mean([right[rows.labels[:, index] == 1].mean() for index in range(rows.labels.shape[1])]))
