"""What the diffusion losses share: min-SNR weights and stratified timesteps."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_SNR_GAMMA = 5.0


def min_snr_weights(snr: Tensor) -> Tensor:
    """Weight of the epsilon loss at each timestep, of signal-to-noise ratios (T,): min(snr, gamma) / snr (arXiv:2303.09556)."""
    return snr.clamp(max=MIN_SNR_GAMMA) / snr


def stratified_timesteps(batch: int, generator: torch.Generator) -> Tensor:
    """(batch,) timesteps of 1,000, one from each of `batch` equal slices."""
    return ((torch.arange(batch) + torch.rand(batch, generator=generator)) * (1000 / batch)).long()
