"""What the diffusion losses share: min-SNR weights, stratified timesteps, and the loss on velocities."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MIN_SNR_GAMMA = 5.0


def min_snr_weights(snr: Tensor) -> Tensor:
    """Weight of the epsilon loss at each timestep, of signal-to-noise ratios (T,): min(snr, gamma) / snr (arXiv:2303.09556)."""
    return snr.clamp(max=MIN_SNR_GAMMA) / snr


def stratified_timesteps(batch: int, generator: torch.Generator) -> Tensor:
    """(batch,) timesteps of 1,000, one from each of `batch` equal slices."""
    return ((torch.arange(batch) + torch.rand(batch, generator=generator)) * (1000 / batch)).long()


def velocity_loss(
    predict: Callable[[Tensor, Tensor], Tensor], clean: Tensor, noise: Tensor, t: Tensor, alphas: Tensor
) -> Tensor:
    """Loss of predicted velocities (arXiv:2202.00512), which say what is clean also where nothing but noise is given.

    Args:
        predict: noisy (N, C, h, w) and timesteps (N,) -> velocity (N, C, h, w).
        clean, noise: (N, C, h, w). t: (N,). alphas: the schedule's cumulative products (T,).

    Returns:
        The mean over samples of min(1, gamma / (snr + 1)) times the squared error: little noise counts less (arXiv:2303.09556).
    """
    a = alphas[t].view(-1, 1, 1, 1)
    predicted = predict(a.sqrt() * clean + (1 - a).sqrt() * noise, t).float()
    error = (predicted - (a.sqrt() * noise - (1 - a).sqrt() * clean)).square().mean(dim=(1, 2, 3))
    weights = (MIN_SNR_GAMMA / (alphas / (1 - alphas) + 1)).clamp(max=1)
    loss: Tensor = (error * weights[t]).mean()
    return loss
