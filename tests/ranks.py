"""Functions on several gloo ranks of this host, each a process that ends in order."""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from medgan.distributed import leave

from .conftest import free_port


def run(size: int, function: Callable[..., None], *arguments: Any) -> None:
    """function(rank, *arguments) on so many ranks at once, one thread each. Raises what one of them raises."""
    mp.spawn(_rank, (size, free_port(), function, arguments), nprocs=size)


def _rank(rank: int, size: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=size)
    function(rank, *arguments)
    dist.barrier()
    leave()
