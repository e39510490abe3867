"""Ranks that end in order."""

import atexit
import gc
from pathlib import Path

import torch

from medgan import config as configs
from medgan.data.loader import Batch, rank_slice
from medgan.distributed import World
from medgan.plan import random_batch
from medgan.state import TrainState
from medgan.step import train_step

from . import ranks
from .conftest import TINY


def threads() -> list[str]:
    """Names of this process's threads but for Python's own."""
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return sorted(name for name in names if "gloo" in name or "tcpstore" in name)


def trained(rank: int, out: str) -> None:
    """A step on two ranks; writes which threads there are, and which at the interpreter's end."""
    gc.disable()  # or by chance the wrappers' cycles are gone before `leave` looks for them
    config = configs.for_data(
        configs.load("cgan", overrides=TINY), resolution=32, channels=1, classes=("a", "b"), manifest_sha256="0" * 64
    )
    whole, part = random_batch(config), rank_slice(config.global_batch, config.sample_group, rank, 2)
    train_step(TrainState.create(config, World.current()), Batch(whole.pixels[part], whole.labels[part], None))
    Path(f"{out}.{rank}.during").write_text(" ".join(threads()))
    atexit.register(lambda: Path(f"{out}.{rank}.after").write_text(" ".join(threads())))


def gathered(rank: int, out: str) -> None:
    """Rank 0 has one row, rank 1 has three."""
    world = World.current()
    rows = torch.arange(2.0 * (1 + 2 * rank)).reshape(-1, 2) + 10 * rank
    found = (world.sum(torch.tensor([1.0, 5.0 * rank])), world.gather_rows(rows), world.broadcast(f"of rank {rank}"))
    torch.save(found, f"{out}.{rank}")


def test_sums_rows_and_what_rank_0_says_are_those_of_all_ranks(tmp_path):
    ranks.run(2, gathered, str(tmp_path / "found"))
    first, second = (torch.load(tmp_path / f"found.{rank}", weights_only=True) for rank in range(2))
    for total, _, said in (first, second):
        assert total.tolist() == [2, 5]
        assert said == "of rank 0"
    assert first[1].tolist() == [[0, 1], [10, 11], [12, 13], [14, 15]]
    assert second[1] is None


def test_no_thread_of_a_process_group_outlives_its_rank(tmp_path):
    ranks.run(2, trained, str(tmp_path / "threads"))
    for rank in range(2):
        assert "pt_gloo_runloop" in (tmp_path / f"threads.{rank}.during").read_text()
        assert (tmp_path / f"threads.{rank}.after").read_text() == ""
