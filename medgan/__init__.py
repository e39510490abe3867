"""medgan: GANs trained on a hospital's own images, on a Ray cluster, with the evidence for their use."""

import ctypes
import os

__version__ = "0.1.0"

# torch asks once: tensors from 2 MB on lie on huge pages, so that a step has a twentieth of the page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_blocks(up_to: int = 2**30) -> None:
    """Blocks of memory of so many bytes, when freed, stay with the process for the next ones, instead of going back to
    the system, which clears the pages of each new one. At most 32 MB are what the C library does of itself, which is
    fewer than an activation of 16 images with 128 channels at 64x64 has in float32. Nothing where it is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for threshold in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            mallopt(threshold, up_to)


keep_blocks()
