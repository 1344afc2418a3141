"""Re-noising at the same t with a stale prediction, as a difference that is added once the sampler has stepped.

Implements docs/methods/safe_denoiser.md (10) and (11).
The released code replaces the latents x by x' = alpha x0' + sigma n and then steps with the prediction m made for x. A guard
cannot change the x that a scheduler is given, but a deterministic first-order step is affine in (x, m): it goes to
p x0 + q eps with two numbers p, q that depend on the schedule only. They are read off the step the sampler has just taken,
so that  step(x', m) = step(x, m) + A (x' - x)  with A = d step/dx at fixed m. A step that is not of that form (multistep,
stochastic, clipped) leaves a residual and is refused. Pure functions; imports torch, guard and errors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saferedir.errors import GuardError
from saferedir.guards.base import Run, Step
from saferedir.utils.device import refuse

#: largest relative residual of an affine step in float32
TOLERANCE = 2e-5


def require_single_evaluations(run: Run) -> None:
    """Raise for runs in which re-noising has no exact meaning, as far as is known before the first step."""
    kinds = ("epsilon", "v_prediction", "sample", "flow")
    if run.num_evaluations != run.num_steps or run.prediction_type not in kinds or run.dtype != torch.float32:
        raise GuardError(
            "re-noising needs float32 latents and a first-order deterministic sampler with one evaluation a step (DDIM, Euler, "
            f"flow-matching Euler); this run has {run.num_evaluations} evaluations in {run.num_steps} steps, prediction type "
            f"{run.prediction_type}, {run.dtype}."
        )


def derivative(step: Step, stepped: Tensor) -> Tensor:
    """A (B, 1, ...): how far `stepped` moves with x at a fixed prediction; raises where the step is not affine."""
    assert step.x0 is not None
    x0, x_t = step.x0.detach().double(), step.x_t.detach().double()
    alpha, sigma = step.alpha.double(), step.sigma.double()
    eps = (x_t - alpha * x0) / sigma
    after = stepped.detach().double()
    basis = torch.stack([x0.flatten(1), eps.flatten(1)], dim=2)  # (B, D, 2), nearly orthogonal
    target = after.flatten(1)[:, :, None]
    solution = torch.linalg.lstsq(basis, target).solution
    residual = torch.linalg.vector_norm(basis @ solution - target, dim=1) / torch.linalg.vector_norm(target, dim=1)
    refuse(
        residual > TOLERANCE,
        lambda: GuardError(
            f"re-noising is exact for first-order deterministic samplers only, and step {step.index} was not one (residual "
            f"{float(residual.max()):.1e}); use DDIM with eta=0, Euler or flow-matching Euler without clipping, attach guards "
            "that change the latents after the step behind this one, or use renoise='none'."
        ),
    )
    p, q = (solution[:, i].view(alpha.shape) for i in (0, 1))
    kind = step.run.prediction_type
    if kind == "epsilon":
        slope = p / alpha
    elif kind == "sample":
        slope = q / sigma
    elif kind == "flow":
        slope = p + q
    else:
        slope = (alpha * p + sigma * q) / (alpha**2 + sigma**2)
    result: Tensor = slope.to(stepped.dtype)
    return result
