"""The losses of PictoWorld's diffusion models against predictions that are right."""

from __future__ import annotations

import torch
from tools.pictoworld.training.noise import MIN_SNR_GAMMA, stratified_timesteps, velocity_loss
from tools.pictoworld.world2.unconditional import build_scheduler
from torch import Tensor

ALPHAS = build_scheduler().alphas_cumprod


def test_a_velocity_is_right_where_the_scheduler_finds_the_clean_image_from_it() -> None:
    scheduler = build_scheduler()
    clean, noise = torch.randn(2, 6, 3, 4, 4, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    t = torch.tensor([0, 99, 499, 899, 990, 999])
    velocity = scheduler.get_velocity(clean, noise, t)
    noisy: list[Tensor] = []

    def predict(x: Tensor, _: Tensor) -> Tensor:
        noisy.append(x)
        return velocity

    assert velocity_loss(predict, clean, noise, t, ALPHAS) < 1e-10
    torch.testing.assert_close(noisy[0], scheduler.add_noise(clean, noise, t))
    scheduler.set_timesteps(10)
    found = scheduler.step(velocity[5], 999, noisy[0][5]).pred_original_sample
    torch.testing.assert_close(found, clean[5])  # also where the image is noise alone


def test_an_error_counts_the_less_the_less_noise_there_is() -> None:
    zero = torch.zeros(1, 3, 4, 4)
    losses = [
        float(velocity_loss(lambda x, t: x + 1, zero, zero, torch.tensor([t]), ALPHAS)) for t in (0, 100, 700, 999)
    ]
    snr = ALPHAS / (1 - ALPHAS)
    torch.testing.assert_close(losses[0], float(MIN_SNR_GAMMA / (snr[0] + 1)))
    assert losses[0] < losses[1] < losses[2] == losses[3] == 1.0


def test_timesteps_come_one_from_each_slice() -> None:
    t = stratified_timesteps(10, torch.Generator().manual_seed(0))
    assert (t // 100).tolist() == list(range(10))
