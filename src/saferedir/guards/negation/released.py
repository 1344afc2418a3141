"""The released Safe Denoiser loop, for `mode="faithful"`: Laplace kernel, pure subtraction, re-noising, stale prediction.

Implements docs/methods/safe_denoiser.md (12) to (14).
Pure functions; imports `bank`, `engine`, `kernels`, `state`. References are channel-normalised, x0 is not (but is in the flow
variant).
Not reproduced: the ungated variant that returns the unsafe mean itself in place of x0'. The extra scheduler call that yields
x0 there becomes a table look-up; the variance noise it samples is sampled here too, from the guard's own generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from saferedir.guards.base import Step
from saferedir.guards.negation.bank import NegationSet
from saferedir.guards.negation.engine import attend_all
from saferedir.guards.negation.kernels import laplace_x0
from saferedir.guards.negation.state import NegationState
from saferedir.utils.broadcast import per_sample

#: the released code adds this to its kernel sum, which makes the sum a gate
EPSILON = 1e-8
#: noise of Stable Diffusion's lowest timestep, at which the released code finds its threshold
LOWEST_SIGMA = 0.0292
WIDTH = 3.15


class Settings(Protocol):
    """What is read of SafeDenoiserConfig."""

    @property
    def scale(self) -> float: ...
    @property
    def width(self) -> float | None: ...
    @property
    def margin(self) -> float: ...
    @property
    def seed(self) -> int: ...


class Released(NamedTuple):
    """pending: difference to add to x, or the step to take instead; is_open, kernel_sum, shift (B,)."""

    pending: Tensor | Callable[[Step], Tensor]
    is_open: Tensor
    kernel_sum: Tensor
    shift: Tensor


def channel_normalised(latents: Tensor) -> Tensor:
    """(M, C, ...) with each spatial position divided by its norm over channels, as the released code keeps references."""
    norms: Tensor = torch.linalg.vector_norm(latents, dim=1, keepdim=True)
    return latents / norms.clamp(min=1e-12)


def released_estimate(x0: Tensor, references: NegationSet, scale: float, width: float) -> tuple[Tensor, Tensor]:
    """(x0 - scale E_u, S) of the released code for x0 (B, D): S = sum_n k_n + 1e-8, E_u = sum_n k_n r_n / S."""
    mean, kernel_sum = attend_all(laplace_x0(x0, references.references.centre, width), references.references, EPSILON)
    return x0 - scale * mean, kernel_sum


def released_step(step: Step, x0: Tensor, state: NegationState, config: Settings, threshold: float) -> Released:
    """One step in the window. Noise is sampled twice a row and step (flow: once), whether the gate opens or not."""
    width = WIDTH if config.width is None else config.width
    flat = x0.flatten(1)
    if step.run.prediction_type == "flow":
        measured = channel_normalised(x0).flatten(1)
        moved, kernel_sum = released_estimate(measured, state.negation, config.scale, width)
        edited = (flat + (moved - measured)).view_as(x0)
        is_open = torch.ones(len(x0), dtype=torch.bool, device=x0.device)
        noise = state.sample_noise(step, config.seed)

        def take_step(now: Step) -> Tensor:
            return released_flow_step(now, edited, noise).to(step.x_t.dtype)

        pending: Tensor | Callable[[Step], Tensor] = take_step
    else:
        moved, kernel_sum = released_estimate(flat, state.negation, config.scale, width)
        edited = moved.view_as(x0)
        is_open = kernel_sum > threshold - config.margin
        state.sample_noise(step, config.seed)
        noised = step.alpha * edited + step.sigma * state.sample_noise(step, config.seed)
        pending = torch.where(per_sample(is_open, x0), noised - step.x_t.float(), 0.0)
    moved_by = torch.linalg.vector_norm((edited.flatten(1) - flat).detach(), dim=1)
    return Released(pending, is_open, kernel_sum, moved_by / torch.linalg.vector_norm(flat.detach(), dim=1))


def released_threshold(references: NegationSet, width: float | None) -> float:
    """Least kernel sum of the references, noised to the lowest t with seed 42."""
    rows = references.latents().flatten(1)
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(42)).to(rows)
    noised = math.sqrt(1 - LOWEST_SIGMA**2) * rows + LOWEST_SIGMA * noise
    return float(released_estimate(noised, references, 0.0, WIDTH if width is None else width)[1].min())


def released_flow_step(step: Step, x0: Tensor, noise: Tensor) -> Tensor:
    """The released SD3 loop's own step from the edited x0: (1 - s) x0 + s (sqrt(s) eps + sqrt(1 - s) n), s the next sigma."""
    assert step.x0 is not None
    times = step.run.timesteps
    s = times[step.evaluation + 1] / 1000 if step.evaluation + 1 < len(times) else 0.0
    eps = (step.x_t.float() - step.alpha * step.x0) / step.sigma
    return (1 - s) * x0 + s * (math.sqrt(s) * eps + math.sqrt(1 - s) * noise)
