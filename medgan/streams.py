"""Random streams addressed by (seed, name, index), so that a draw depends on nothing that happened before it.

The index is `images_seen` for what happens in training and the sample's number for what is generated. Resuming,
another number of workers or an evaluation in between therefore change no draw.
"""

from __future__ import annotations

import hashlib

import torch


def stream_seed(seed: int, name: str, index: int) -> int:
    """A 63-bit seed for one draw."""
    digest = hashlib.sha256(f"{seed}/{name}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def stream(seed: int, name: str, index: int) -> torch.Generator:
    """A CPU generator for one draw: draws are made on the CPU and moved, so that every device sees the same."""
    return torch.Generator().manual_seed(stream_seed(seed, name, index))
