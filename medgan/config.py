"""Every knob of a run, once: what it means, what it may be, what may be combined.

A config is made from a preset or a YAML file, then dotted overrides (`--set loss.r1_gamma=2`), then validated
as a whole. What a person writes is text until the type of its setting says what it is: see `read`. A config travels
through Ray as a plain dict and is validated again on the worker. No torch in here: a wrong command line is refused
before anything heavy is imported.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from medgan import values
from medgan.names import one_line, wrong_with

Precision = Literal["auto", "float64", "float32", "bfloat16", "float16"]
RESOLUTIONS = (32, 64, 128, 256, 512)


class Refused(ValueError):
    """A command that cannot be carried out; nothing was written. One line: what, its value, what is allowed."""


class ConfigError(Refused):
    """A setting that cannot be used. The message is one line: the dotted key, the value, what is allowed."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def _classes(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if why := wrong_with(names or ()):
        raise ValueError(why)
    return names


Gamma = Annotated[float | None, BeforeValidator(lambda value: None if value == "auto" else value)]


class Data(Section):
    """What the run trains on. All of it comes from DATA; a value set here must agree with DATA."""

    resolution: Literal[32, 64, 128, 256, 512] | None = None
    """Side of the square images in pixels. None: as in DATA."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour. None: as in DATA."""
    classes: Annotated[tuple[str, ...] | None, AfterValidator(_classes)] = None
    """Class names in label order. None: as in DATA."""
    manifest_sha256: str | None = Field(None, pattern="^[0-9a-f]{1,64}$")
    """SHA-256 of DATA/manifest.json, hex. None: any DATA; filled in when the run starts."""
    mirror: bool | None = None
    """Whether a mirrored image is still one of its kind: OCT scans yes, chest films no (the heart is on one side).
    None: as the source of DATA says. To flip images of other sources set augment.mirror."""
    balance: float = Field(0.0, ge=0, le=1)
    """How far rare classes are shown more often: 0 as in DATA, 1 all classes equally often. For G and D alike."""


class ConvModel(Section):
    """Knobs that every convolutional model has."""

    z_dim: int = Field(128, ge=1, le=1024)
    """Length of the latent vector z."""
    width: int = Field(32, ge=4, le=256)
    """Channels of the layer at half resolution; doubled at every halving below it, up to max_width."""
    max_width: int = Field(256, ge=4, le=1024)
    """Most channels of any layer."""
    activation: Literal["relu", "silu"] = "relu"
    """relu: ReLU in G and LeakyReLU(0.2) in D; silu: SiLU in both."""


class Dcgan(ConvModel):
    """Unconditional (Radford et al. 2016, arXiv:1511.06434): labels are ignored."""

    name: Literal["dcgan"] = "dcgan"
    """dcgan: unconditional."""
    norm_d: Literal["batch", "none"] = "batch"
    """Normalisation in D: batch (as in the paper) or none (wanted by gradient penalties)."""


class Conditional(ConvModel):
    """Knobs of the models that take labels."""

    stddev_group: int = Field(4, ge=1, le=64)
    """Samples per minibatch-stddev group in D; 1 turns the statistic off."""
    anneal_from_kimg: float = Field(0.0, ge=0)
    """Up to here, in thousands of images, the model trains as if there were no labels."""
    anneal_to_kimg: float = Field(0.0, ge=0)
    """From here on labels have their full strength, in between it grows linearly (arXiv:2201.06578); 0: from the
    first image on."""


class Cgan(Conditional):
    """Conditional: class-conditional BatchNorm in G, projection D (Miyato and Koyama 2018, arXiv:1802.05637)."""

    name: Literal["cgan"] = "cgan"
    """cgan: conditional."""


class Stylegan2Lite(Conditional):
    """A lean StyleGAN2 (Karras et al. 2020, arXiv:1912.04958); conditional where DATA has classes."""

    name: Literal["stylegan2-lite"] = "stylegan2-lite"
    """stylegan2-lite: style-based; conditional where DATA has classes."""
    w_dim: int = Field(128, ge=1, le=1024)
    """Length of the intermediate latent w."""
    mapping_layers: int = Field(2, ge=1, le=16)
    """Layers of the mapping network from z to w."""
    mapping_lr: float = Field(0.01, gt=0, le=1)
    """Share of the learning rate at which the mapping network learns."""
    noise: bool = True
    """A noise image per level of G, part of z, with a learned strength in each layer."""
    style_mixing: float = Field(0.0, ge=0, le=1)
    """Share of the images in training whose finer levels follow a second w (arXiv:1812.04948, 3.1)."""


class Resgan(Conditional):
    """Residual blocks without normalisation, after R3GAN (Huang et al. 2024, arXiv:2501.05441); conditional where
    DATA has classes."""

    name: Literal["resgan"] = "resgan"
    """resgan: residual, no normalisation; conditional where DATA has classes."""
    stddev_group: int = Field(1, ge=1, le=64)
    """Samples per minibatch-stddev group in D; 1 turns the statistic off, as in the paper."""
    blocks: int = Field(1, ge=1, le=8)
    """Residual blocks per resolution, in G and in D."""
    expansion: int = Field(2, ge=1, le=8)
    """Channels inside a block for each channel outside."""
    group_width: int = Field(16, ge=1, le=1024)
    """Channels of a group of the 3x3 convolution inside a block; where they do not divide, the next more that do."""


Model = Annotated[Dcgan | Cgan | Stylegan2Lite | Resgan, Field(discriminator="name")]
MODELS: tuple[type[ConvModel], ...] = (Dcgan, Cgan, Stylegan2Lite, Resgan)


class Loss(Section):
    name: Literal["bce", "lsgan", "hinge", "wgan-gp", "rpgan"] = "bce"
    """bce: non-saturating logistic; lsgan: least squares, arXiv:1611.04076; hinge: arXiv:1705.02894; wgan-gp:
    Wasserstein with gradient penalty, arXiv:1704.00028; rpgan: relativistic pairs of one label, arXiv:2501.05441."""
    r1_gamma: Gamma = Field(0.0, ge=0, le=1e4)
    """Weight of the R1 penalty, gamma/2 * |dD/dx|^2 at real images; 0 turns it off; auto (or none):
    loss.auto_gamma * resolution^2 / global_batch."""
    r2_gamma: Gamma = Field(0.0, ge=0, le=1e4)
    """Weight of the R2 penalty, the same at generated images; 0 turns it off; auto as for R1."""
    auto_gamma: float = Field(0.0004, gt=0, le=0.05)
    """What a gamma of auto is made from; twice what arXiv:2006.06676 starts from."""
    r1_interval: int = Field(16, ge=1, le=1024)
    """R1 and R2 are taken every so many steps and weighted by as much; 1: every step."""
    gamma_kimg: float = Field(0.0, ge=0)
    """R1 and R2 weigh less from image to image until here, along a cosine; 0: they stay as they are."""
    gamma_left: float = Field(0.1, ge=0, le=1)
    """What is left of their weights from gamma_kimg on, as a share."""
    gp_weight: float = Field(10.0, gt=0, le=1e4)
    """wgan-gp: weight of (|dD/dx| - 1)^2 between a real and a generated image, in every step."""
    critic_steps: int = Field(1, ge=1, le=100)
    """D learns so many times for each time that G does, on images of its own; wgan-gp wants 5."""
    path_weight: float = Field(0.0, ge=0, le=1e4)
    """stylegan2-lite: weight of the path length penalty (arXiv:1912.04958, eq. 4); 0 turns it off, the paper has 2."""
    path_interval: int = Field(4, ge=1, le=1024)
    """It is taken every so many steps of G and weighted by as much."""


Kind = Literal["flip", "shift", "scale", "rotate", "stretch", "brightness", "contrast", "saturation", "hue", "cutout"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Augment(Section):
    """What D sees of real and generated images alike, so that few images do not make it learn them by heart."""

    name: Literal["none", "diffaugment", "ada", "ramp"] = "none"
    """diffaugment: always, in the manner of arXiv:2006.10738 with the ranges of ada, for a few hundred images; ada:
    each transformation with a probability that follows D's overfitting (arXiv:2006.06676); ramp: with one that grows
    on a schedule, as rpgan wants."""
    kinds: tuple[Kind, ...] | None = None
    """Which transformations. None: for diffaugment brightness, contrast, saturation, shift and cutout, for ada and
    ramp all but cutout; each of them only as far as the images are still of their kind."""
    mirror: bool | None = None
    """Whether images may be flipped left to right. None: as data.mirror says."""
    p: float = Field(0.0, ge=0, le=1)
    """ada: the probability to start with; ramp: that to end with, above 0."""
    p_max: float = Field(0.8, ge=0, le=1)
    """ada: never more; above, transformations begin to show in the generated images."""
    target: float = Field(0.3, gt=0, lt=1)
    """ada: mean sign of D's logits at real images above which the probability grows. Half of its paper's 0.6; with 200
    films 0.1 keeps D from learning them by heart (docs/results.md, few-ada)."""
    kimg: float = Field(20.0, gt=0)
    """ada: thousands of images in which the probability goes from 0 to 1 at most (500 in its paper, whose trainings see
    25 million); ramp: until its end."""


class Ema(Section):
    half_life_kimg: float = Field(10.0, ge=0)
    """Half-life of the averaged generator in thousands of images; 0: no averaging."""
    ramp_up: float = Field(0.05, ge=0)
    """The half-life is at most this share of images_seen, so that early weights fade; 0: no ramp-up."""


class Optim(Section):
    """Adam, one for G and one for D."""

    lr_g: float = Field(2e-4, gt=0, le=1)
    """Learning rate of the generator."""
    lr_d: float = Field(2e-4, gt=0, le=1)
    """Learning rate of the discriminator."""
    beta1: float = Field(0.5, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the second moment."""
    eps: float = Field(1e-8, gt=0)
    """Term added to the denominator."""
    warmup_kimg: float = Field(0.0, ge=0)
    """Learning rates grow linearly from 0 over so many thousand images."""
    decay_kimg: float = Field(0.0, ge=0)
    """Learning rates fall until here, along a cosine; 0: they stay as they are."""
    decay_left: float = Field(0.1, ge=0, le=1)
    """What is left of them from decay_kimg on, as a share."""
    clip: float = Field(0.0, ge=0)
    """Gradients of a network whose norm is larger are scaled down to it; 0: never."""
    accumulation: int = Field(1, ge=1, le=1024)
    """A global batch is taken in so many equal parts, for the memory of one; BatchNorm then sees a part at a time."""
    bucket_mb: float = Field(25.0, gt=0)
    """Gradients travel between workers in parcels of so many MB, the first while the others are still computed."""
    compression: Literal["none", "bfloat16"] = "none"
    """bfloat16: half the bytes between workers; weights then depend on their number, to bfloat16's rounding."""


class Dp(Section):
    """Differentially private training (DP-SGD, arXiv:1607.00133): what one patient can change in D, and so in G, is
    bounded, whatever an attacker knows. Slower, and images are grainier."""

    epsilon: float = Field(0.0, ge=0)
    """The budget: training ends before it is spent. 0: training is not private; 1 is strict, 10 is lax."""
    delta: float | None = Field(None, gt=0, lt=1)
    """The chance at which the bound may fail. None: a tenth of one in the patients of train."""
    noise: float | None = Field(None, gt=0)
    """Deviation of the noise, in units of privacy.dp.clip. None: the least with which total_images stay in the
    budget."""
    clip: float = Field(1.0, gt=0)
    """Longest gradient that one patient adds: norm over all of D's weights."""


class Privacy(Section):
    dp: Dp = Dp()
    """DP-SGD."""


class Checkpoint(Section):
    interval_kimg: float = Field(20.0, gt=0)
    """A checkpoint every so many thousand images."""
    keep: int = Field(2, ge=1)
    """How many of the newest checkpoints stay; the best by KID stays besides."""


class Evaluate(Section):
    interval_kimg: float = Field(20.0, gt=0)
    """KID, FID and a sample grid every so many thousand images."""
    n: int = Field(512, ge=16)
    """Generated images per evaluation, against as many real ones; fewer where the split has fewer."""
    extractor: Literal["efficientnet-lite0"] = "efficientnet-lite0"
    """What turns images into features."""


class Tracking(Section):
    interval_kimg: float = Field(1.0, gt=0)
    """A row of losses every so many thousand images."""
    wandb: Literal["auto", "offline", "disabled"] = "auto"
    """auto: online where an API key is set, offline otherwise; disabled: no W&B."""
    project: str = Field("medgan", min_length=1)
    """W&B project."""
    group: str | None = None
    """W&B group. A search gives its trials its own name."""
    wait_s: float = Field(20.0, ge=0)
    """How long the end of a run waits for W&B to take the rest; a search waits for 5 s. What it does not take stays in
    RUN/wandb."""
    tags: tuple[str, ...] = ()
    """W&B tags besides the model's and the loss's names."""
    grid_columns: int = Field(8, ge=1, le=64)
    """Samples per class in the grids."""
    sample_ids: bool = False
    """Write down which rows of DATA every step used, in RUN/order.jsonl."""
    real_images: bool = False
    """Show real training images beside the samples on the run's page (they never go to W&B). Only for data that
    whoever gets the page may see."""


class Config(Section):
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the initial weights, the data order and every random draw."""
    total_images: int = Field(1_000_000, ge=1)
    """Real images shown to D before the run ends; acts at the first whole global batch at or past it."""
    global_batch: int = Field(64, ge=2, le=65536)
    """Images per step over all workers; does not change with their number."""
    precision: Precision = "auto"
    """auto: bfloat16 on GPU and on CPUs with AMX or AVX512-BF16, float32 elsewhere; settled when the run starts.
    float16: with gradients scaled so that they do not vanish."""
    tf32: bool = True
    """GPU: products in float32 keep 10 bits of mantissa, which is several times faster."""
    compile: bool = False
    """Compile what needs no second derivative (torch.compile): worth its minutes on long runs."""
    data: Data = Data()
    model: Model = Cgan()
    loss: Loss = Loss()
    augment: Augment = Augment()
    ema: Ema = Ema()
    optim: Optim = Optim()
    privacy: Privacy = Privacy()
    checkpoint: Checkpoint = Checkpoint()
    evaluate: Evaluate = Evaluate()
    tracking: Tracking = Tracking()

    def dump(self) -> dict[str, Any]:
        """As plain YAML types, every field spelled out."""
        return self.model_dump(mode="json")

    @property
    def private(self) -> bool:
        """Whether D is trained by DP-SGD."""
        return self.privacy.dp.epsilon > 0

    @property
    def one_pass(self) -> bool:
        """Whether D may see real and generated images together: not where BatchNorm would mix them."""
        return not isinstance(self.model, Dcgan) or self.model.norm_d == "none"

    @property
    def sample_group(self) -> int:
        """Samples that must stay on one rank because D looks at them together."""
        return self.model.stddev_group if isinstance(self.model, Conditional) else 1

    @property
    def most_workers(self) -> int:
        """More would have no samples: each takes at least one group of every piece of a global batch."""
        return self.global_batch // self.optim.accumulation // self.sample_group

    def label_strength(self, images_seen: int) -> float:
        """What labels are multiplied with: from 0 to 1 between model.anneal_from_kimg and model.anneal_to_kimg."""
        model = self.model
        if not isinstance(model, Conditional) or images_seen >= model.anneal_to_kimg * 1000:
            return 1.0
        start, end = model.anneal_from_kimg * 1000, model.anneal_to_kimg * 1000
        return (images_seen - start) / (end - start) if images_seen > start else 0.0

    def lr_factor(self, images_seen: int) -> float:
        """What learning rates are multiplied with in the step that starts at images_seen."""
        optim = self.optim
        warm = min(1.0, (images_seen + self.global_batch) / (optim.warmup_kimg * 1000)) if optim.warmup_kimg else 1.0
        return warm * _cosine(images_seen, optim.decay_kimg, optim.decay_left)

    def gamma_factor(self, images_seen: int) -> float:
        """What the weights of R1 and R2 are multiplied with in the step that starts at images_seen."""
        return _cosine(images_seen, self.loss.gamma_kimg, self.loss.gamma_left)

    def gradient_weight(self, name: Literal["r1", "r2"], images_seen: int) -> float:
        """What R1 or R2 is multiplied with in the step that starts at images_seen, if that takes it."""
        gamma = self.loss.r1_gamma if name == "r1" else self.loss.r2_gamma
        assert gamma is not None, "auto is settled by for_data"
        return gamma / 2 * self.loss.r1_interval * self.gamma_factor(images_seen)

    @property
    def augmentations(self) -> tuple[Kind, ...]:
        """The transformations of augment.name that keep these images what they are."""
        chosen = self.augment
        if chosen.name == "none":
            return ()
        usual: tuple[Kind, ...] = ("brightness", "contrast", "saturation", "shift", "cutout")
        if chosen.name != "diffaugment":
            usual = tuple(kind for kind in KINDS if kind != "cutout")
        wanted = usual if chosen.kinds is None else chosen.kinds
        return tuple(kind for kind in wanted if kind not in self.senseless())

    def senseless(self) -> dict[str, str]:
        """Transformations after which these images would be none of their kind, and why."""
        found = {}
        if not (self.data.mirror if self.augment.mirror is None else self.augment.mirror):
            found["flip"] = "a mirrored image is none of this data; if it is, set augment.mirror=true"
        if self.data.channels == 1:
            found |= dict.fromkeys(("saturation", "hue"), "DATA is grey")
        return found

    @property
    def conditional(self) -> bool:
        """Whether labels matter; config.data must be filled from DATA."""
        return isinstance(self.model, Conditional) and bool(self.data.classes)


def _cosine(images_seen: int, kimg: float, left: float) -> float:
    """From 1 at the first image to `left` at kimg and beyond, along half a cosine; 1 where kimg is 0."""
    if not kimg:
        return 1.0
    share = min(1.0, images_seen / (kimg * 1000))
    return left + (1 - left) * (1 + math.cos(math.pi * share)) / 2


# What may be combined. AXES are the choices, EXCLUDED what does not go together and why; anything else is allowed.
AXES: dict[str, tuple[str, ...]] = {
    "model.name": ("dcgan", "cgan", "stylegan2-lite", "resgan"),
    "model.norm_d": ("batch", "none"),
    "loss.name": get_args(Loss.model_fields["name"].annotation),
    "penalty": ("none", "r1", "r2", "r1+r2", "gp"),
    "path length": ("none", "weighted"),
    "augment.name": get_args(Augment.model_fields["name"].annotation),
    "condition": ("none", "class"),
    "privacy": ("none", "dp"),
}


@dataclass(frozen=True)
class Exclusion:
    when: Mapping[str, str]
    reason: str


EXCLUDED: tuple[Exclusion, ...] = (
    *(
        Exclusion(
            {"model.norm_d": "batch", "penalty": penalty},
            f"{key} needs a gradient per image, and BatchNorm in D mixes images: set model.norm_d=none",
        )
        for penalty, key in (
            ("r1", "loss.r1_gamma"),
            ("r2", "loss.r2_gamma"),
            ("r1+r2", "loss.r1_gamma"),
            ("gp", "loss.name=wgan-gp"),
        )
    ),
    *(
        Exclusion(
            {"loss.name": "wgan-gp", "penalty": penalty},
            "loss.name=wgan-gp has a penalty of its own: set loss.r1_gamma=0 loss.r2_gamma=0",
        )
        for penalty in ("none", "r1", "r2", "r1+r2")
    ),
    *(
        Exclusion({"loss.name": name, "penalty": "gp"}, f"loss.gp_weight belongs to wgan-gp, not to loss.name={name}")
        for name in ("bce", "lsgan", "hinge", "rpgan")
    ),
    *(
        Exclusion(
            {"model.name": name, "path length": "weighted"},
            f"loss.path_weight is about w, which {name} does not have: use model.name=stylegan2-lite",
        )
        for name in ("dcgan", "cgan", "resgan")
    ),
    *(
        Exclusion(
            {"loss.name": name, "augment.name": "ada"},
            f"augment.name=ada reads D's sign at real images, which loss.name={name} gives no meaning: use ramp",
        )
        for name in ("wgan-gp", "rpgan")
    ),
    *(
        Exclusion({axis: value, "privacy": "dp"}, f"privacy.dp.epsilon: {reason}")
        for axis, value, reason in (
            ("model.norm_d", "batch", "BatchNorm in D mixes patients: set model.norm_d=none"),
            ("penalty", "r1", "a penalty's gradient is not clipped by patient: set loss.r1_gamma=0"),
            ("penalty", "r2", "a penalty's gradient is not clipped by patient: set loss.r2_gamma=0"),
            ("penalty", "r1+r2", "a penalty's gradient is not clipped by patient: set loss.r1_gamma=0 loss.r2_gamma=0"),
            ("penalty", "gp", "a penalty's gradient is not clipped by patient: choose loss.name of bce, lsgan, hinge"),
            ("loss.name", "rpgan", "G's side of it looks at real images: choose loss.name of bce, lsgan, hinge"),
            ("augment.name", "ada", "its controller looks at D's sign at real images: use diffaugment or ramp"),
        )
    ),
    Exclusion(
        {"model.name": "cgan", "condition": "none"},
        "model.name=cgan needs labels and DATA has none: use model.name=dcgan",
    ),
    *(
        Exclusion(
            {"model.name": name, "model.norm_d": "batch"},
            f"model.norm_d=batch is a choice of dcgan: the D of {name} has no normalisation",
        )
        for name in ("cgan", "stylegan2-lite", "resgan")
    ),
)


def excluded(cell: Mapping[str, str]) -> str | None:
    """Why a cell of AXES is not allowed, or None."""
    for rule in EXCLUDED:
        if all(cell.get(axis) == value for axis, value in rule.when.items()):
            return rule.reason
    return None


def cells() -> Iterator[tuple[dict[str, str], str | None]]:
    """Every cell of AXES with the reason that excludes it, or None where it is allowed."""
    for chosen in product(*AXES.values()):
        cell = dict(zip(AXES, chosen, strict=True))
        yield cell, excluded(cell)


def cell_of(config: Config) -> dict[str, str]:
    """The cell of AXES that a config stands in."""
    return {
        "model.name": config.model.name,
        "model.norm_d": config.model.norm_d if isinstance(config.model, Dcgan) else "none",
        "loss.name": config.loss.name,
        "penalty": _penalty(config.loss),
        "path length": "weighted" if config.loss.path_weight else "none",
        "augment.name": config.augment.name,
        "condition": "class" if config.data.classes is None or len(config.data.classes) else "none",
        "privacy": "dp" if config.private else "none",
    }


def _penalty(loss: Loss) -> str:
    taken = [name for name, gamma in (("r1", loss.r1_gamma), ("r2", loss.r2_gamma)) if gamma is None or gamma > 0]
    if loss.name == "wgan-gp" and not taken:
        return "gp"
    return "+".join(taken) or "none"


FOUND_IN_DATA = ("channels", "classes", "mirror", "manifest_sha256")


_R1 = {"loss.name": "bce", "loss.r1_gamma": "auto", "optim.beta1": 0.0, "optim.beta2": 0.99}
_CONV = {"global_batch": 32, "optim.lr_g": 1e-3, "optim.lr_d": 1e-3}
# Half the batch of dcgan: twice the steps for the same images, and these are what a CPU's time goes into.
_CGAN = {"model.name": "cgan", **_R1, **_CONV, "global_batch": 16}
_STYLE = {"model.name": "stylegan2-lite", **_R1, "optim.lr_g": 2.5e-3, "optim.lr_d": 2.5e-3}

# A preset is a table of dotted keys: what differs from the defaults above. results/films.json says what they reach.
PRESETS: dict[str, dict[str, Any]] = {
    "dcgan": {"model.name": "dcgan", "model.norm_d": "none", **_R1, **_CONV},
    "cgan": _CGAN,
    "nih-cgan-7": {**_CGAN, "data.balance": 0.5},
    "cgan-dp": {
        "model.name": "cgan",
        "model.stddev_group": 1,
        "loss.name": "bce",
        "privacy.dp.epsilon": 10.0,
        **_CONV,
        "global_batch": 128,
    },
    "resgan": {
        "model.name": "resgan",
        "model.stddev_group": 4,  # the paper has none; without it few images a step make one image of every class
        "loss.name": "rpgan",
        "loss.r1_gamma": "auto",
        "loss.r2_gamma": "auto",
        "loss.auto_gamma": 0.004,  # with 8 images a step 0.5 at 32x32; 2 at 64x64, as in the paper with more
        "loss.r1_interval": 4,
        "optim.beta1": 0.0,
        "optim.beta2": 0.99,
        "global_batch": 8,
        "optim.lr_g": 1e-3,
        "optim.lr_d": 1e-3,
    },
    # The paper's rate is made for 25 million images; where a tenth of a million must do, twice of it learns far sooner.
    "stylegan2-lite": {**_STYLE, "global_batch": 8, "optim.lr_g": 5e-3, "optim.lr_d": 5e-3},
    "stylegan2-lite-gpu": {
        **_STYLE,
        "global_batch": 64,
        "model.width": 128,
        "model.max_width": 512,
        "model.w_dim": 512,
        "model.z_dim": 512,
    },
}


def load(
    preset: str | None = None, file: str | Path | None = None, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Config:
    """A validated config from a preset or a YAML file, then `key=value` overrides.

    Raises ConfigError with one line that names the key, the value and what is allowed.
    """
    tree: dict[str, Any] = {}
    if preset is not None:
        if preset not in PRESETS:
            raise ConfigError(f"--preset {preset}: unknown, choose one of {', '.join(PRESETS)}")
        for key, value in PRESETS[preset].items():
            _put(tree, key, value)
    if file is not None:
        found = _read_yaml(Path(file))
        if isinstance(found.get("config"), dict):  # of a generator/, which says more of it
            found = found["config"]
        for key, value in flatten(found).items():
            _put(tree, key, read(key, value))
        if isinstance(tree.get("data"), dict):  # what the file's run found in its DATA; only a resolution is a wish
            tree["data"] = {key: value for key, value in tree["data"].items() if key not in FOUND_IN_DATA}
    pairs = overrides.items() if isinstance(overrides, Mapping) else map(parse_override, overrides)
    for key, value in pairs:
        _put(tree, key, value)
    return validate(tree)


def validate(tree: Mapping[str, Any]) -> Config:
    """A nested dict -> Config, checked field by field and against the table of combinations."""
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None
    reason = excluded(cell_of(config))
    if reason:
        raise ConfigError(reason)
    pieces = config.optim.accumulation
    if config.global_batch % (config.sample_group * pieces):
        parts = f" times optim.accumulation={pieces}" if pieces > 1 else ""
        raise ConfigError(
            f"global_batch={config.global_batch}: must be a multiple of model.stddev_group={config.sample_group}{parts}"
        )
    senseless = config.senseless() if config.data.channels else {}
    for kind in config.augment.kinds or ():
        if kind in senseless:
            raise ConfigError(f"augment.kinds={kind}: {senseless[kind]}")
    augment = config.augment
    if augment.name != "none" and augment.kinds == ():
        raise ConfigError(
            f"augment.kinds=[]: leaves nothing for augment.name={augment.name} to do; take augment.name=none, or "
            "no augment.kinds for all that fit the images"
        )
    if augment.name == "ramp" and not augment.p:
        raise ConfigError("augment.name=ramp ends at augment.p=0, which changes nothing: set augment.p, to 0.3 say")
    if augment.name == "ada" and augment.p > augment.p_max:
        raise ConfigError(f"augment.p={augment.p:g}: must be at most augment.p_max={augment.p_max:g}")
    if config.private:
        _check_private(config)
    model = config.model
    if isinstance(model, Conditional) and model.anneal_to_kimg:
        if model.anneal_from_kimg > model.anneal_to_kimg:
            raise ConfigError(
                f"model.anneal_from_kimg={model.anneal_from_kimg:g}: must be at most "
                f"model.anneal_to_kimg={model.anneal_to_kimg:g}"
            )
        if model.anneal_to_kimg * 1000 >= config.total_images:
            raise ConfigError(
                f"model.anneal_to_kimg={model.anneal_to_kimg:g}: must end before total_images={config.total_images:,}"
            )
    elif isinstance(model, Conditional) and model.anneal_from_kimg:
        raise ConfigError("model.anneal_from_kimg needs model.anneal_to_kimg, where labels have their full strength")
    if config.model.max_width < config.model.width:
        raise ConfigError(
            f"model.max_width={config.model.max_width}: must be at least model.width={config.model.width}"
        )
    return config


def _check_private(config: Config) -> None:
    """What DP-SGD cannot carry besides what the table excludes."""
    unfit = (
        ("model.stddev_group", config.sample_group, 1, "minibatch stddev mixes patients"),
        ("precision", config.precision, ("auto", "float32", "float64"), "norms in half precision would bound nothing"),
        ("optim.accumulation", config.optim.accumulation, 1, "a lot of patients is taken whole"),
        ("optim.clip", config.optim.clip, 0, "privacy.dp.clip is what clips D's gradients"),
        ("data.balance", config.data.balance, 0, "patients are drawn equally often"),
        ("compile", config.compile, False, "gradients by patient need the plain network"),
        ("tracking.sample_ids", config.tracking.sample_ids, False, "who was drawn when must stay unknown"),
    )
    for key, value, wanted, reason in unfit:
        allowed = wanted if isinstance(wanted, tuple) else (wanted,)
        if value not in allowed:
            raise ConfigError(f"{key}={_show(value)}: {reason} (privacy.dp.epsilon is set): set {key}={allowed[0]}")


def for_data(
    config: Config,
    *,
    resolution: int,
    channels: int,
    classes: Sequence[str],
    manifest_sha256: str,
    mirror: bool = False,
) -> Config:
    """The config with its data section filled from DATA, and what follows from it settled.

    Raises ConfigError where a set value disagrees.
    """
    found = {
        "resolution": resolution,
        "channels": channels,
        "classes": tuple(classes),
        "mirror": mirror,
        "manifest_sha256": manifest_sha256,
    }
    for key, value in found.items():
        wanted = getattr(config.data, key)
        if wanted is not None and wanted != value:
            raise ConfigError(f"data.{key}={_show(wanted)}: DATA has {_show(value)}")
    tree = config.dump()
    tree["data"] |= {**found, "classes": list(classes)}
    for name in ("r1_gamma", "r2_gamma"):
        if tree["loss"][name] is None:
            tree["loss"][name] = config.loss.auto_gamma * resolution**2 / config.global_batch
    return validate(tree)


# A run may go on with another value of these.
FREE_ON_RESUME = ("total_images", "checkpoint.", "evaluate.", "tracking.")


def resume(stored: Config, wanted: Config) -> Config:
    """The config with which a stored run goes on: settled values stay, the free keys are taken from `wanted`.

    Raises ConfigError naming every key in which `wanted` is another run's config.
    """
    tree = wanted.dump()
    if wanted.precision == "auto":
        tree["precision"] = stored.precision
    tree["loss"]["auto_gamma"] = stored.loss.auto_gamma  # which the gammas are settled by
    for key in ("delta", "noise"):
        if tree["privacy"]["dp"][key] is None:
            tree["privacy"]["dp"][key] = getattr(stored.privacy.dp, key)
    old, new = flatten(stored.dump()), flatten(tree)
    differing = [
        f"{key}={_show(new.get(key))} (the run has {_show(old.get(key))})"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(FREE_ON_RESUME)
    ]
    if differing:
        raise ConfigError("another config's run: " + ", ".join(differing))
    return validate(tree)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"loss": {"name": "bce"}} -> {"loss.name": "bce"}; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def to_yaml(config: Config) -> str:
    return yaml.safe_dump(config.dump(), sort_keys=False)


MOST_VALUES = 100_000
"""Of a file of settings."""


def parse_yaml(content: str | bytes, where: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> dict[str, Any]:
    """A mapping from YAML. Raises ConfigError naming `where`."""
    try:
        tree = yaml.load(content, loader)
    except Exception as error:  # of any kind: a tag that does not fit its value, brackets without an end
        raise ConfigError(f"{where}: not YAML ({one_line(' '.join(str(error).split()))})") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: must be a mapping of settings, such as RUN/config.yaml")
    if _values(tree) > MOST_VALUES:
        raise ConfigError(f"{where}: holds more than {MOST_VALUES:,} values")
    return tree


def _values(tree: Any) -> int:
    """How many values a tree has when its aliases are expanded, which in a few lines may be billions. A tree that
    contains itself has more than MOST_VALUES."""
    known: dict[int, int] = {}

    def count(node: Any) -> int:
        below = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple | set) else ()
        if id(node) not in known:
            known[id(node)] = MOST_VALUES + 1  # until it is known: a node inside itself
            known[id(node)] = 1 + sum(map(count, below))
        return known[id(node)]

    return count(tree)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror})") from None
    return parse_yaml(content, f"--config {path}", values.AsWritten)


def parse_override(text: str) -> tuple[str, Any]:
    """'loss.r1_gamma=2' -> ("loss.r1_gamma", 2). Raises ConfigError."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {text}: write it as key=value, for example --set loss.r1_gamma=2")
    text = values.unquoted(value)
    if text != value and str in kinds_of(key.strip()):
        return key.strip(), text  # in quotes it is text: "none" is a name
    return key.strip(), read(key.strip(), text)


def read(key: str, text: Any) -> Any:
    """What a person wrote -> the value of the setting with this dotted key, by its type: see values.typed.

    What belongs to an unknown key, or is no value of its setting, stays text, which validation refuses.
    """
    return values.typed(text, kinds_of(key))


def kinds_of(key: str) -> set[Any]:
    """The types that a dotted key has in any variant, such as int, str, NoneType; none where it is unknown."""
    kinds: set[Any] = {Config}
    for part in key.split("."):
        fields = [kind.model_fields for kind in kinds if hasattr(kind, "model_fields")]
        kinds = {kind for found in fields if part in found for kind in values.kinds(found[part].annotation)}
    return kinds


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, leaf = dotted.split(".")
    for depth, section in enumerate(sections):
        below = tree.setdefault(section, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{dotted}: {'.'.join(sections[: depth + 1])} is a value, not a section")
        tree = below
    tree[leaf] = value


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    names = [str(part) for part in first["loc"]]
    if len(names) > 1 and names[0] == "model":
        variant = names.pop(1)  # the union's tag
    key, value, known = ".".join(names), first["input"], known_keys()
    if first["type"] == "extra_forbidden" and key in known:
        owners = ", ".join(o.model_fields["name"].default for o in MODELS if names[1] in o.model_fields)
        return (
            f"{key}={_show(value)}: unknown key of model.name={variant}, it belongs to {owners}; leave it out, or "
            f"start from a preset of {variant}"
        )
    if first["type"] == "extra_forbidden":
        while isinstance(value, Mapping) and value:  # of a section that there is not, what was asked of it
            below, value = next(iter(value.items()))
            key = f"{key}.{below}"
        siblings = [other for other in known if other.rpartition(".")[0] == key.rpartition(".")[0]]
        groups = sorted({other.partition(".")[0] for other in known})
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(siblings or groups)}"
        return f"{key}={_show(value)}: unknown key; {hint}"
    if first["type"] == "union_tag_invalid":
        return f"{key}.name={_show(value.get('name'))}: choose one of {', '.join(AXES['model.name'])}"
    if first["type"] == "union_tag_not_found":
        return f"{key}.name: missing, choose one of {', '.join(AXES['model.name'])}"
    if first["type"] in ("model_type", "model_attributes_type"):
        below = [other for other in known if other.startswith(f"{key}.")]
        hint = f"did you mean {key}.name?" if f"{key}.name" in below else f"known here: {', '.join(below)}"
        return f"{key}={_show(value)}: has settings of its own; {hint}"
    if first["type"] == "tuple_type":
        return f"{key}={_show(value)}: must be a list, [{_show(value)}] say"
    message = first["msg"].replace("Input should be", "must be").removeprefix("Value error, ")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{key}={_show(value)}: {message}{more}"


def known_keys() -> list[str]:
    """Every dotted key of every variant."""
    trees = [Config(model=variant()).dump() for variant in MODELS]
    return sorted({key for tree in trees for key in flatten(tree)})


def _show(value: Any) -> str:
    text = one_line(",".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
    return text if len(text) <= 60 else text[:57] + "..."
