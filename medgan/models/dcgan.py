"""DCGAN (Radford et al. 2016, arXiv:1511.06434): 4x4 convolutions with stride 2, BatchNorm, no labels."""

from __future__ import annotations

from torch import Tensor, nn

from medgan.config import Dcgan
from medgan.models.convolution import Conv2d, ConvTranspose2d
from medgan.models.layers import BatchNorm, activation, channels_at


class Generator(nn.Module):
    """z (N, z_dim) -> images (N, C, R, R) in [-1, 1]; labels are ignored."""

    def __init__(self, config: Dcgan, resolution: int, channels: int) -> None:
        super().__init__()
        widths = channels_at(config.width, config.max_width, resolution)[::-1]
        layers: list[nn.Module] = [ConvTranspose2d(config.z_dim, widths[0], 4, bias=False)]
        for here, above in zip(widths, [*widths[1:], None], strict=True):
            layers += [BatchNorm(here), activation(config.activation, 0)]
            last = above is None
            layers.append(ConvTranspose2d(here, above or channels, 4, 2, 1, bias=last))
        self.layers = nn.Sequential(*layers)
        self.apply(init_dcgan)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        images: Tensor = self.layers(z[:, :, None, None])
        return images.tanh()


class Discriminator(nn.Module):
    """images (N, C, R, R) -> logits (N,); labels are ignored."""

    def __init__(self, config: Dcgan, resolution: int, channels: int) -> None:
        super().__init__()
        widths = channels_at(config.width, config.max_width, resolution)
        norm = config.norm_d == "batch"
        layers: list[nn.Module] = []
        below = channels
        for level, here in enumerate(widths):
            normalised = norm and level > 0  # not on the input layer, as in the paper
            layers.append(Conv2d(below, here, 4, 2, 1, bias=not normalised))
            if normalised:
                layers.append(BatchNorm(here))
            layers.append(activation(config.activation, 0.2))
            below = here
        layers.append(Conv2d(below, 1, 4))
        self.layers = nn.Sequential(*layers)
        self.apply(init_dcgan if norm else init_he)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits.flatten()


def init_dcgan(module: nn.Module) -> None:
    """Weights from N(0, 0.02), biases 0: the paper's choice, where BatchNorm sets the scale."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_he(module: nn.Module) -> None:
    """Weights that keep the variance through LeakyReLU(0.2) (He et al. 2015, arXiv:1502.01852), biases 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, a=0.2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
