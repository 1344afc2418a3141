"""Noise schedules: alpha_t and sigma_t of every supported scheduler, and model output <-> x0 <-> epsilon.

Pure functions that read a diffusers scheduler and never change it.

Every scheduler keeps latents in a frame where ``x_t = alpha * x0 + sigma * eps``:

========================  ================================  ==========================  =======================
kind                      alpha, sigma                      schedulers                  model input
========================  ================================  ==========================  =======================
variance preserving (vp)  sqrt(abar_t), sqrt(1 - abar_t)    DDIM, DDPM, PNDM, LCM, TCD  x
variance exploding (ve)   1, sigma                          Euler, Heun, LMS, KDPM2     x / sqrt(1 + sigma^2)
log-SNR solvers (solver)  `_sigma_to_alpha_sigma_t(sigma)`  DPM++, DEIS, UniPC, SA      x
flow matching (flow)      1 - s, s                          FlowMatch Euler, Heun, LCM  x
EDM (edm)                 1, sigma                          EDM Euler, EDM DPM++        x / sqrt(d^2 + sigma^2)
TrigFlow (trig)           cos t, d sin t                    SCM                         x / (d (cos t + sin t))
========================  ================================  ==========================  =======================

where d = `sigma_data`, the deviation of clean latents. With n = sqrt(alpha^2 + sigma^2), a model output m means:
epsilon x0 = (x - sigma m) / alpha; sample x0 = m; flow x0 = x - sigma m;
v x0 = (alpha/n)(x/n) - (sigma/n) m; EDM, with n = sqrt(d^2 + sigma^2) (arXiv:2206.00364, Table 1):
x0 = (d/n)^2 x +- (sigma d/n) m, plus for "edm_epsilon:d", minus for "edm_v_prediction:d"; TrigFlow, "trigflow:d"
(arXiv:2410.11081, Sec. 4; arXiv:2503.09641): x0 = alpha x - (sigma/d) m.

Refused: inverse and discrete-token schedulers, CogVideoX DPM++ (another `step`), and those of other families.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferedir.errors import UnsupportedPipelineError
from saferedir.utils.host_copies import on_host, read_once

#: scheduler class name -> kind; subclasses inherit the row of the first base class listed here
SCHEDULER_KINDS: dict[str, str] = {
    "DDIMScheduler": "vp",
    "DDIMParallelScheduler": "vp",
    "DDPMScheduler": "vp",
    "DDPMParallelScheduler": "vp",
    "PNDMScheduler": "vp",
    "LCMScheduler": "vp",
    "TCDScheduler": "vp",
    "CogVideoXDDIMScheduler": "vp",
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
    "EDMEulerScheduler": "edm",
    "EDMDPMSolverMultistepScheduler": "edm",
    "SCMScheduler": "trig",
}

#: two-stage schedulers whose second evaluation has a timestep of its own
MIDPOINT_SCHEDULERS = ("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler")

#: schedulers that may evaluate one timestep more than once
REPEATING_SCHEDULERS = ("HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "PNDMScheduler")

#: diffusers' `prediction_type` -> our name for it
PREDICTION_TYPES: dict[str, str] = {
    "epsilon": "epsilon",
    "v_prediction": "v_prediction",
    "sample": "sample",
    "original_sample": "sample",
    "flow_prediction": "flow",
}


#: attributes of a scheduler that its runs are read from
_SCHEDULE = ("timesteps", "sigmas", "sigmas_interpol", "alphas_cumprod")


class Coefficients(NamedTuple):
    """alpha and sigma of one moment: float64 tensors of no dimension on the CPU, or float32 (B, 1, ...)."""

    alpha: Tensor
    sigma: Tensor

    def like(self, latents: Tensor) -> Coefficients:
        """alpha and sigma in float32 as (B, 1, ...) on the device of `latents` (B, ...)."""
        shape = (latents.shape[0],) + (1,) * (latents.ndim - 1)
        if latents.device.type == "cpu":
            alpha, sigma = self.alpha.float().expand(shape), self.sigma.float().expand(shape)
        else:  # filled there: a copy from the host would wait
            alpha, sigma = (
                torch.full((), number, dtype=torch.float32, device=latents.device).expand(shape)
                for number in self.numbers
            )
        return Coefficients(alpha, sigma)

    @property
    def numbers(self) -> tuple[float, float]:
        """alpha and sigma as numbers, rounded to float32; of one moment, on the CPU."""
        return float(self.alpha.float()), float(self.sigma.float())

    def normalised(self, data: float = 1.0) -> Coefficients:
        """Divided by sqrt(data^2 alpha^2 + sigma^2): the frame of the scaled input of VE and EDM models."""
        norm = ((data * self.alpha) ** 2 + self.sigma**2).sqrt()
        return Coefficients(self.alpha / norm, self.sigma / norm)


def scheduler_kind(scheduler: Any) -> str:
    """ "vp", "ve", "solver", "flow", "edm" or "trig"; raises UnsupportedPipelineError for anything else."""
    name = _known_name(scheduler)
    if name is None:
        raise UnsupportedPipelineError(
            f"scheduler {type(scheduler).__name__} is not supported; use one of {', '.join(SCHEDULER_KINDS)}, "
            "or add its row to SCHEDULER_KINDS in saferedir/pipelines/schedules.py."
        )
    return SCHEDULER_KINDS[name]


def _known_name(scheduler: Any) -> str | None:
    """The class name, of the scheduler's own or its first listed base, in SCHEDULER_KINDS."""
    for base in type(scheduler).__mro__:
        if base.__name__ in SCHEDULER_KINDS:
            return base.__name__
    return None


def prediction_type(scheduler: Any) -> str:
    """What the denoiser's output means to this scheduler, as `to_x0` takes it.

    "epsilon", "v_prediction", "sample", "flow", and for EDM schedulers, whose meaning depends on sigma_data,
    for example "edm_epsilon:0.5" or "edm_v_prediction:1.0".
    """
    kind = scheduler_kind(scheduler)
    if kind == "flow":
        return "flow"
    name = scheduler.config.get("prediction_type", "epsilon")
    if kind == "trig":
        return f"trigflow:{float(scheduler.config.sigma_data)!r}"
    expected = ("epsilon", "v_prediction") if kind == "edm" else tuple(PREDICTION_TYPES)
    if name not in expected:
        raise UnsupportedPipelineError(
            f"prediction type {name!r} of {type(scheduler).__name__} is not supported; "
            f"expected one of {', '.join(expected)}."
        )
    return f"edm_{name}:{float(scheduler.config.sigma_data)!r}" if kind == "edm" else PREDICTION_TYPES[name]


def check_scheduler(scheduler: Any) -> None:
    """Raise UnsupportedPipelineError unless every function of this file can serve `scheduler`."""
    kind, meaning, config = scheduler_kind(scheduler), prediction_type(scheduler), scheduler.config
    has_flow_sigmas = kind == "flow" or bool(config.get("use_flow_sigmas", False))
    problem = None
    if str(config.get("variance_type", "")).startswith("learned"):
        problem = (
            f"variance_type={config.variance_type!r} predicts a variance next to the noise; "
            "use variance_type='fixed_small'"
        )
    elif config.get("invert_sigmas", False):
        problem = "invert_sigmas=True counts noise backwards (Mochi only); use invert_sigmas=False"
    elif _known_name(scheduler) == "CogVideoXDDIMScheduler" and config.timestep_spacing == "linspace":
        problem = "a step of timestep_spacing='linspace' does not end at the noise of the next one; use 'trailing' or 'leading'"
    elif meaning == "flow" and not has_flow_sigmas:
        problem = "prediction_type='flow_prediction' needs flow sigmas; set use_flow_sigmas=True"
    elif meaning == "v_prediction" and has_flow_sigmas:
        problem = "prediction_type='v_prediction' is not defined on flow sigmas; set use_flow_sigmas=False"
    elif kind == "solver" and has_flow_sigmas:
        # These replace the flow sigmas by sigmas above 1; only UniPC maps Karras' back to 0..1.
        for option in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"):
            is_mapped = option == "use_karras_sigmas" and _known_name(scheduler) == "UniPCMultistepScheduler"
            if config.get(option, False) and not is_mapped:
                problem = f"{option}=True overrides use_flow_sigmas=True; set one of the two to False"
    if problem is not None:
        raise UnsupportedPipelineError(f"{type(scheduler).__name__} is not supported as configured: {problem}.")


def least_steps(scheduler: Any) -> int:
    """Fewest steps that the scheduler has timesteps for: under `shift_terminal` one step has none, for its time is 0 / 0."""
    return 2 if scheduler.config.get("shift_terminal") else 1


def read_schedule(scheduler: Any, *others: Tensor) -> list[Tensor]:
    """Copy a scheduler's tensors to the CPU, all together, once for each run; `others` come along and are returned."""
    tensors = [value for name in _SCHEDULE if isinstance(value := getattr(scheduler, name, None), Tensor)]
    return read_once(tensors, *others)


def coefficients(scheduler: Any, timestep: Tensor | float) -> Coefficients:
    """alpha and sigma of the latents that `scheduler.step` is about to be given at `timestep`.

    Valid from `set_timesteps` to the end of `scheduler.step`'s preamble, that is: while the scheduler still
    stands at this step. `timestep` is an element of `scheduler.timesteps`.
    """
    kind = scheduler_kind(scheduler)
    if kind == "vp":
        alphas_cumprod: Tensor = scheduler.alphas_cumprod
        abar = on_host(alphas_cumprod)[int(timestep)].double()
        return Coefficients(abar.sqrt(), (1 - abar).sqrt())
    if kind == "trig":
        angle = torch.as_tensor(timestep).flatten()[0].cpu().double()
        return Coefficients(angle.cos(), float(scheduler.config.sigma_data) * angle.sin())
    sigma = _current_sigma(scheduler, timestep).cpu().double()
    if kind in ("ve", "edm"):
        return Coefficients(torch.ones_like(sigma), sigma)
    if kind == "flow":
        return Coefficients(1 - sigma, sigma)
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigma)
    return Coefficients(alpha, sigma)


def model_input_coefficients(scheduler: Any, timestep: Tensor | float) -> Coefficients:
    """alpha and sigma of what `scale_model_input` makes of those latents: the denoiser's input."""
    return scaled_for_model(scheduler, coefficients(scheduler, timestep))


def scaled_for_model(scheduler: Any, frame: Coefficients) -> Coefficients:
    """alpha and sigma of the denoiser's input from those of the latents; `frame` itself where the input is the latents."""
    kind = scheduler_kind(scheduler)
    if kind == "ve":
        return frame.normalised()
    if kind == "edm":
        return frame.normalised(float(scheduler.config.sigma_data))
    if kind == "trig":
        data = float(scheduler.config.sigma_data)
        size = data * frame.alpha + frame.sigma
        return Coefficients(frame.alpha / size, frame.sigma / size)
    return frame


def _current_sigma(scheduler: Any, timestep: Tensor | float) -> Tensor:
    """sigma (no dimension) at the scheduler's present position, second evaluations included."""
    index = scheduler.step_index
    if index is None:  # true before the first step of solvers and flow matching
        begin = scheduler.begin_index
        if begin is None:
            index = scheduler.index_for_timestep(timestep, on_host(scheduler.timesteps))
        else:
            index = begin
    sigmas: Tensor = on_host(scheduler.sigmas)
    name = _known_name(scheduler)
    if getattr(scheduler, "state_in_first_order", True) or name not in MIDPOINT_SCHEDULERS:
        return sigmas[index]  # Heun repeats each sigma, so this is right for its second evaluation too
    if name == "DPMSolverSDEScheduler":
        return torch.as_tensor(scheduler.mid_point_sigma)
    interpolated: Tensor = on_host(scheduler.sigmas_interpol)
    return interpolated[index - 1 if name == "KDPM2AncestralDiscreteScheduler" else index]


def training_time(scheduler: Any, timestep: Tensor | float) -> float:
    """`timestep` on the training scale 0..1000 shared by every family (flow models: 1000 sigma); see `training_times`."""
    return training_times(scheduler, (float(timestep),))[0]


def training_times(scheduler: Any, timesteps: Sequence[float]) -> tuple[float, ...]:
    """Each timestep on the training scale 0..1000 shared by every family (flow models: 1000 sigma).

    Where timesteps are log(sigma)/4 (EDM, and Euler's "continuous" v), it is that of the flow with the same
    ratio of noise to data: 1000 sigma / (sigma + sigma_data).
    """
    config, kind = scheduler.config, scheduler_kind(scheduler)
    if kind == "trig":  # that of the flow with the same ratio of noise to data of deviation 1
        return tuple([1000.0 * math.sin(t) / (math.sin(t) + math.cos(t)) for t in timesteps])
    if kind == "edm" or (
        config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction"
    ):
        data, sigmas = float(config.get("sigma_data", 1.0)), [math.exp(4.0 * t) for t in timesteps]
        return tuple([1000.0 * sigma / (sigma + data) for sigma in sigmas])
    scale = float(config.get("num_train_timesteps", 1000))
    return tuple([t * 1000.0 / scale for t in timesteps])


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
    if kind.startswith(("edm_epsilon:", "edm_v_prediction:")):
        c_skip, c_out = _edm_preconditioning(kind, sigma)
        return c_skip * x_t + c_out * output
    if kind.startswith("trigflow:"):
        return alpha * x_t - sigma / _data(kind) * output
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
    if kind.startswith(("edm_epsilon:", "edm_v_prediction:")):
        c_skip, c_out = _edm_preconditioning(kind, sigma)
        return (x0 - c_skip * x_t) / c_out
    if kind.startswith("trigflow:"):
        return (alpha * x_t - x0) * (_data(kind) / sigma)
    raise UnsupportedPipelineError(f"prediction type {kind!r} is not supported; see schedules.PREDICTION_TYPES.")


def trigflow_output(kind: str, output: Tensor, model_input: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What Sana-Sprint hands to its scheduler, from its denoiser's output (B, ...) at its scaled `model_input`.

    The denoiser is one of flow matching at s = sin t / (sin t + cos t); alpha and sigma are the latents' (`coefficients`).
    """
    d = _data(kind)
    s = sigma / (sigma + d * alpha)
    turned = (1 - 2 * s) * model_input + (1 - 2 * s + 2 * s**2) * output
    return d * turned / (s**2 + (1 - s) ** 2).sqrt()


def _data(kind: str) -> float:
    """sigma_data, as `prediction_type` writes it."""
    return float(kind.partition(":")[2])


def _edm_preconditioning(kind: str, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out of arXiv:2206.00364, Table 1; `kind` as `prediction_type` names it."""
    name, _, data = kind.partition(":")
    d = float(data)
    n = (d**2 + sigma**2).sqrt()
    sign = -1.0 if name == "edm_v_prediction" else 1.0
    return (d / n) ** 2, sign * sigma * d / n


def to_epsilon(x0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noise that, with `x0`, makes `x_t`: (x_t - alpha x0) / sigma."""
    return (x_t - alpha * x0) / sigma


def evaluation_timesteps(scheduler: Any) -> tuple[float, ...]:
    """The timestep of every denoiser evaluation of the coming run, in order, repeats included."""
    begin = getattr(scheduler, "begin_index", None) or 0
    values = on_host(scheduler.timesteps)[begin:].tolist()
    return tuple(float(value) for value in values)


def evaluation_steps(scheduler: Any, timesteps: tuple[float, ...] | None = None) -> tuple[int, ...]:
    """0-based step of each denoiser evaluation of the coming run, or of the part of it with these `timesteps`.

    Karras, exponential and beta sigmas often round to the same timestep twice (DPM++ Karras with 50 steps
    does), so that only for schedulers that evaluate a timestep twice a repeat belongs to the step before.
    """
    timesteps, name = timesteps or evaluation_timesteps(scheduler), _known_name(scheduler)
    if name in REPEATING_SCHEDULERS:
        return step_indices(timesteps)
    positions = range(len(timesteps))
    return tuple([position // 2 for position in positions] if name in MIDPOINT_SCHEDULERS else positions)


def step_indices(timesteps: tuple[float, ...]) -> tuple[int, ...]:
    """0-based step of each evaluation if a step begins where the timestep changes; see `evaluation_steps`.

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
