"""How fast a training would go on more workers: a measured step, the bytes that gradients weigh, and a formula.

The global batch is fixed, so W workers share the work of a step and add the sum of gradients over the network:

    step(W) = compute / W + traffic(W),    traffic(W) = 2 (W - 1) / W * bytes / bandwidth + 2 (W - 1) * latency

the ring all-reduce's cost (Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002, section 4). It counts nothing as
hidden behind computing. Left out is how long workers wait for each other at the sums over ranks of BatchNorm: two
workers on one machine reach five sixths of it (results/scaling.json).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from medgan.config import Config
from medgan.data.loader import Batch
from medgan.distributed import World
from medgan.models import build_gan
from medgan.state import TrainState
from medgan.step import train_step

LATENCY_S = 50e-6
"""Of one message between two hosts, over Ethernet."""


@dataclass(frozen=True)
class Plan:
    """compute_s: seconds of a step of the whole global batch on one worker; gradient_bytes: summed in each step."""

    global_batch: int
    compute_s: float
    gradient_bytes: int
    most_workers: int
    """More would have no samples: whole minibatch-stddev groups stay on one worker."""

    def traffic_s(self, workers: int, bandwidth: float, latency_s: float = LATENCY_S) -> float:
        """Seconds per step that gradients are on their way. bandwidth: bytes per second into and out of a worker."""
        return 2 * (workers - 1) / workers * self.gradient_bytes / bandwidth + 2 * (workers - 1) * latency_s

    def images_per_s(self, workers: int, bandwidth: float, latency_s: float = LATENCY_S) -> float:
        """Raises ValueError where there are fewer groups of samples than workers."""
        if workers > self.most_workers:
            raise ValueError(f"global_batch={self.global_batch} keeps at most {self.most_workers} workers busy")
        return self.global_batch / (self.compute_s / workers + self.traffic_s(workers, bandwidth, latency_s))

    def takeover(self, bandwidth: float, latency_s: float = LATENCY_S) -> int | None:
        """The first number of workers at which gradients travel for longer than is computed; None: at no number."""
        for workers in range(1, self.most_workers + 1):
            if self.traffic_s(workers, bandwidth, latency_s) > self.compute_s / workers:
                return workers
        return None


def gradient_bytes(config: Config) -> int:
    """What one step sums over workers: the gradients of both networks, G's in as many steps as it learns in."""
    generator, discriminator = (sum(p.numel() for p in net.parameters()) for net in build_gan(config))
    size = {"float64": 8}.get(config.precision, 4) if config.optim.compression == "none" else 2
    return round(size * (discriminator + generator / config.loss.critic_steps))


def random_batch(config: Config) -> Batch:
    """A global batch of random pixels, of one class each where there are classes. config.data must be filled."""
    data, random = config.data, torch.Generator().manual_seed(0)
    assert data.channels is not None
    assert data.resolution is not None
    shape = (config.global_batch, data.channels, data.resolution, data.resolution)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
    classes = len(data.classes or ())
    labels = torch.eye(max(classes, 1))[torch.randint(0, max(classes, 1), shape[:1], generator=random)][:, :classes]
    return Batch(pixels, labels, torch.arange(config.global_batch).numpy())


def measured(config: Config, device: torch.device, steps: int = 8) -> Plan:
    """A plan from steps on this device, on random pixels. config.data must be filled, precision settled."""
    state = TrainState.create(config, World(device=device))
    batch, took = random_batch(config), []
    for _ in range(steps + 2):
        began = time.perf_counter()
        train_step(state, batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - began)
    # Lazy penalties make some steps dearer: the mean counts, without the first two, which warm up.
    return Plan(
        config.global_batch,
        statistics.fmean(took[2:]),
        gradient_bytes(config),
        config.most_workers,
    )


def table(plan: Plan, total_images: int, workers: Iterable[int], gigabits: Iterable[float]) -> list[str]:
    """What a person reads: images per second and hours to total_images for each number of workers and network."""
    lines = [
        f"measured: {plan.compute_s:.3g} s a step of {plan.global_batch} images on one worker; "
        f"{plan.gradient_bytes / 1e6:,.1f} MB of gradients a step",
        f"{'network':>12} {'workers':>8} {'images/s':>10} {'hours':>8} {'on the way':>11}",
    ]
    for gigabit in gigabits:
        bandwidth = gigabit * 1e9 / 8
        for count in workers:
            if count > plan.most_workers:
                lines.append(
                    f"{gigabit:>7g} Gb/s {count:>8}   global_batch feeds at most {plan.most_workers}: "
                    f"global_batch={count * plan.global_batch // plan.most_workers} would feed {count}"
                )
                continue
            speed = plan.images_per_s(count, bandwidth)
            share = plan.traffic_s(count, bandwidth) * speed / plan.global_batch
            hours = total_images / speed / 3600
            lines.append(f"{gigabit:>7g} Gb/s {count:>8} {speed:>10,.0f} {hours:>8,.1f} {share:>10.0%} ")
        takeover = plan.takeover(bandwidth)
        lines.append(
            f"{gigabit:>7g} Gb/s: gradients travel for longer than is computed "
            + (f"from {takeover} workers on" if takeover else f"at no number up to {plan.most_workers}")
        )
    return lines
