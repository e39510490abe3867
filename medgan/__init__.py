"""medgan: GANs trained on a hospital's own images, on a Ray cluster, with the evidence for their use."""

import os

__version__ = "0.1.0"

# torch asks once: tensors from 2 MB on lie on huge pages, so that a step has a twentieth of the page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
