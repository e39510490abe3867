"""What a run carries from step to step, and how it is saved: G, D, the averaged G, both optimizers, images_seen."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medgan.augment import Strength
from medgan.config import Config, Ema, Refused
from medgan.distributed import World
from medgan.folder import CheckpointError, OtherSchema
from medgan.models import build_gan
from medgan.schemas import Checkpoint, checked
from medgan.streams import stream_seed

if TYPE_CHECKING:
    from medgan.private import Ledger

SCHEMA_VERSION = 3
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)
"""Of what lies in a checkpoint."""
PATH_DECAY = 0.01
"""How fast the mean path length follows the lengths seen (arXiv:1912.04958, B)."""
Snapshot = dict[str, Any]


class Network(nn.Module):
    """A network that runs compiled where nobody differentiates twice, which torch.compile cannot (pytorch 91469)."""

    def __init__(self, module: nn.Module, compiled: bool) -> None:
        super().__init__()
        self.module, self.twice = module, False
        # Kept out of the registered modules: it is the same one.
        self.__dict__["once"] = torch.compile(module) if compiled else module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs) if self.twice else self.__dict__["once"](*args, **kwargs)


@dataclass
class Player:
    """A network with its DDP wrapper and optimizer. The wrapper is called only inside the player's own update."""

    module: nn.Module
    bare: Network
    """The module, compiled or not."""
    ddp: nn.Module
    optimizer: torch.optim.Optimizer
    lr: float
    """Learning rate before any schedule."""
    scaler: torch.amp.GradScaler
    """Keeps float16 gradients from vanishing; for other precisions it does nothing."""
    keeper: Any = None
    """Keeps gradients by sample, where training is private: an opacus.GradSampleModule."""
    share: float = 1.0
    """What a rank's sum over its samples is multiplied with, so that the wrapper's mean over ranks is a mean over the
    global batch; 1 where the optimizer divides."""

    @staticmethod
    def create(module: nn.Module, lr: float, config: Config, world: World, private: bool = False) -> Player:
        """private: gradients are clipped by sample and get noise."""
        optim = config.optim
        betas = (optim.beta1, optim.beta2)
        # Fused Adam reads a gradient in the memory order of its weight, in which Opacus does not leave it.
        adam = torch.optim.Adam(module.parameters(), lr=lr, betas=betas, eps=optim.eps, fused=not private)
        scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "float16")
        network = Network(module, config.compile)
        if private:
            from medgan.private import guarded  # Opacus takes two seconds to import

            ddp, optimizer, keeper = guarded(module, adam, config, world)
            return Player(module, network, ddp, optimizer, lr, scaler, keeper)
        ddp = world.wrap(network, optim.bucket_mb, optim.compression == "bfloat16")
        return Player(module, network, ddp, adam, lr, scaler, share=world.size / config.global_batch)

    @contextmanager
    def twice(self, on: bool = True) -> Iterator[None]:
        """Within it passes may be differentiated twice."""
        before, self.bare.twice = self.bare.twice, on
        try:
            yield
        finally:
            self.bare.twice = before

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Within it gradients pass through the network and leave none in it."""
        self.module.requires_grad_(False)
        if self.keeper is not None:
            self.keeper.disable_hooks()
        try:
            yield
        finally:
            self.module.requires_grad_(True)
            if self.keeper is not None:
                self.keeper.enable_hooks()

    def summing(self, last: bool) -> AbstractContextManager[None]:
        """Within it DDP sums gradients over ranks where this is the last backward before `step`."""
        if last or not isinstance(self.ddp, DistributedDataParallel):
            return nullcontext()
        return self.ddp.no_sync()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, summed over this rank's samples, to those since the last `step`."""
        self.scaler.scale(loss * self.share).backward()

    def pair(self) -> None:
        """Gradients by sample of a private step -> by patient: the n-th and the n-th of the second half added up."""
        for parameter in self.module.parameters():
            real, fake = parameter.grad_sample.chunk(2)  # type: ignore[attr-defined]
            parameter.grad_sample = real + fake  # type: ignore[attr-defined]

    def nobody(self) -> None:
        """The gradients of a private step for which no sample was drawn here."""
        for parameter in self.module.parameters():
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))  # type: ignore[attr-defined]

    def step(self, config: Config, images_seen: int) -> None:
        """One step of the optimizer at the learning rate of this moment, skipped where float16 overflowed."""
        self.scaler.unscale_(self.optimizer)
        if config.optim.clip:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), config.optim.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * config.lr_factor(images_seen)
        self.scaler.step(self.optimizer)
        self.scaler.update()


@dataclass
class TrainState:
    """Everything that makes the next step what it is, together with config and data."""

    config: Config
    world: World
    generator: Player
    discriminator: Player
    ema: nn.Module
    images_seen: int = 0
    strength: Strength = field(default_factory=Strength)
    """Of the augmentation."""
    path_mean: float = 0.0
    """What path lengths are drawn to: their running mean."""
    lengths: list[Tensor] = field(default_factory=list)
    """Path lengths of the step so far, of this rank's pieces."""
    best: dict[str, Any] = field(default_factory=dict)
    """The best evaluation so far: images_seen, kid, and the identity of the figure."""
    ledger: Ledger | None = None
    """What private training has cost."""
    begun_with: list[str] = field(default_factory=list)
    """SHA-256 of the manifests that the weights it began with had been trained on, the oldest first."""
    until: int | None = None
    """Where training ends this time, if before total_images."""

    @staticmethod
    def create(config: Config, world: World) -> TrainState:
        """A fresh state: weights depend on the seed alone, so that every rank has the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(config.seed, "weights", 0))
            networks = build_gan(config)
        dtype = torch.float64 if config.precision == "float64" else torch.float32
        generator, discriminator = (channels_last(network.to(world.device, dtype)) for network in networks)
        ema = copy.deepcopy(generator).requires_grad_(False).eval()
        return TrainState(
            config,
            world,
            Player.create(generator, config.optim.lr_g, config, world),
            Player.create(discriminator, config.optim.lr_d, config, world, config.private),
            ema,
            strength=Strength(config.augment.p),
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and draws."""
        return next(self.generator.module.parameters()).dtype

    @property
    def done(self) -> bool:
        """Whether training has ended: all images seen, or as many as this time, or a budget of privacy spent."""
        spent = self.ledger is not None and self.ledger.spent
        return spent or self.images_seen >= min(self.config.total_images, self.until or self.config.total_images)

    @torch.no_grad()
    def update_ema(self) -> None:
        """One step of the average, for the images of one global batch that are already in images_seen."""
        weight = 1 - ema_decay(self.config.ema, self.config.global_batch, self.images_seen)
        for average, value in zip(self.ema.parameters(), self.generator.module.parameters(), strict=True):
            average.lerp_(value, weight)

    def path_deviation(self, lengths: Tensor) -> Tensor:
        """(lengths - their running mean)^2: (N,)."""
        self.lengths.append(lengths.detach())
        return (lengths - self.path_mean).square()

    def follow_paths(self) -> None:
        """One step of that mean towards the lengths of the whole step, where it had any."""
        if self.lengths:
            mine = torch.cat(self.lengths)
            self.lengths.clear()
            total, count = self.world.sum(torch.stack([mine.sum(), mine.new_tensor(len(mine))])).tolist()
            self.path_mean += PATH_DECAY * (total / count - self.path_mean)

    def finite(self) -> bool:
        """Whether every weight is a finite number; the same answer on every rank, since weights are."""
        networks = (self.generator.module, self.discriminator.module, self.ema)
        return all(bool(p.isfinite().all()) for network in networks for p in network.parameters())

    def snapshot(self) -> Snapshot:
        """Tensors, numbers and the config as they are now: copies on the CPU, which training no longer touches."""
        return _copied(
            {
                "schema_version": SCHEMA_VERSION,
                "config": self.config.dump(),
                "images_seen": self.images_seen,
                "best": self.best,
                "generator": self.generator.module.state_dict(),
                "discriminator": self.discriminator.module.state_dict(),
                "ema": self.ema.state_dict(),
                "generator_optimizer": self.generator.optimizer.state_dict(),
                "discriminator_optimizer": self.discriminator.optimizer.state_dict(),
                "scalers": [player.scaler.state_dict() for player in (self.generator, self.discriminator)],
                "strength": asdict(self.strength),
                "path_mean": self.path_mean,
                "begun_with": self.begun_with,
                "private_steps": 0 if self.ledger is None else self.ledger.steps,
            }
        )

    def save(self) -> bytes:
        """The state as a file that opens with weights_only=True."""
        return packed(self.snapshot())

    def check(self, saved: dict[str, Any]) -> None:
        """Raises CheckpointError where the tensors of an opened checkpoint are not those of this config's networks and
        optimizers, or are not finite: it may come from anybody."""
        for name, player in {"generator": self.generator, "discriminator": self.discriminator}.items():
            _check_tensors(name, saved[name], player.module.state_dict())
            weights = dict(enumerate(player.module.parameters()))
            moments = saved[f"{name}_optimizer"].get("state")
            if not isinstance(moments, dict) or not moments.keys() <= weights.keys():
                raise OtherSchema(f"{name}_optimizer: is of other weights than those of its config")
            for index, kept in moments.items():
                wanted = {"step": torch.zeros(()), "exp_avg": weights[index], "exp_avg_sq": weights[index]}
                _check_tensors(f"{name}_optimizer", kept, wanted)
                if bool((kept["exp_avg_sq"] < 0).any()) or kept["step"] < 0:
                    raise CheckpointError(f"{name}_optimizer: exp_avg_sq or step of weight {index} is negative")
        _check_tensors("ema", saved["ema"], self.ema.state_dict())
        for player, scaler in zip((self.generator, self.discriminator), saved["scalers"], strict=True):
            if scaler.keys() != player.scaler.state_dict().keys() or not scaler.get("scale", 1):
                raise CheckpointError("scalers: are not those of its config's precision")

    def load(self, content: bytes) -> None:
        """Take over what `save` wrote; the config stays as it is. Raises CheckpointError."""
        saved = open_checkpoint(content)
        self.check(saved)
        self.generator.module.load_state_dict(saved["generator"])
        self.discriminator.module.load_state_dict(saved["discriminator"])
        self.ema.load_state_dict(saved["ema"])
        players = {"generator": self.generator, "discriminator": self.discriminator}
        for (name, player), scaler in zip(players.items(), saved["scalers"], strict=True):
            player.scaler.load_state_dict(scaler)
            groups = player.optimizer.state_dict()["param_groups"]  # by the config, whatever the checkpoint says
            moments = saved[f"{name}_optimizer"]["state"]
            player.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.strength = Strength(**saved["strength"])
        self.path_mean = saved["path_mean"]
        self.images_seen = saved["images_seen"]
        self.best = saved["best"]
        self.begun_with = saved["begun_with"]
        if self.ledger is not None:
            self.ledger.steps = saved["private_steps"]

    def load_weights(self, content: bytes) -> None:
        """Take over the networks of another run, and start counting anew: G from its average, D as it is."""
        saved = open_checkpoint(content)
        _check_tensors("ema", saved["ema"], self.ema.state_dict())
        _check_tensors("discriminator", saved["discriminator"], self.discriminator.module.state_dict())
        self.generator.module.load_state_dict(saved["ema"])
        self.discriminator.module.load_state_dict(saved["discriminator"])
        self.ema.load_state_dict(saved["ema"])
        self.begun_with = learnt_from(saved)


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(below) for key, below in value.items()}
    return [_copied(below) for below in value] if isinstance(value, list) else value


def packed(snapshot: Snapshot) -> bytes:
    """A snapshot as the bytes of a checkpoint."""
    buffer = io.BytesIO()
    torch.save(snapshot, buffer)
    return buffer.getvalue()


def learnt_from(saved: dict[str, Any]) -> list[str]:
    """SHA-256 of every manifest whose images an opened checkpoint's networks tell of, the first run's first."""
    return [*saved["begun_with"], saved["config"]["data"]["manifest_sha256"]]


def open_checkpoint(content: bytes, images_seen: int | None = None) -> dict[str, Any]:
    """On the CPU, the dict that `TrainState.save` wrote. Raises CheckpointError, OtherSchema where it is sound.

    images_seen: of its name, where it has one.
    """
    try:
        saved: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        version = int(saved["schema_version"])
    except Exception as error:
        raise CheckpointError(f"not a checkpoint that can be opened ({type(error).__name__})") from None
    if version != SCHEMA_VERSION:
        raise OtherSchema(f"checkpoint schema {version}, this medgan reads {SCHEMA_VERSION}")
    try:
        saved = checked(Checkpoint, saved, "a checkpoint's content")
    except Refused as error:
        raise CheckpointError(str(error)) from None
    if images_seen not in (None, saved["images_seen"]):
        raise CheckpointError(f"is of {saved['images_seen']:,} images, not of what its name says")
    return saved


def _check_tensors(what: str, saved: Any, wanted: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError where they are not plain and finite, OtherSchema where they are of another network."""
    if not isinstance(saved, dict) or saved.keys() != wanted.keys():
        raise OtherSchema(f"{what}: has other parts than its config says")
    for name, tensor in wanted.items():
        found = saved[name]
        if not isinstance(found, Tensor) or (found.layout, found.device.type) != (torch.strided, "cpu"):
            raise CheckpointError(f"{what}: {name} is no plain tensor")
        if found.dtype not in DTYPES:
            raise CheckpointError(f"{what}: {name} is of {found.dtype}")
        if found.shape != tensor.shape:
            raise OtherSchema(f"{what}: {name} has not the shape that its config says")
        if found.is_floating_point() != tensor.is_floating_point() or not bool(found.isfinite().all()):
            raise CheckpointError(f"{what}: {name} holds what is no finite number")


def ema_decay(ema: Ema, global_batch: int, images_seen: int) -> float:
    """Decay per step: 0.5 ** (batch / half-life), the half-life at most ramp_up * images_seen (arXiv:2006.06676, A)."""
    half_life = ema.half_life_kimg * 1000
    if ema.ramp_up:
        half_life = min(half_life, ema.ramp_up * images_seen)
    return float(0.5 ** (global_batch / half_life)) if half_life > 0 else 0.0


def channels_last(network: nn.Module) -> nn.Module:
    """Convolution weights in NHWC order, which CPUs and GPUs compute faster.

    With one input channel, or kernels of one pixel, both orders describe the same memory: those weights stay as they
    are. Gradients may come with any stride along a side of 1, which DDP would warn of.
    """
    for parameter in network.parameters():
        if parameter.dim() == 4 and parameter.shape[1] > 1 and parameter.shape[2:] != (1, 1):
            parameter.data = parameter.data.clone(memory_format=torch.channels_last)
        elif parameter.dim() > 1 and 1 in parameter.shape:
            parameter.register_hook(row_major)
    return network


def row_major(gradient: Tensor) -> Tensor:
    """The same with the strides of a new tensor."""
    return gradient.contiguous().view(-1).view(gradient.shape)
