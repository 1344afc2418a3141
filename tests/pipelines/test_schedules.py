"""Schedules: closed forms, inverses, and agreement with the estimate diffusers' own schedulers compute."""

from __future__ import annotations

import diffusers
import pytest
import torch
from tests.conftest import SCHEDULERS, make_scheduler

from saferedir.errors import UnsupportedPipelineError
from saferedir.pipelines.schedules import (
    check_scheduler,
    coefficients,
    from_x0,
    prediction_type,
    scheduler_kind,
    step_indices,
    to_epsilon,
    to_x0,
    training_time,
)

KINDS = ("epsilon", "v_prediction", "sample", "flow")


def randn(seed: int) -> torch.Tensor:
    return torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("alpha", "sigma"), [(0.8, 0.6), (1.0, 2.5), (0.3, 0.7)])
def test_output_and_x0_are_inverses_and_mean_the_same_noise(kind: str, alpha: float, sigma: float) -> None:
    a, s = torch.tensor(alpha).double(), torch.tensor(sigma).double()
    x0, eps = randn(0).double(), randn(1).double()
    x_t = a * x0 + s * eps
    output = from_x0(kind, x0, x_t, a, s)
    torch.testing.assert_close(to_x0(kind, output, x_t, a, s), x0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(to_epsilon(x0, x_t, a, s), eps, rtol=1e-10, atol=1e-10)
    if kind == "epsilon":
        torch.testing.assert_close(output, eps, rtol=1e-10, atol=1e-10)
    if kind == "flow" and alpha + sigma == 1:
        torch.testing.assert_close(output, eps - x0, rtol=1e-10, atol=1e-10)
    if kind == "v_prediction":  # v = (alpha eps - sigma x0) / n
        torch.testing.assert_close(output, (a * eps - s * x0) / (a**2 + s**2).sqrt(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if "flow" not in name])
def test_x0_is_what_the_scheduler_itself_computes(name: str, kind: str) -> None:
    scheduler = make_scheduler(name, prediction_type=kind)
    scheduler.set_timesteps(6)
    x_t = randn(0) * scheduler.init_noise_sigma
    compared = 0
    for number, timestep in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x_t, timestep)
        model_output = randn(number + 1)
        alpha, sigma = coefficients(scheduler, timestep)
        ours = to_x0(kind, model_output, x_t, alpha, sigma)
        theirs = None
        if scheduler_kind(scheduler) == "solver" and scheduler.config.get("predict_x0", True) and name != "deis":
            if scheduler.step_index is None:
                scheduler._init_step_index(timestep)
            theirs = scheduler.convert_model_output(model_output, sample=x_t)
        output = scheduler.step(model_output, timestep, x_t)
        if theirs is None:
            theirs = getattr(output, "pred_original_sample", None)
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
            compared += 1
        x_t = output.prev_sample
    assert compared == len(scheduler.timesteps) or name in ("pndm", "pndm-prk", "lcm", "tcd", "deis")


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"])
def test_flow_matching_walks_the_straight_line(name: str) -> None:
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(4)
    x0, eps = randn(0), randn(1)
    x_t = eps * scheduler.sigmas[0] + (1 - scheduler.sigmas[0]) * x0
    for timestep in scheduler.timesteps:
        alpha, sigma = coefficients(scheduler, timestep)
        torch.testing.assert_close(alpha + sigma, torch.tensor(1.0).double())
        assert training_time(scheduler, timestep) == pytest.approx(1000 * float(sigma), abs=1e-2)
        torch.testing.assert_close(to_x0("flow", eps - x0, x_t, alpha, sigma), x0, rtol=1e-4, atol=1e-4)
        x_t = scheduler.step(eps - x0, timestep, x_t).prev_sample
    torch.testing.assert_close(x_t, x0, rtol=1e-4, atol=1e-4)


def test_variance_preserving_coefficients_are_the_cumulative_product() -> None:
    scheduler = make_scheduler("ddim")
    alpha, sigma = coefficients(scheduler, 500)
    torch.testing.assert_close(alpha**2, torch.cumprod(1 - scheduler.betas.double(), 0)[500], rtol=1e-5, atol=0)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.tensor(1.0).double())


def test_steps_are_counted_by_timestep_change() -> None:
    assert step_indices((981.0, 961.0, 961.0, 941.0)) == (0, 1, 1, 2)
    assert step_indices(()) == ()


def test_unknown_schedulers_and_prediction_types_are_named() -> None:
    with pytest.raises(UnsupportedPipelineError, match="ScoreSdeVeScheduler"):
        scheduler_kind(diffusers.ScoreSdeVeScheduler())
    odd = make_scheduler("ddim", prediction_type="sample")
    assert prediction_type(odd) == "sample"
    with pytest.raises(UnsupportedPipelineError, match="oddity"):
        prediction_type(make_scheduler("dpm++", prediction_type="oddity"))
    with pytest.raises(UnsupportedPipelineError, match="variance"):
        check_scheduler(make_scheduler("ddpm", variance_type="learned_range"))
    for convert in (to_x0, from_x0):
        with pytest.raises(UnsupportedPipelineError, match="oddity"):
            convert("oddity", randn(0), randn(1), torch.tensor(1.0), torch.tensor(1.0))
