"""The seam to Ray for evaluations and releases: cells as tasks over the cluster's resources."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from medgan import cells
from medgan.cells import Cell, Pace
from medgan.config import Refused
from medgan.ray_train import Interrupt, taken
from medgan.terminal import Stopped, again


def run(
    wanted: Sequence[Cell],
    folder: str,
    show: Callable[[Pace], None],
    workers: int | None = None,
    use: str = "auto",
) -> None:
    """Compute what is missing on the connected cluster, each cell on a GPU or a CPU.

    folder: a path or a URI that every host sees. workers: at most so many cells at once, those that an autoscaler has
    to make room for included (None: as many as fit now). use: auto (GPUs where there are any), gpu or cpu. A cell whose
    process or host dies is computed again; what a cell raises is raised here. Ctrl-C stops at once: cells that are done
    are kept. show: called twice a second. Raises Refused where there is no room and nobody said for what to wait.
    """
    todo = cells.missing(wanted, folder)
    options, limit = room(ray.cluster_resources(), workers, use)
    task = ray.remote(**options, max_retries=3)(_compute)
    waiting = {cell.digest: cell for cell in todo}
    pace = Pace(todo, limit)
    running: dict[Any, Cell] = {}
    interrupt = Interrupt()
    show(pace)
    with interrupt:
        try:
            while pace.left:
                for digest, cell in list(waiting.items()):
                    if len(running) < limit and not any(need.digest in pace.left for need in cell.needs):
                        pace.start(cell)
                        running[task.options(name=cell.name).remote(cell, folder)] = waiting.pop(digest)
                finished, _ = ray.wait(list(running), timeout=0.5)
                for reference in finished:
                    cell = running.pop(reference)
                    try:
                        pace.finish(cell, ray.get(reference))
                    except RayTaskError as error:
                        raise error.cause from error
                show(pace)
                if interrupt.asked:
                    raise Stopped(f"stopped, {len(pace.left)} of {len(todo)} cells are left; {again()}")
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def room(resources: Mapping[str, float], workers: int | None = None, use: str = "auto") -> tuple[dict[str, Any], int]:
    """(Ray's options of a cell, how many cells at once) where such resources are there now; arguments as for `run`."""
    unit, count = taken(resources, use, "--workers 8")
    if not workers and not count:
        raise Refused(f"the cluster has no {unit} yet: name --workers, for how many cells at once it may add some")
    options: dict[str, Any] = {"num_cpus": int(unit == "CPU"), "num_gpus": int(unit == "GPU")}
    if unit == "CPU" and resources.get("GPU"):  # Ray would leave the host's GPUs in sight
        options["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
    return options, workers or count


def _compute(cell: Cell, folder: str) -> float:
    import torch

    torch.set_num_threads(1)
    return cell.compute(folder)
