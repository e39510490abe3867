"""The seam to Ray for evaluations and releases: cells as tasks over the cluster's resources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from medgan import cells
from medgan.cells import Cell
from medgan.ray_train import Interrupt
from medgan.terminal import Stopped, again


def run(wanted: Sequence[Cell], folder: str, show: Callable[[int, int, str], None], workers: int | None = None) -> None:
    """Compute what is missing on the connected cluster, each cell on a GPU where there are any, else on a CPU.

    folder: a path or a URI that every host sees. workers: at most so many cells at once (None: as many as fit). A
    cell whose process or host dies is computed again; what a cell raises is raised here. Ctrl-C stops at once: cells
    that are done are kept. show: called with (cells done, of how many, name of the one done last).
    """
    todo = cells.missing(wanted, folder)
    resources = ray.cluster_resources()
    unit = "GPU" if resources.get("GPU", 0) else "CPU"
    limit = workers or max(1, int(resources.get(unit, 1)))
    task = ray.remote(num_cpus=int(unit == "CPU"), num_gpus=int(unit == "GPU"), max_retries=3)(_compute)
    waiting = {cell.digest: cell for cell in todo}
    unfinished = set(waiting)
    running: dict[Any, Cell] = {}
    interrupt = Interrupt()
    show(0, len(todo), "")
    with interrupt:
        try:
            while unfinished:
                for digest, cell in list(waiting.items()):
                    if len(running) < limit and not any(need.digest in unfinished for need in cell.needs):
                        running[task.options(name=cell.name).remote(cell, folder)] = waiting.pop(digest)
                finished, _ = ray.wait(list(running), timeout=0.5)
                for reference in finished:
                    cell = running.pop(reference)
                    try:
                        ray.get(reference)
                    except RayTaskError as error:
                        raise error.cause from error
                    unfinished.remove(cell.digest)
                    show(len(todo) - len(unfinished), len(todo), cell.name)
                if interrupt.asked:
                    raise Stopped(f"stopped, {len(unfinished)} of {len(todo)} cells are left; {again()}")
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _compute(cell: Cell, folder: str) -> None:
    import torch

    torch.set_num_threads(1)
    cell.compute(folder)
