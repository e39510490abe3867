"""One process's step against the same mathematics written out by hand, and the all-reduce's second derivative."""

import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from medgan.data.loader import Batch
from medgan.distributed import World
from medgan.models import build_gan
from medgan.models.layers import SumOverRanks
from medgan.state import TrainState
from medgan.step import SCALARS, train_step
from medgan.streams import stream, stream_seed

from .conftest import free_port


def test_a_step_is_its_mathematics_with_the_penalty_every_second_step(tiny):
    config = tiny(precision="float64", loss__r1_gamma=3.0, loss__r1_interval=2, ema__half_life_kimg=0)
    state = TrainState.create(config, World())
    torch.manual_seed(stream_seed(config.seed, "weights", 0))
    generator, discriminator = (network.double() for network in build_gan(config))
    optim = config.optim
    adams = [
        torch.optim.Adam(network.parameters(), lr=lr, betas=(optim.beta1, optim.beta2), eps=optim.eps)
        for network, lr in ((generator, optim.lr_g), (discriminator, optim.lr_d))
    ]
    size, z_dim = config.global_batch, config.model.z_dim
    for step in range(3):
        pixels = torch.randint(0, 256, (size, 1, 32, 32), dtype=torch.uint8)
        labels = torch.eye(2)[torch.randint(0, 2, (size,))]
        scalars = dict(zip(SCALARS, train_step(state, Batch(pixels, labels, None)).tolist(), strict=True))

        hot, real = labels.double(), (pixels.double() / 127.5 - 1).requires_grad_()
        z = torch.randn(size, z_dim, generator=stream(config.seed, "z", step * size), dtype=torch.float64)
        images = generator(z, hot)
        logits, fake = discriminator(real, hot), discriminator(images.detach(), hot)
        loss_d = (F.softplus(-logits) + F.softplus(fake)).mean()
        total = loss_d
        if step % 2 == 0:
            (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
            penalty = gradient.square().sum((1, 2, 3)).mean()
            total = loss_d + 3.0 / 2 * 2 * penalty  # gamma / 2, and twice as much every second step
            assert abs(scalars["penalty/r1"] - penalty.item()) < 1e-9
        adams[1].zero_grad()
        total.backward()
        adams[1].step()
        loss_g = F.softplus(-discriminator(images, hot)).mean()
        adams[0].zero_grad()
        loss_g.backward()
        adams[0].step()
        assert abs(scalars["loss/D"] - loss_d.item()) < 1e-9
        assert abs(scalars["loss/G"] - loss_g.item()) < 1e-9
    for ours, theirs in ((state.generator.module, generator), (state.discriminator.module, discriminator)):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-9)
    for a, b in zip(state.ema.parameters(), generator.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-9)


def second_derivative(rank: int, world: int, port: int, out: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    x = torch.tensor([float(rank + 1)], dtype=torch.float64, requires_grad=True)
    # Every rank's loss is (x_0 + x_1)^3; the first derivative of their sum is 2 * 3 s^2, the second 2 * 2 * 6 s.
    (first,) = torch.autograd.grad((SumOverRanks.apply(x) ** 3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    if rank == 0:
        torch.save([first.detach(), second], out)
    dist.barrier()
    dist.destroy_process_group()


def test_the_sum_over_ranks_can_be_differentiated_twice(tmp_path):
    port = free_port()
    mp.spawn(second_derivative, (2, port, str(tmp_path / "out.pt")), nprocs=2)
    first, second = torch.load(tmp_path / "out.pt", weights_only=True)
    assert first.item() == 2 * 3 * 9
    assert second.item() == 2 * 2 * 6 * 3
