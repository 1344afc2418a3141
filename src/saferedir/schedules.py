"""Noise schedules: alpha_t and sigma_t of every supported scheduler, and model output <-> x0 <-> epsilon.

Pure functions that read a diffusers scheduler and never change it. Imports torch and `errors` only; used by
`session`.

Every scheduler keeps latents in a frame where ``x_t = alpha * x0 + sigma * eps``:

=========================  ==========================================  ===========================
kind                       alpha, sigma                                schedulers
=========================  ==========================================  ===========================
variance preserving (vp)   sqrt(abar_t), sqrt(1 - abar_t)              DDIM, DDPM, PNDM, LCM, TCD
variance exploding (ve)    1, sigma                                    Euler, Heun, LMS, KDPM2, SDE
log-SNR solvers (solver)   `_sigma_to_alpha_sigma_t(sigma)`            DPM++, DEIS, UniPC, SA
flow matching (flow)       1 - s, s                                    FlowMatch Euler, Heun, LCM
=========================  ==========================================  ===========================

and, with n = sqrt(alpha^2 + sigma^2), a model output m means (design section 5):
epsilon x0 = (x - sigma m) / alpha; sample x0 = m; flow x0 = x - sigma m; v x0 = (alpha/n)(x/n) - (sigma/n) m.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferedir.errors import UnsupportedPipelineError

#: scheduler class name -> kind; subclasses inherit the row of the first base class listed here
SCHEDULER_KINDS: dict[str, str] = {
    "DDIMScheduler": "vp",
    "DDIMParallelScheduler": "vp",
    "DDPMScheduler": "vp",
    "DDPMParallelScheduler": "vp",
    "PNDMScheduler": "vp",
    "LCMScheduler": "vp",
    "TCDScheduler": "vp",
    "LMSDiscreteScheduler": "ve",
    "EulerDiscreteScheduler": "ve",
    "EulerAncestralDiscreteScheduler": "ve",
    "HeunDiscreteScheduler": "ve",
    "KDPM2DiscreteScheduler": "ve",
    "KDPM2AncestralDiscreteScheduler": "ve",
    "DPMSolverSDEScheduler": "ve",
    "DPMSolverMultistepScheduler": "solver",
    "DPMSolverSinglestepScheduler": "solver",
    "DEISMultistepScheduler": "solver",
    "UniPCMultistepScheduler": "solver",
    "SASolverScheduler": "solver",
    "FlowMatchEulerDiscreteScheduler": "flow",
    "FlowMatchHeunDiscreteScheduler": "flow",
    "FlowMatchLCMScheduler": "flow",
}

#: diffusers' `prediction_type` -> our name for it
PREDICTION_TYPES: dict[str, str] = {
    "epsilon": "epsilon",
    "v_prediction": "v_prediction",
    "sample": "sample",
    "original_sample": "sample",
    "flow_prediction": "flow",
}


class Coefficients(NamedTuple):
    """alpha and sigma of one moment: float32 tensors of no dimension, or (B, 1, ...)."""

    alpha: Tensor
    sigma: Tensor

    def like(self, latents: Tensor) -> Coefficients:
        """The same numbers as (B, 1, ...) on the device of `latents` (B, ...)."""
        shape = (latents.shape[0],) + (1,) * (latents.ndim - 1)
        return Coefficients(self.alpha.to(latents.device).expand(shape), self.sigma.to(latents.device).expand(shape))

    def normalised(self) -> Coefficients:
        """Divided by sqrt(alpha^2 + sigma^2): the frame of the scaled model input of VE schedulers."""
        norm = (self.alpha**2 + self.sigma**2).sqrt()
        return Coefficients(self.alpha / norm, self.sigma / norm)


def scheduler_kind(scheduler: Any) -> str:
    """ "vp", "ve", "solver" or "flow"; raises UnsupportedPipelineError for anything else."""
    for base in type(scheduler).__mro__:
        if base.__name__ in SCHEDULER_KINDS:
            return SCHEDULER_KINDS[base.__name__]
    raise UnsupportedPipelineError(
        f"scheduler {type(scheduler).__name__} is not supported; use one of {', '.join(SCHEDULER_KINDS)}, "
        "or add its row to SCHEDULER_KINDS in saferedir/schedules.py."
    )


def prediction_type(scheduler: Any) -> str:
    """ "epsilon", "v_prediction", "sample" or "flow": what the denoiser's output means to this scheduler."""
    if scheduler_kind(scheduler) == "flow":
        return "flow"
    name = scheduler.config.get("prediction_type", "epsilon")
    if name not in PREDICTION_TYPES:
        raise UnsupportedPipelineError(
            f"prediction type {name!r} of {type(scheduler).__name__} is not supported; "
            f"expected one of {', '.join(PREDICTION_TYPES)}."
        )
    return PREDICTION_TYPES[name]


def check_scheduler(scheduler: Any) -> None:
    """Raise UnsupportedPipelineError unless every function of this file can serve `scheduler`."""
    prediction_type(scheduler)
    if str(scheduler.config.get("variance_type", "")).startswith("learned"):
        raise UnsupportedPipelineError(
            f"{type(scheduler).__name__} with variance_type={scheduler.config.variance_type!r} predicts a "
            f"variance "
            "next to the noise, which is not supported; use variance_type='fixed_small'."
        )


def coefficients(scheduler: Any, timestep: Tensor | float) -> Coefficients:
    """alpha and sigma of the latents the denoiser is about to see, or has just seen, at `timestep`.

    Valid between `scale_model_input` and the end of `scheduler.step`'s preamble, that is: while the
    scheduler still stands at this step. `timestep` is an element of `scheduler.timesteps`.
    """
    kind = scheduler_kind(scheduler)
    if kind == "vp":
        alphas_cumprod: Tensor = scheduler.alphas_cumprod
        abar = alphas_cumprod[int(timestep)].float()
        return Coefficients(abar.sqrt(), (1 - abar).sqrt())
    sigma = _current_sigma(scheduler, timestep).float()
    if kind == "ve":
        return Coefficients(torch.ones_like(sigma), sigma)
    if kind == "flow":
        return Coefficients(1 - sigma, sigma)
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigma)
    return Coefficients(alpha, sigma)


def _current_sigma(scheduler: Any, timestep: Tensor | float) -> Tensor:
    """sigma (no dimension) at the scheduler's present position, second evaluations included."""
    index = scheduler.step_index
    if index is None:  # true before the first step of solvers and flow matching
        begin = scheduler.begin_index
        index = scheduler.index_for_timestep(timestep) if begin is None else begin
    sigmas: Tensor = scheduler.sigmas
    if getattr(scheduler, "state_in_first_order", True):
        return sigmas[index]
    # second evaluation of a two-stage step; Heun repeats each sigma, so sigmas[index] is already the right
    # one
    name = type(scheduler).__name__
    if name == "KDPM2AncestralDiscreteScheduler":
        interpolated: Tensor = scheduler.sigmas_interpol
        return interpolated[index - 1]
    if name == "KDPM2DiscreteScheduler":
        interpolated = scheduler.sigmas_interpol
        return interpolated[index]
    if name == "DPMSolverSDEScheduler":
        return torch.as_tensor(scheduler.mid_point_sigma)
    return sigmas[index]


def training_time(scheduler: Any, timestep: Tensor | float) -> float:
    """`timestep` on the training scale 0..1000 shared by every family (flow models: 1000 sigma)."""
    return float(timestep) * 1000.0 / float(scheduler.config.get("num_train_timesteps", 1000))


def to_x0(kind: str, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Denoised estimate x0 (B, ...) from a model output (B, ...) of prediction type `kind`."""
    if kind == "epsilon":
        return (x_t - sigma * output) / alpha
    if kind == "sample":
        return output
    if kind == "flow":
        return x_t - sigma * output
    if kind == "v_prediction":
        n = (alpha**2 + sigma**2).sqrt()
        return (alpha / n) * (x_t / n) - (sigma / n) * output
    raise UnsupportedPipelineError(f"prediction type {kind!r} is not supported; see schedules.PREDICTION_TYPES.")


def from_x0(kind: str, x0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Inverse of `to_x0`: the model output that means `x0`. Needs sigma > 0 (except for "sample")."""
    if kind == "epsilon":
        return to_epsilon(x0, x_t, alpha, sigma)
    if kind == "sample":
        return x0
    if kind == "flow":
        return (x_t - x0) / sigma
    if kind == "v_prediction":
        n = (alpha**2 + sigma**2).sqrt()
        return ((alpha / n) * (x_t / n) - x0) * (n / sigma)
    raise UnsupportedPipelineError(f"prediction type {kind!r} is not supported; see schedules.PREDICTION_TYPES.")


def to_epsilon(x0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noise that, with `x0`, makes `x_t`: (x_t - alpha x0) / sigma."""
    return (x_t - alpha * x0) / sigma


def evaluation_timesteps(scheduler: Any) -> tuple[float, ...]:
    """The timestep of every denoiser evaluation of the coming run, in order, repeats included."""
    begin = getattr(scheduler, "begin_index", None) or 0
    values = scheduler.timesteps[begin:].tolist()
    return tuple(float(value) for value in values)


def step_indices(timesteps: tuple[float, ...]) -> tuple[int, ...]:
    """0-based step of each evaluation: a step begins where the timestep changes (spec section 6.1).

    >>> step_indices((981.0, 961.0, 961.0, 941.0))
    (0, 1, 1, 2)
    """
    indices: list[int] = []
    for position, value in enumerate(timesteps):
        if position == 0:
            indices.append(0)
        else:
            indices.append(indices[-1] + (value != timesteps[position - 1]))
    return tuple(indices)
