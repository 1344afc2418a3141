"""Dual latent reconstruction (arXiv:2411.13982) as we reconstruct it: R1, one latent with blended predictions."""

from saferedir.guards.dual_latent.config import LEVELS, DualLatentConfig
from saferedir.guards.dual_latent.r1 import DualLatentR1

__all__ = ["DualLatentConfig", "DualLatentR1", "LEVELS"]
