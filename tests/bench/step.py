"""A training step beside the same networks in plain float32, a job beside bare steps, and the memory of a step.

python -m tests.bench.step --profile stylegan2-lite       # where the time of a step goes, and what bounds it
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity
from torch.profiler import profile as record
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from medgan import config as configs
from medgan.distributed import World
from medgan.models import convolution, stylegan2
from medgan.plan import random_batch
from medgan.run import precision_of
from medgan.state import TrainState
from medgan.step import train_step
from medgan.tracking import read_rows

ROUNDS = 9
SETTINGS: dict[str, dict[str, Any]] = {
    # Width 64 and batch 64 as in the paper; the widths of channel_base 8192 and at most 256.
    "dcgan": {"global_batch": 64, "model.width": 64, "model.max_width": 512},
    "stylegan2-lite": {"global_batch": 16, "model.width": 256, "model.max_width": 256, "model.w_dim": 512},
}
JOB = {"total_images": 12_000, "evaluate.interval_kimg": 1000, "checkpoint.interval_kimg": 1000}


def made(preset: str, **settings: Any) -> configs.Config:
    overrides = {**SETTINGS.get(preset, {}), "precision": precision_of("auto", gpu=False)}
    overrides |= {key.replace("__", "."): value for key, value in settings.items()}
    config = configs.load(preset, overrides=overrides)
    return configs.for_data(config, resolution=64, channels=1, classes=("a", "b"), manifest_sha256="0")


def step_s(state: TrainState) -> float:
    """Seconds of a step."""
    batch = random_batch(state.config)

    def step() -> float:
        start = time.perf_counter()
        train_step(state, batch)
        return time.perf_counter() - start

    return averaged(state, step)


class Operations(TorchDispatchMode):
    """Counts those of products, as FlopCounterMode does, whose hooks on modules refuse penalties."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.number += count(*args, **(kwargs or {}), out_val=out)
        return out


def step_gflop(state: TrainState) -> float:
    """10^9 operations of a step's products of matrices."""
    batch = random_batch(state.config)

    def step() -> float:
        with Operations() as counted:
            train_step(state, batch)
        return counted.number / 1e9

    return averaged(state, step)


def averaged(state: TrainState, step: Callable[[], float]) -> float:
    """Over a period of lazy penalties: one step that takes them, the others not."""
    every, found = state.config.loss.r1_interval, []
    for number in (0, 1):
        state.images_seen = number * state.config.global_batch
        found.append(step())
    return (found[0] + (every - 1) * found[1]) / every


@contextmanager
def plain() -> Iterator[None]:
    """The same networks as their equations stand: torch's own convolutions, differentiated by torch, and in StyleGAN2 a
    weight of its own for every sample, in grouped ones."""

    filtered = convolution._filtered

    def modulated(self: stylegan2.ModulatedConv, x: Tensor, w: Tensor) -> Tensor:
        count, (outputs, inputs, kernel, _) = len(x), self.weight.shape
        weight = self.weight * self.style(w)[:, None, :, None, None]
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        x = x.reshape(1, count * inputs, *x.shape[2:])
        if self.up:
            weight = weight.transpose(1, 2).reshape(count * inputs, outputs, kernel, kernel)
            x = filtered(F.conv_transpose2d(x, weight, stride=2, groups=count), 1, gain=4)
        else:
            x = F.conv2d(x, weight.flatten(0, 1), padding=kernel // 2, groups=count)
        return x.reshape(count, outputs, *x.shape[2:]) * self.gain + (self.bias * self.gain)[:, None, None]

    with ExitStack() as patched:
        for place, name, instead in (
            (convolution, "conv2d", F.conv2d),
            (convolution, "conv_transpose2d", F.conv_transpose2d),
            (stylegan2, "conv2d", F.conv2d),
            (stylegan2, "filtered", filtered),
            (stylegan2, "halved", lambda x: filtered(x, 1, stride=2)),
            (stylegan2.ModulatedConv, "forward", modulated),
        ):
            patched.enter_context(mock.patch.object(place, name, instead))
        yield


def nchw(state: TrainState) -> TrainState:
    for network in (state.generator.module, state.discriminator.module):
        for parameter in network.parameters():
            parameter.data = parameter.data.contiguous()
    return state


def stepping(preset: str, plainly: bool) -> None:
    """Answer every line with the seconds of a step, of ours or of the plain form, whose memory is as torch has it."""
    with ExitStack() as patched:
        if plainly:
            patched.enter_context(plain())
        state = TrainState.create(made(preset, **({"precision": "float32"} if plainly else {})), World())
        if plainly:
            nchw(state)
            for player in (state.generator, state.discriminator):
                for group in player.optimizer.param_groups:
                    group["fused"] = False
        for _ in sys.stdin:
            print(step_s(state), flush=True)


def speed(preset: str) -> Iterator[dict[str, Any]]:
    """A step beside its plain form, each in a process of its own, in turns; and the rate of its products beside that of
    large ones in the same minutes."""
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    config, peaks = made(preset), []
    with ExitStack() as ending:
        processes: dict[str, subprocess.Popen[str]] = {}
        words = [sys.executable, "-m", "tests.bench.step", "--stepping", preset]
        # The plain one with memory as torch and glibc have it.
        default = {"THP_MEM_ALLOC_ENABLE": "0", "MEDGAN_KEEP_MEMORY": "0"}
        for name, more, settings in (("ours", [], {}), ("peer", ["--plainly"], default)):
            started = subprocess.Popen(
                [*words, *more], env=os.environ | settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            processes[name] = ending.enter_context(started)
        for number in range(ROUNDS + 1):
            for name, process in processes.items():
                print(file=process.stdin, flush=True)
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError(f"{name} of {preset} ended with code {process.wait()}")
                if number:  # the first one warms up
                    seconds[name].append(float(line))
            peaks.append(matrix_peak(torch.bfloat16))
    ratio = statistics.median(b / a for a, b in zip(seconds["ours"], seconds["peer"], strict=True))
    per_s = {name: config.global_batch / statistics.median(values) for name, values in seconds.items()}
    yield {"name": f"step/{preset}64", **per_s, "ratio": ratio, "unit": "img/s"}
    gflop = step_gflop(TrainState.create(config, World()))
    reached, peak = gflop / statistics.median(seconds["ours"]), statistics.median(peaks)
    yield {
        "name": f"step/{preset}64/products",
        "ours": reached,
        "peer": peak,
        "ratio": reached / peak,
        "unit": "GFLOP/s",
    }


def job(scratch: Path) -> dict[str, Any]:
    """A training on one worker, evaluations and checkpoints left out, beside steps on tensors that lie there, half of
    them before and half after it."""
    data, out = scratch / "data", scratch / "run"
    prepare = ["jobs/prepare.py", "--source", "phantom_cxr", "--out", data, "--resolution", "64", "--limit", "2000"]
    settings = [f"--set={key}={value}" for key, value in JOB.items()]
    train = ["jobs/train.py", "--preset", "cgan", "--data", data, "--out", out, "--workers", "1", *settings]
    config = made("cgan")
    state, batch = TrainState.create(config, World()), random_batch(config)

    def bare() -> list[float]:
        threads, found = torch.get_num_threads(), []
        torch.set_num_threads(1)  # as a worker has, which takes one CPU
        train_step(state, batch)
        steps = 1000 // config.global_batch
        for _ in range(JOB["total_images"] // 2000):
            start = time.perf_counter()
            for _ in range(steps):
                train_step(state, batch)
            found.append(steps * config.global_batch / (time.perf_counter() - start))
        torch.set_num_threads(threads)
        return found

    before = bare()
    for words in (prepare, train):
        subprocess.run([sys.executable, *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    after = bare()
    rows = [row["time/images_per_s"] for row in read_rows(out / "metrics.jsonl") if "time/images_per_s" in row]
    ours, peer = statistics.median(rows), statistics.median(before + after)
    return {"name": "step/job", "ours": ours, "peer": peer, "ratio": ours / peer, "unit": "img/s"}


def peak_mb(accumulation: int) -> float:
    """What a step of stylegan2-lite needs beside weights and optimizers, in a process of its own."""
    words = [sys.executable, "-m", "tests.bench.step", "--peak", str(accumulation)]
    return float(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def peak(accumulation: int) -> float:
    config = made("stylegan2-lite", global_batch=32, optim__accumulation=accumulation, loss__r1_interval=1)
    state, batch = TrainState.create(config, World()), random_batch(config)
    before = resident_mb()
    clear = Path("/proc/self/clear_refs")
    clear.write_text("5")  # the high-water mark starts anew
    train_step(state, batch)
    train_step(state, batch)
    return resident_mb("VmHWM") - before


def resident_mb(name: str = "VmRSS") -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def run(scratch: Path) -> Iterator[dict[str, Any]]:
    for preset in SETTINGS:
        yield from speed(preset)
    yield job(scratch)
    whole, half = peak_mb(1), peak_mb(2)
    yield {"name": "step/memory", "ours": half, "peer": whole, "ratio": whole / half, "unit": "MB"}


def profile(preset: str) -> None:
    """The operations of a few steps by their share, and the rate of products reached beside the machine's own."""
    state = TrainState.create(made(preset), World())
    batch = random_batch(state.config)
    print(f"{step_gflop(state):.0f} GFLOP a step, {step_s(state):.2f} s a step; large products, GFLOP/s: ", end="")
    print(f"bfloat16 {matrix_peak(torch.bfloat16):.0f}, float32 {matrix_peak(torch.float32):.0f}")
    state.images_seen = state.config.global_batch  # one of the many steps that have no lazy penalty
    with record(activities=[ProfilerActivity.CPU]) as seen:
        train_step(state, batch)
    events = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    for event in events[:14]:
        print(f"{event.key:<44} {event.self_cpu_time_total / whole:>6.1%} {event.count:>7}")


def matrix_peak(dtype: torch.dtype) -> float:
    """GFLOP/s of large products."""
    a, times = torch.randn(2048, 2048).to(dtype), []
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", type=int)
    parser.add_argument("--stepping", choices=configs.PRESETS)
    parser.add_argument("--plainly", action="store_true")
    parser.add_argument("--profile", choices=configs.PRESETS)
    args = parser.parse_args()
    if args.peak:
        print(peak(args.peak))
    elif args.stepping:
        stepping(args.stepping, args.plainly)
    else:
        profile(args.profile or "dcgan")


if __name__ == "__main__":
    main()
