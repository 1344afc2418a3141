"""Sana-Sprint: TrigFlow latents, around a denoiser whose output its pipeline turns before the scheduler's step."""

from __future__ import annotations

import diffusers
import pytest
import torch
from tests.contract.guards import PROMPT, Watcher, shared_pipeline
from tests.tiny_pipelines import run
from tests.tiny_variants import VARIANTS

import saferedir as sr
from saferedir.pipelines.schedules import (
    check_scheduler,
    coefficients,
    from_x0,
    prediction_type,
    scaled_for_model,
    to_x0,
    training_time,
)


@pytest.mark.parametrize("data", [0.5, 1.0])
def test_estimates_are_the_schedulers_own_and_their_inverse_is_exact(data: float) -> None:
    scheduler = diffusers.SCMScheduler(sigma_data=data)
    scheduler.set_timesteps(3, max_timesteps=1.57, intermediate_timesteps=None)
    check_scheduler(scheduler)
    kind = prediction_type(scheduler)
    generator = torch.Generator().manual_seed(0)
    latents = data * torch.randn(2, 4, 4, 4, generator=generator)
    for time in scheduler.timesteps[:-1]:
        output = torch.randn(latents.shape, generator=generator)
        frame = coefficients(scheduler, time).like(latents)
        x0 = to_x0(kind, output, latents, *frame)
        torch.testing.assert_close(from_x0(kind, x0, latents, *frame), output, rtol=1e-4, atol=1e-4)
        stepped = scheduler.step(output, time, latents, generator=generator)
        torch.testing.assert_close(x0, stepped.pred_original_sample)
        scaled = scaled_for_model(scheduler, coefficients(scheduler, time))
        s = training_time(scheduler, float(time)) / 1000
        assert float(scaled.sigma) == pytest.approx(s) and float(scaled.alpha) == pytest.approx((1 - s) / data)
        latents = stepped.prev_sample


def test_guards_are_given_the_prediction_that_the_scheduler_is_given() -> None:
    case, pipe, watcher = VARIANTS["sana-sprint"], shared_pipeline("sana-sprint"), Watcher()
    with sr.attach(pipe, watcher):
        run(case, pipe, PROMPT)
    assert len(watcher.steps) == 3
    for step in watcher.steps:
        assert step.pred is not None and step.pred_cond is not None and step.pred_uncond is None
        torch.testing.assert_close(step.pred_cond, step.pred, rtol=1e-4, atol=1e-5)
        scale = step.model_input.flatten().dot(step.x_t.flatten()) / step.x_t.square().sum()
        torch.testing.assert_close(step.model_input, scale * step.x_t, rtol=1e-4, atol=1e-5)
