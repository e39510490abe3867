"""Allowed cells of the table train on two ranks; what is refused, test_config.py sees refused.

Here as few cells as have every three settings that can go together in one of them, which is where nearly all faults of
combinations show (Kuhn, Wallace and Gallo, doi:10.1109/TSE.2004.24); all of them, and by themselves, in `make prove`.
What goes together with everything is no axis of the table: the cells take turns in some of it.
"""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from medgan import config as configs
from medgan.data.loader import Batch, rank_rows
from medgan.distributed import World
from medgan.state import TrainState
from medgan.step import SCALARS, parts, train_step

from . import ranks
from .conftest import overrides_of

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(1800)]
STEPS = 2
SMALL = {"model.width": 4, "model.max_width": 8, "model.z_dim": 8, "global_batch": 16, "precision": "float32"}

TURNS: tuple[dict[str, object], ...] = (
    {},
    {"precision": "bfloat16"},
    {"optim.accumulation": 2},
    {"optim.clip": 1.0, "model.anneal_to_kimg": 0.1},
    {"optim.warmup_kimg": 0.1, "optim.decay_kimg": 1, "loss.gamma_kimg": 1},
)


def turn(cell: dict[str, str]) -> dict[str, object]:
    if cell["privacy"] == "dp":  # which refuses most of them
        return {}
    chosen = TURNS[ALLOWED.index(cell) % len(TURNS)]
    without_labels = cell["model.name"] == "dcgan"
    return {key: value for key, value in chosen.items() if not (without_labels and "anneal" in key)}


def trained(cell: dict[str, str]) -> str | None:
    """What is wrong with a few steps of a cell on random images of several labels each, or None."""
    overrides = {**SMALL, **overrides_of(cell), **turn(cell), "loss.path_interval": 1, "loss.r1_interval": 1}
    if cell["model.name"] == "stylegan2-lite":
        overrides |= {"model.w_dim": 8, "model.style_mixing": 0.5}
    classes = ("a", "b", "c") if cell["condition"] == "class" else ()
    config = configs.for_data(
        configs.load(overrides=overrides), resolution=32, channels=1, classes=classes, manifest_sha256="0" * 64
    )
    world = World.current()
    state = TrainState.create(config, world)
    players = {"G": state.generator, "D": state.discriminator}
    before = {name: [p.clone() for p in player.module.parameters()] for name, player in players.items()}
    part = np.concatenate(rank_rows(config, world.rank, world.size))
    random = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        having = parts(config, state.images_seen)
        pixels = torch.randint(0, 256, (config.global_batch, 1, 32, 32), dtype=torch.uint8, generator=random)
        labels = torch.randint(0, 2, (config.global_batch, len(classes)), generator=random).float()
        scalars = world.sum(train_step(state, Batch(pixels[part], labels[part], None)))
        if not scalars.isfinite().all():
            return f"{scalars.tolist()}"
        for name, value in zip(SCALARS, scalars.tolist(), strict=True):
            if name not in having and value:
                return f"{name} is {value}, and the step has none"
    wanted = {"penalty/path"} if cell["path length"] == "weighted" else set()
    wanted |= {f"penalty/{name}" for name in cell["penalty"].split("+") if name != "none"}
    if not wanted <= having:
        return f"{wanted - having} was not taken"
    for name, player in players.items():
        if all(torch.equal(a, b) for a, b in zip(before[name], player.module.parameters(), strict=True)):
            return f"the weights of {name} did not change"
    if not state.finite():
        return "the weights are no numbers any more"
    return None


ALLOWED = [cell for cell, reason in configs.cells() if reason is None]


def covering(cells: list[dict[str, str]], together: int) -> list[dict[str, str]]:
    """Few of the cells that have every so many settings in one of them, chosen greedily."""
    having = [{frozenset(some) for some in combinations(cell.items(), together)} for cell in cells]
    missing, chosen = set().union(*having), []
    while missing:
        chosen.append(max(range(len(cells)), key=lambda index: len(having[index] & missing)))
        missing -= having[chosen[-1]]
    return [cells[index] for index in sorted(chosen)]


COVERING = covering(ALLOWED, 3)


def together(rank: int, cells: list[dict[str, str]], out: str) -> None:
    torch.save({"-".join(cell.values()): trained(cell) for cell in cells}, f"{out}.{rank}")


def alone(part: int, out: str) -> None:
    """Every second cell in a process without torch.distributed."""
    torch.set_num_threads(1)
    torch.save({"-".join(cell.values()): trained(cell) for cell in ALLOWED[part::2]}, f"{out}.{part}")


@pytest.mark.parametrize("cells", [COVERING, ALLOWED], ids=["covering", "all"])
def test_the_cells_of_every_model_loss_and_penalty_see_every_turn(cells):
    for axis in ("model.name", "loss.name", "penalty"):
        for value in configs.AXES[axis]:
            seen = {next(iter(turn(cell)), None) for cell in cells if cell[axis] == value}
            assert seen == {next(iter(chosen), None) for chosen in TURNS}, value


def test_few_cells_have_every_three_settings_that_can_go_together():
    wanted = {frozenset(some) for cell in ALLOWED for some in combinations(cell.items(), 3)}
    assert wanted == {frozenset(some) for cell in COVERING for some in combinations(cell.items(), 3)}
    assert len(COVERING) < len(ALLOWED) / 5


@pytest.mark.parametrize("cells", [COVERING, pytest.param(ALLOWED, marks=pytest.mark.slow)], ids=["covering", "all"])
def test_cells_train_on_two_ranks(cells, tmp_path):
    assert trains(lambda out: ranks.run(2, together, cells, out), tmp_path) == len(cells)


@pytest.mark.slow
def test_every_allowed_cell_trains_by_itself(tmp_path):
    assert trains(lambda out: mp.spawn(alone, (out,), nprocs=2), tmp_path) == len(ALLOWED)


def trains(run: Callable[[str], object], folder: Path) -> int:
    """How many cells two processes trained, all without a fault."""
    out = str(folder / "found.pt")
    run(out)
    found = torch.load(f"{out}.0", weights_only=True) | torch.load(f"{out}.1", weights_only=True)
    assert {cell: wrong for cell, wrong in found.items() if wrong} == {}
    return len(found)
