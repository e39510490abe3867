"""Generator + seeds + labels -> pixels, and the generator folder that users share.

A sample is a function of the generator, its own seed and its label: evaluation mode uses stored statistics, so that
no image depends on the others of its batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from medgan import names
from medgan.config import Config, parse_yaml, validate
from medgan.data.shards import Count, DataError, Sha256, Word, fault, read_file
from medgan.folder import holds_generator
from medgan.metrics.fidelity import FIGURES
from medgan.models import build_gan, stylegan2, z_size
from medgan.models.layers import measuring
from medgan.pixels import to_pixels
from medgan.streams import stream, stream_seed

CHUNK = 64
FEW = 5
"""Patients or images below which a set of labels is not told: one that few have can tell who they are."""
LICENCES = {
    "kermany_cxr": "CC BY 4.0 (Kermany et al., doi:10.17632/rscbjbr9sj)",
    "kermany_oct": "CC BY 4.0 (Kermany et al., doi:10.17632/rscbjbr9sj)",
    "nih_cxr14": "free to use with attribution to the NIH Clinical Center (Wang et al., CVPR 2017)",
    "nih_cgan_7": "free to use with attribution to the NIH Clinical Center (Wang et al., CVPR 2017)",
    "medmnist": "CC BY 4.0, some sets CC BY-NC 4.0 (Yang et al., doi:10.1038/s41597-022-01721-8)",
    "phantom_cxr": "MIT (drawn by medgan)",
    "phantom_oct": "MIT (drawn by medgan)",
}


def draw_labels(label_pool: np.ndarray, count: int, seed: int, name: str) -> Tensor:
    """Labels of random rows of the training set, so that their frequencies are kept: float32 (count, K)."""
    rows = np.random.default_rng(stream_seed(seed, name, 0)).integers(0, len(label_pool), count)
    return torch.from_numpy(label_pool[rows].astype(np.float32))


@torch.no_grad()
def calibrate(
    generator: nn.Module,
    config: Config,
    label_pool: np.ndarray,
    strength: float = 1.0,
    passes: int = 4,
    size: int = 128,
) -> None:
    """Measure what a generator needs for evaluation mode, from seeded latents: normalisation statistics, the mean w.

    Needed for an averaged generator, since the statistics of the raw weights are wrong for averaged ones. label_pool:
    uint8 (N, K), labels as often as in training; strength: of labels (see Config.label_strength). Each process does
    it alone and gets the same.
    """
    example = next(generator.parameters())
    labels = strength * draw_labels(label_pool, passes * size, config.seed, "calibrate/labels")
    with measuring(generator):
        for index in range(passes):
            random = stream(config.seed, "calibrate/z", index)
            z = torch.randn(size, z_size(config), generator=random, dtype=example.dtype)
            generator(z.to(example.device), labels[index * size : (index + 1) * size].to(example))


@torch.no_grad()
def generate(generator: nn.Module, z: Tensor, labels: Tensor) -> Tensor:
    """z (N, z_size), labels (N, K) -> uint8 pixels (N, C, R, R) on the CPU, in the generator's own precision."""
    example = next(generator.parameters())
    generator.eval()
    chunks = [
        to_pixels(generator(some_z.to(example), some_labels.to(example))).cpu()
        for some_z, some_labels in zip(z.split(CHUNK), labels.split(CHUNK), strict=True)
    ]
    return torch.cat(chunks) if chunks else torch.zeros(0, dtype=torch.uint8)


def grid_samples(generator: nn.Module, config: Config, strength: float = 1.0) -> Tensor:
    """uint8 (rows * columns, C, R, R): a row per class, the same latents in each; four rows without classes."""
    classes = len(config.data.classes or ())
    columns = config.tracking.grid_columns
    rows = classes if config.conditional else 4
    random = stream(config.seed, "grid", 0)
    if not config.conditional:
        z = torch.randn(rows * columns, z_size(config), generator=random)
        return generate(generator, z, torch.zeros(len(z), classes))
    z = torch.randn(columns, z_size(config), generator=random).repeat(rows, 1)
    return generate(generator, z, strength * torch.eye(classes).repeat_interleave(columns, 0))


# -- the generator folder ----------------------------------------------------------------------------------------


def label_sets(
    labels: np.ndarray, classes: Sequence[str], patients: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Which classes images have together, and how many do: [{classes, images}]; empty where each has exactly one.

    labels: uint8 (N, K); patients: of each image. A set that fewer than FEW patients have (images, where patients are
    not given) is not told: each of its images counts for one of its classes, in turn.
    """
    if bool((labels.sum(1) == 1).all()):
        return []
    found: dict[tuple[int, ...], int] = {}
    people = np.arange(len(labels)) if patients is None else np.unique(patients, return_inverse=True)[1]
    for one in np.unique(labels > 0, axis=0):
        rows = np.flatnonzero(((labels > 0) == one).all(1))
        having, count = tuple(np.flatnonzero(one).tolist()), len(rows)
        if len(np.unique(people[rows])) >= FEW or len(having) < 2:
            found[having] = found.get(having, 0) + count
            continue
        for index in range(count):
            alone = (having[index % len(having)],)
            found[alone] = found.get(alone, 0) + 1
    return [{"classes": [classes[k] for k in having], "images": count} for having, count in sorted(found.items())]


def export(
    ema: nn.Module,
    config: Config,
    label_counts: dict[str, int],
    figures: dict[str, Any],
    picture: bytes,
    label_sets: Sequence[dict[str, Any]] = (),
    source: str = "unknown",
    drawn: bool = False,
) -> dict[str, bytes | str]:
    """The averaged generator as files: what users share. D stays behind: it tells who was trained on.

    label_counts: training images of each class; figures: what is known of this generator, for its card; picture: a
    sample grid, PNG; label_sets: see there; source: name of where the training images came from;
    drawn: whether none of them is of a patient (see Manifest).
    """
    drawn = drawn and set(figures.get("begun_with", ())) <= {config.data.manifest_sha256}
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in ema.state_dict().items()}
    description = {
        "config": config.dump(),
        "label_counts": label_counts,
        "label_sets": list(label_sets),
        "drawn": drawn,
        "figures": figures,
    }
    return {
        "model.safetensors": save_safetensors(weights, {"images_seen": str(figures["images_seen"])}),
        "config.yaml": yaml.safe_dump(description, sort_keys=False),
        "samples.png": picture,
        "README.md": card(config, label_counts, figures, source, drawn),
    }


class Figures(BaseModel):
    """What a generator's folder tells of it. These are used, the others are shown."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[Word, float | int | Word | None]

    images_seen: Count = 0
    epsilon: float | None = Field(None, ge=0, allow_inf_nan=False, alias="privacy/epsilon")
    begun_with: list[Sha256] = []


class LabelSet(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    classes: list[Word]
    images: Count


class Description(BaseModel):
    """config.yaml of a generator's folder, which may come from anybody."""

    model_config = ConfigDict(extra="forbid", strict=True)

    config: dict[str, Any]
    label_counts: dict[Word, Count] = {}
    label_sets: list[LabelSet] = []
    drawn: bool = False
    figures: Figures = Figures()


@dataclass(frozen=True)
class Sampler:
    """An exported generator, ready to draw."""

    generator: nn.Module
    config: Config
    label_counts: dict[str, int]
    """Training images of each class; empty where the generator is unconditional."""
    sha256: str
    """Of the weights, hex."""
    images_seen: int
    """Real images shown to D before these weights."""
    epsilon: float | None
    """What a patient of a private training spent; None where it was not private."""
    begun_with: tuple[str, ...]
    """SHA-256 of the manifests that the weights it began with had been trained on."""
    label_sets: tuple[dict[str, Any], ...] = ()
    """See `label_sets`; empty where every training image has one class, or the export does not tell."""
    drawn: bool = False
    """Whether all that it learnt from was drawn, and nothing is of a patient; no where the export does not tell."""

    @staticmethod
    def open(run: str, device: str = "cpu", sha256: str | None = None) -> Sampler:
        """The best generator of a run folder, or a generator/ that was handed on (path or URI).

        sha256: of the weights that they must be. Raises DataError where there is none, or another one.
        """
        below = "generator/" if holds_generator(run) else ""
        try:
            weights = read_file(run, f"{below}model.safetensors")
            description = read_file(run, f"{below}config.yaml")
        except OSError:
            raise DataError(f"--run {run}: no generator/ in it; train one with jobs/train.py") from None
        found = hashlib.sha256(weights).hexdigest()
        if sha256 is not None and sha256 != found:
            raise DataError(f"--run {run}: its generator is another one since this began; give the command again")
        damaged = f"--run {run}: {below}config.yaml is damaged"
        try:
            told = Description.model_validate(parse_yaml(description, f"--run {run}: {below}config.yaml"))
        except ValidationError as error:
            raise DataError(names.one_line(f"{damaged}: {fault(error)}")) from None
        config, counts, figures = validate(told.config), told.label_counts, told.figures
        if not {config.data.resolution, config.data.channels, config.data.classes}.isdisjoint({None}):
            raise DataError(f"{damaged}: it does not say which images it draws")
        if config.conditional and tuple(counts) != config.data.classes:
            raise DataError(f"{damaged}: it counts images of other classes than it has")
        if any(set(one.classes) - set(counts) for one in told.label_sets):
            raise DataError(f"{damaged}: label_sets has other classes than it counts")
        generator = _generator(config, weights, f"--run {run}: {below}model.safetensors")
        sets = tuple(one.model_dump() for one in told.label_sets) if config.conditional else ()
        counts, before = counts if config.conditional else {}, tuple(figures.begun_with)
        generator.to(device)
        return Sampler(generator, config, counts, found, figures.images_seen, figures.epsilon, before, sets, told.drawn)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.label_counts)

    def labels(self, seed: int, *, amounts: Sequence[int] | None = None, count: int = 0) -> np.ndarray:
        """uint8 (N, K): so many images of each class, one-hot; or `count` with the training set's frequencies, with
        several classes, or none, where training images have such."""
        classes = len(self.label_counts)
        if not classes:
            return np.zeros((count, 0), np.uint8)
        if amounts is not None:
            return np.repeat(np.eye(classes, dtype=np.uint8), amounts, 0)
        images, hot = list(self.label_counts.values()), np.eye(classes, dtype=np.uint8)
        if self.label_sets:
            images = [one["images"] for one in self.label_sets]
            hot = np.array([[name in one["classes"] for name in self.classes] for one in self.label_sets], np.uint8)
        share = np.array(images, float) / sum(images)
        return hot[np.random.default_rng(seed).choice(len(hot), count, p=share)]

    def truncate(self, psi: float) -> None:
        """Draw samples towards the mean w of their class: 1 not at all, 0 all the way. Raises DataError."""
        if not isinstance(self.generator, stylegan2.Generator):
            raise DataError(f"--truncation {psi:g}: {self.config.model.name} has no w to truncate; leave it out")
        self.generator.mapping.truncation = psi

    def draw(self, labels: np.ndarray, seed: int, first: int = 0) -> tuple[np.ndarray, list[int]]:
        """Images first, first + 1, ... of a release: (uint8 (N, C, R, R), each image's own seed).

        Any image can be drawn again from its seed and label alone.
        """
        seeds = [stream_seed(seed, "generate", first + index) for index in range(len(labels))]
        return self.at(labels, seeds), seeds

    def at(self, labels: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """The images of such labels (N, K) and seeds: uint8 (N, C, R, R)."""
        size = z_size(self.config)
        # torch's CPU generator takes 32 bits of a seed: two of 100,000 images would be one.
        latents = [np.random.Generator(np.random.Philox(own)).standard_normal(size, np.float32) for own in seeds]
        hot = torch.from_numpy(labels.astype(np.float32))
        return generate(self.generator, torch.from_numpy(np.stack(latents)), hot).numpy()


def _generator(config: Config, content: bytes, where: str) -> nn.Module:
    """The network of a config with such weights. What the config makes is compared with what the weights are before
    anything is allocated: a few lines can ask for more memory than there is. Raises DataError."""
    with torch.device("meta"):
        generator, _ = build_gan(config)
    if config.precision == "float64":
        generator.double()
    try:
        weights = load_safetensors(content)
    except SafetensorError:
        weights = {}
    kind = lambda tensors: {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    if kind(weights) != kind(generator.state_dict()):
        raise DataError(f"{where} is damaged or of another config")
    generator.load_state_dict(weights, assign=True)
    return generator.eval().requires_grad_(False)


UNCOUNTED = (
    "**It began with weights of another run (see above): whatever they tell of their own training images, and of these",
    "patients if they were among them, is in no epsilon.**",
    "",
)


TO_MEASURE = (
    "Not for diagnosis. Whether these images help a classifier, and whether they copy a patient, is not shown by",
    "these figures: measure both with jobs/evaluate.py before relying on the images.",
)
FOR_TRIAL = (
    "Not for diagnosis. There is no patient whom these images could copy, and nothing about real ones that they could",
    "teach: they are for trying the software.",
)


def intended() -> list[str]:
    """Lines of a card: what the images are for."""
    return [
        "## Intended use",
        "",
        "To add to real images when a classifier is trained, to test software, to teach. Test on real images of other",
        "patients only.",
        "",
    ]


def learnt_from(source: str) -> list[str]:
    """Lines of a card: where the training images came from, and on which terms."""
    terms = LICENCES.get(source, "ask whoever holds the images")
    shown = names.one_line(source).replace("`", "'")
    return ["## Source", "", f"Learnt from `{shown}`, whose terms are: {terms}.", ""]


OF_NOBODY = "learnt from drawn images alone, of no patient"
"""What a generator is said to have, and what it draws, where that is known."""


def card(
    config: Config, label_counts: dict[str, int], figures: dict[str, Any], source: str = "unknown", drawn: bool = False
) -> str:
    """A model card in Markdown: what it draws, how good that is, what it is not for."""
    data, model = config.data, config.model
    kind = (
        f"a row per class ({', '.join(map(names.markdown, data.classes or ()))})"
        if config.conditional
        else "unconditional"
    )
    lines = [
        "---",
        "library_name: medgan",
        "license: other",
        "pipeline_tag: unconditional-image-generation",
        "tags: [gan, medical, synthetic]",
        "---",
        "",
        f"# {model.name} generator, {data.resolution}x{data.resolution}",
        "",
        "Draws synthetic medical images. Made with medgan; the discriminator is not part of it, on purpose.",
        *([f"It has {OF_NOBODY}."] if drawn else ()),
        "",
        f"![Samples](samples.png)\n\nSamples, {kind}.",
        "",
        "| | |",
        "|---|---|",
        f"| architecture, loss, seed | {model.name}, {config.loss.name}, {config.seed} |",
        f"| images | {data.channels} channel{'s' if data.channels != 1 else ''}, {data.resolution} pixels a side |",
        f"| {'drawn' if drawn else 'real'} images shown while training | {figures['images_seen']:,} |",
        f"| data manifest (SHA-256) | {data.manifest_sha256} |",
        *(
            f"| begun with weights trained on manifest (SHA-256) | {sha256} |"
            for sha256 in figures.get("begun_with", ())
        ),
        "",
    ]
    if label_counts:
        lines += ["| class | training images | KID | real against real |", "|---|---|---|---|"]
        for name, count in label_counts.items():
            kid, floor = (figures.get(f"{side}/kid/{names.part(name)}") for side in ("metric", "floor"))
            lines.append(f"| {names.markdown(name)} | {count:,} | {_figure(kid)} | {_figure(floor)} |")
        lines.append("")
    known = [name for name in FIGURES if f"metric/{name}" in figures]
    if known:
        lines += [f"Figures of the run's own evaluation ({figures.get('figure', '')}):", ""]
        lines += ["| figure | value | real against real | meaning |", "|---|---|---|---|"]
        for name in known:
            value, floor = (_figure(figures.get(f"{side}/{name}")) for side in ("metric", "floor"))
            lines.append(f"| {name} | {value} | {floor} | {FIGURES[name][1]} |")
    dp = config.privacy.dp
    if config.private:
        lines += [
            "",
            "## Privacy",
            "",
            *(UNCOUNTED if figures.get("begun_with") else ()),
            f"Trained with differential privacy (DP-SGD): epsilon {_figure(figures.get('privacy/epsilon'))} at delta "
            f"{_figure(dp.delta)}, for each patient of the training images (add or remove one with all their images),",
            f"by Opacus's accountant; noise {_figure(dp.noise)}, clipped at {_figure(dp.clip)}, "
            f"{config.global_batch} patients a step on average. Training images shown counts expected ones.",
            "Not covered: class counts, sets of classes, figures, the choice of settings by looking at real images,",
            "attacks on the rounding of noise (Opacus's secure mode is off).",
        ]
    amount = "--per-class 100" if config.conditional else "--count 100"
    lines += [
        "",
        "## Use",
        "",
        f"    python jobs/generate.py --run RUN --out OUT {amount}",
        "",
        "RUN is the folder of the run, or this one.",
        "",
        *intended(),
        "## Limits",
        "",
        *(FOR_TRIAL if drawn else TO_MEASURE),
        "",
        *learnt_from(source),
    ]
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
