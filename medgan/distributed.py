"""The world a process trains in: torch.distributed where it is initialised, one process where it is not."""

from __future__ import annotations

import gc
import socket
import tempfile
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before any group is made: see `leave`
from torch import Tensor, nn
from torch._C._distributed_c10d import FileStore, Store, TCPStore
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


_opened: Store | None = None
"""What rank 0 opened, from then until `join`."""


def open_store(address: str | None, folder: str) -> str:
    """On rank 0: open the store by which ranks find each other, and return where it is, for `join`.

    torch's store asks nobody who they are. address: of this host, at whose interface alone it listens; None where all
    ranks are on this host: then it is a file that no other user can read, in a new folder below `folder`.
    """
    global _opened
    if address is None:
        return f"file://{tempfile.mkdtemp(prefix='ranks-', dir=folder)}/store"
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listening:
        port = listening.getsockname()[1]
        _opened = TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())
    return f"tcp://{f'[{address}]' if family == socket.AF_INET6 else address}:{port}"


def join(backend: str, rank: int, size: int, where: str, timeout_s: float) -> None:
    """Make the process group of so many ranks with the store that rank 0 opened in this or another process."""
    global _opened
    wait = timedelta(seconds=timeout_s)
    kind, _, place = where.partition("://")
    store: Store
    if kind == "file":
        store = FileStore(place, size)
    elif _opened is not None:
        store, _opened = _opened, None
    else:
        host, _, port = place.rpartition(":")
        store = TCPStore(host.strip("[]"), int(port), is_master=False, timeout=wait)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=wait)


def leave() -> None:
    """End this process's part in torch.distributed, and with it the threads of gloo.

    A thread that outlives its rank can end the process with SIGABRT while the interpreter and the libraries below it
    are taken down. torch ends the threads with the last reference to the process group, and `destroy_process_group`
    drops only its own. DDP wrappers hold others, in cycles. So did the default arguments of
    torch.distributed.nn.functional, for ever, where that module is imported after the group was made, as DDP does.
    Call it where no wrapper is in use any more.
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


@dataclass(frozen=True)
class World:
    """rank of size processes, each with a device."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @staticmethod
    def current(device: torch.device | str = "cpu") -> World:
        if dist.is_available() and dist.is_initialized():
            return World(dist.get_rank(), dist.get_world_size(), torch.device(device))
        return World(device=torch.device(device))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wrap(self, module: nn.Module, bucket_mb: float = 25.0, bfloat16: bool = False) -> nn.Module:
        """A DistributedDataParallel wrapper, or the module itself in a world of one.

        forward_sync_buffers=False: D runs twice before one backward, and a broadcast between would change what the
        first pass saved. No static_graph: with two forwards it gives wrong gradients without a word.
        bucket_mb, bfloat16: how gradients travel; see optim.bucket_mb and optim.compression.
        """
        if self.size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        ddp = DistributedDataParallel(module, device_ids=ids, forward_sync_buffers=False, bucket_cap_mb=bucket_mb)
        if bfloat16:
            ddp.register_comm_hook(None, bf16_compress_hook)
        return ddp

    def put(self, values: Tensor) -> Tensor:
        """A tensor on the device, through page-locked memory where that lets the copy go on beside computing."""
        if self.device.type == "cuda":
            values = values.pin_memory()
        return values.to(self.device, non_blocking=True)

    def broadcast(self, value: T) -> T:
        """Rank 0's value (any picklable object) on every rank."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the ranks, on every rank."""
        total = values.detach().clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def gather_rows(self, rows: Tensor) -> Tensor | None:
        """(n_r, ...) of every rank -> their concatenation on the CPU in rank order at rank 0, None elsewhere."""
        if self.size == 1:
            return rows.cpu()
        rows = rows.to(self.device)  # NCCL moves nothing else
        shapes: list[Any] = [None] * self.size
        dist.all_gather_object(shapes, len(rows))
        padded = rows.new_zeros((max(shapes), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in shapes] if self.first else None
        dist.gather(padded, parts, dst=0)
        if parts is None:
            return None
        return torch.cat([part[:count] for part, count in zip(parts, shapes, strict=True)]).cpu()
