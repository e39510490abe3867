"""medgan: GANs trained on a hospital's own images, on a Ray cluster, with the evidence for their use."""

import ctypes
import os
import platform

from medgan import host

__version__ = "0.1.0"

host.settle_home()
host.settle_imports()
# torch asks once: tensors from 2 MB on lie on huge pages, so that a step has a twentieth of the page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def _keep_memory() -> None:
    """What this process frees stays with it, up to 2 GB, since its next step wants as much: glibc would give blocks of
    over 32 MB back, and have them anew as pages to be cleared. In threads, as Ray trains in one, blocks below 64 MB do.

    Not with MEDGAN_KEEP_MEMORY=0, nor where the environment has settings of glibc's own.
    """
    chosen = [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
    if chosen or os.environ.get("MEDGAN_KEEP_MEMORY") == "0" or platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_max = -1, -4  # of mallopt(3)
    for setting, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1)):
        ctypes.CDLL(None).mallopt(setting, value)


_keep_memory()
