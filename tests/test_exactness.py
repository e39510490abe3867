"""W ranks follow one process: the same weights in float64, the same first gradients in float32."""

import functools

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from medgan import config as configs
from medgan.data.loader import Batch, rank_rows
from medgan.distributed import World
from medgan.state import TrainState
from medgan.step import SCALARS, train_step

from . import ranks as gloo
from .conftest import overrides_of

pytestmark = pytest.mark.timeout(1800)  # the first test of a world waits for all its cells
STEPS = 20
GLOBAL_BATCH = 64
SMALL = {"model.width": 4, "model.max_width": 8, "model.z_dim": 8, "global_batch": GLOBAL_BATCH, "loss.r1_interval": 3}


def allowed():
    """Every allowed model, loss and penalty on data with classes, as dotted overrides; of each augmentation and of
    path lengths those with one loss and penalty; and pieces, which are no axis of the table."""
    for cell, reason in configs.cells():
        unusual = [axis for axis in ("augment.name", "path length") if cell[axis] != "none"]
        one = (
            cell["loss.name"] == "bce" and cell["penalty"] == "r1" and cell["model.name"] in ("cgan", "stylegan2-lite")
        )
        few = len(unusual) == 1 and one and (cell["model.name"] == "cgan" or "path length" in unusual)
        random = cell["privacy"] == "dp"  # test_private.py takes the randomness out
        if reason is None and cell["condition"] == "class" and (few or not unusual) and not random:
            chosen = overrides_of(cell)
            if cell["model.name"] == "stylegan2-lite":
                chosen["model.w_dim"] = 8
            if cell["loss.name"] == "wgan-gp":
                chosen["loss.critic_steps"] = 2
            if cell["path length"] == "weighted":
                chosen |= {"model.style_mixing": 0.7, "loss.path_interval": 2, "loss.critic_steps": 2}
            yield chosen
    pieces = {"optim.accumulation": 2, "loss.r1_gamma": 1.0, "loss.r2_gamma": 1.0}
    yield {"model.name": "cgan", "loss.name": "bce", **pieces, "augment.name": "ada", "augment.p": 0.5}
    yield {"model.name": "stylegan2-lite", "model.w_dim": 8, "loss.name": "rpgan", **pieces, "loss.path_weight": 2.0}


CELLS = list(allowed())
NAMES = ["-".join(str(value) for value in cell.values()) for cell in CELLS]
assert len(set(NAMES)) == len(NAMES)
# In float64 a step of the nets with filters and groups takes ten times as long as one of the others.
LONG_NETS = ("stylegan2-lite", "resgan")
# In every `make test`, on two and three ranks, of what can go wrong between ranks: BatchNorm in D, a loss of pairs with
# both penalties, several critic steps, and pieces with ADA.
FEW = [
    i
    for i, cell in enumerate(CELLS)
    if (cell.get("model.norm_d") == "batch" and cell["loss.name"] == "bce")
    or (
        cell["model.name"] == "cgan"
        and (
            (cell["loss.name"] == "rpgan" and cell["loss.r1_gamma"] == cell["loss.r2_gamma"] > 0)
            or cell["loss.name"] == "wgan-gp"
            or "optim.accumulation" in cell
        )
    )
]
# In `make test-heavy`: of each long net the cell with most pieces, and of the other nets, on two ranks, every loss with
# both penalties or with BatchNorm in D, WGAN-GP, and each augmentation.
NETS = [
    i
    for i, cell in enumerate(CELLS)
    if cell["model.name"] in LONG_NETS
    and (cell["loss.name"] == "rpgan" and cell["loss.r1_gamma"] and cell["loss.r2_gamma"])
    and (cell["model.name"] == "resgan" or "loss.path_weight" in cell)
]
SHORT = [
    i
    for i, cell in enumerate(CELLS)
    if i not in FEW
    and cell["model.name"] not in LONG_NETS
    and (
        cell["loss.r1_gamma"] == cell["loss.r2_gamma"] > 0
        or cell.get("model.norm_d") == "batch"
        or cell["loss.name"] == "wgan-gp"
        or "augment.name" in cell
    )
]
# In `make prove`: the rest.
LONG = [i for i in range(len(CELLS)) if i not in FEW + NETS + SHORT]
GROUPS = tuple(map(tuple, (FEW, NETS, SHORT, LONG)))
HEAVY, SLOW = (pytest.mark.heavy,), (pytest.mark.heavy, pytest.mark.slow)
# One rank differs from no ranks by its wrappers alone: that is looked at once.
EACH = [
    pytest.param(world, i, id=f"{world}-{NAMES[i]}", marks=marks)
    for group, worlds, marks in (
        (FEW[:1], (1,), HEAVY),
        (FEW, (2,), ()),
        (FEW, (3,), HEAVY),
        (NETS, (2, 3), HEAVY),
        (SHORT, (2,), HEAVY),
        (SHORT, (3,), SLOW),
        (LONG, (2, 3), SLOW),
    )
    for world in worlds
    for i in group
]


def run(overrides: dict, steps: int) -> dict:
    """Train on random bright pixels in this process's world; weights, last gradients and scalars.

    Bright, so that D's gradients at real and generated images do not cancel to what rounding left over.
    """
    config = configs.load(overrides={**SMALL, **overrides})
    config = configs.for_data(config, resolution=32, channels=1, classes=("a", "b"), manifest_sha256="0" * 64)
    world = World.current()
    state = TrainState.create(config, world)
    part = np.concatenate(rank_rows(config, world.rank, world.size))
    for step in range(steps):
        random = torch.Generator().manual_seed(step)
        pixels = torch.randint(192, 256, (GLOBAL_BATCH, 1, 32, 32), dtype=torch.uint8, generator=random)
        labels = torch.eye(2)[torch.randint(0, 2, (GLOBAL_BATCH,), generator=random)]
        scalars = world.sum(train_step(state, Batch(pixels[part], labels[part], None)))
    networks = {"G": state.generator.module, "D": state.discriminator.module, "ema": state.ema}
    return {
        "weights": {f"{n}.{k}": v for n, network in networks.items() for k, v in network.state_dict().items()},
        "gradients": {
            f"{n}.{k}": v.grad for n, network in networks.items() for k, v in network.named_parameters() if n != "ema"
        },
        "scalars": scalars,
    }


def everything(cell: dict) -> dict:
    exact = run({**cell, "precision": "float64"}, STEPS)
    # A learning rate that changes no float32 weight: the gradients are those at the initial weights.
    still = {**cell, "precision": "float32", "optim.lr_g": 1e-30, "optim.lr_d": 1e-30, "loss.critic_steps": 1}
    gradients = {name: run({**still, "model.activation": name}, 1)["gradients"] for name in ("relu", "silu")}
    return {"exact": exact, "gradients": gradients}


def together(rank: int, cells: tuple[int, ...], out: str) -> None:
    results = {index: everything(CELLS[index]) for index in cells}
    if rank == 0:
        torch.save(results, out)


def alone(part: int, cells: tuple[int, ...], out: str) -> None:
    """Every second cell in a process without torch.distributed, with torch's own batch_norm."""
    torch.set_num_threads(1)
    assert not dist.is_initialized()
    torch.save({index: everything(CELLS[index]) for index in cells[part::2]}, f"{out}.{part}")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """ranks(world, index) -> what so many ranks made of a cell; 0: one process without torch.distributed."""

    @functools.cache
    def results(world: int, cells: tuple[int, ...]) -> dict:
        out = str(tmp_path_factory.mktemp("exactness") / "results.pt")
        if world:
            gloo.run(world, together, cells, out)
            return torch.load(out, weights_only=True)
        mp.spawn(alone, (cells, out), nprocs=2)
        return torch.load(f"{out}.0", weights_only=True) | torch.load(f"{out}.1", weights_only=True)

    def of(world: int, index: int) -> dict:
        cells = (index,) if world == 1 else next(group for group in GROUPS if index in group)
        return results(world, cells)[index]

    return of


@pytest.mark.parametrize(("world", "index"), EACH)
def test_float64_weights_equal_one_process(ranks, world, index):
    ours, plain = ranks(world, index)["exact"], ranks(0, index)["exact"]
    for key, weight in plain["weights"].items():
        assert torch.allclose(ours["weights"][key], weight, rtol=0, atol=1e-9), key
    assert torch.allclose(ours["scalars"], plain["scalars"], rtol=0, atol=1e-7)
    assert plain["scalars"][SCALARS.index("loss/D")] != 0


@pytest.mark.parametrize(("world", "index"), EACH)
@pytest.mark.parametrize(("activation", "tolerance"), [("silu", 1e-4), ("relu", 2e-2)])
def test_float32_gradients_equal_one_process_at_the_initial_weights(ranks, world, index, activation, tolerance):
    ours, plain = (result["gradients"][activation] for result in (ranks(world, index), ranks(0, index)))
    for key, gradient in plain.items():
        largest = max(g.norm() for k, g in plain.items() if k[0] == key[0])
        # The second term is what rounding leaves where terms of that size cancel, some of them to zero.
        assert (ours[key] - gradient).norm() <= tolerance * gradient.norm() + 1e-7 * largest, key


def test_every_model_loss_and_penalty_is_among_the_cells():
    assert {cell["model.name"] for cell in CELLS} == set(configs.AXES["model.name"])
    assert {cell["loss.name"] for cell in CELLS} == set(configs.AXES["loss.name"])
    for penalty in ("r1", "r2"):
        assert {cell[f"loss.{penalty}_gamma"] for cell in CELLS} == {0.0, 1.0}


TRAVEL = {"plain": {}, "small parcels": {"optim.bucket_mb": 0.001}, "bfloat16": {"optim.compression": "bfloat16"}}


def travelling(rank: int, out: str) -> None:
    cell = {"model.name": "cgan", "loss.name": "bce", "precision": "float64"}
    results = {name: run({**cell, **how}, 1)["gradients"] for name, how in TRAVEL.items()}
    if rank == 0:
        torch.save(results, out)


def test_gradients_may_travel_in_other_parcels_unchanged_or_in_bfloat16_rounded(tmp_path):
    gloo.run(2, travelling, str(tmp_path / "out.pt"))
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    whole = 0
    for key, gradient in found["plain"].items():
        assert torch.allclose(found["small parcels"][key], gradient, rtol=0, atol=1e-12), key
        half = found["bfloat16"][key]
        assert (half - gradient).norm() < 2**-7 * gradient.norm(), key  # bfloat16 has 8 bits
        assert torch.equal(half, half.bfloat16().double()), key
        whole += not torch.equal(gradient, gradient.bfloat16().double())
    assert whole > len(found["plain"]) / 2
