"""Dual latent reconstruction (arXiv:2411.13982) as we reconstruct it: R1 blends predictions, R2 merges two latents."""

from saferedir.guards.dual_latent.config import LEVELS, DualLatentConfig, DualLatentR2Config
from saferedir.guards.dual_latent.r1 import DualLatentR1
from saferedir.guards.dual_latent.r2 import DualLatentR2

__all__ = ["DualLatentConfig", "DualLatentR1", "DualLatentR2", "DualLatentR2Config", "LEVELS"]
