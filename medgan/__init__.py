"""medgan: GANs trained on a hospital's own images, on a Ray cluster, with the evidence for their use."""

__version__ = "0.1.0"
