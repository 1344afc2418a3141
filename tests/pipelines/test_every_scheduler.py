"""Every scheduler the families' pipelines accept, against oracles that share nothing with the implementation.

The oracle is a perfect model: it knows the clean latents and the noise, measures how much of each is in the
latents a scheduler holds (least squares), and answers by the textbook definition of its prediction type. Such a
model keeps every deterministic solver exactly on x_t = alpha x0 + sigma eps, second evaluations included.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from diffusers import schedulers as exported
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import BETAS
from torch import Tensor

from saferedir.errors import UnsupportedPipelineError
from saferedir.pipelines.schedules import (
    SCHEDULER_KINDS,
    Coefficients,
    check_scheduler,
    coefficients,
    evaluation_steps,
    evaluation_timesteps,
    from_x0,
    model_input_coefficients,
    prediction_type,
    scheduler_kind,
    to_epsilon,
    to_x0,
    training_time,
)

EPS, V, X = "epsilon", "v_prediction", "sample"
SPACINGS: list[dict[str, Any]] = [{"timestep_spacing": name} for name in ("leading", "trailing", "linspace")]
SIGMAS: list[dict[str, Any]] = [{f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta")]
ZERO_SNR: dict[str, Any] = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
FLOW: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
ODE: dict[str, Any] = {"tau_func": lambda t: 0}
STEPS = 10  # divides 1000, so that DDIM, DDPM and PNDM land where their next timestep says


class Case(NamedTuple):
    """One class, its options, the prediction types it takes; `step` are options of `scheduler.step`."""

    cls: str
    options: dict[str, Any] = {}  # noqa: RUF012
    predictions: tuple[str, ...] = (EPS, V, X)
    is_random: bool = False
    mu: float | None = None
    step: dict[str, Any] = {}  # noqa: RUF012


def rows(
    cls: str, options: list[dict[str, Any]], predictions: tuple[str, ...] = (EPS, V, X), **more: Any
) -> list[Case]:
    return [Case(cls, option, predictions, **more) for option in options]


ONE_FLOW = ("flow",)
CASES: list[Case] = [
    *rows("DDIMScheduler", [*SPACINGS, {"set_alpha_to_one": False}, {"beta_schedule": "squaredcos_cap_v2"}]),
    *rows("DDIMScheduler", [ZERO_SNR], (V, X)),
    *rows("DDIMScheduler", [{}], step={"eta": 1.0}, is_random=True),
    *rows("DDIMParallelScheduler", SPACINGS),
    *rows("CogVideoXDDIMScheduler", SPACINGS[:2]),
    *rows("DDPMScheduler", [*SPACINGS, {"beta_schedule": "linear"}], is_random=True),
    *rows("DDPMParallelScheduler", [{}], is_random=True),
    *rows("PNDMScheduler", [{"skip_prk_steps": True, **spacing} for spacing in SPACINGS[:2]], (EPS, V)),
    *rows("PNDMScheduler", [{"skip_prk_steps": False}], (EPS, V)),
    *rows("LCMScheduler", [{}, {"rescale_betas_zero_snr": False, "set_alpha_to_one": False}], is_random=True),
    *rows("TCDScheduler", [{}], is_random=True),
    *rows("TCDScheduler", [{}], step={"eta": 0.0}),
    *rows("LMSDiscreteScheduler", [*SPACINGS, *SIGMAS]),
    *rows("EulerDiscreteScheduler", [*SPACINGS, *SIGMAS, {"final_sigmas_type": "sigma_min"}]),
    *rows("EulerDiscreteScheduler", [ZERO_SNR, {"interpolation_type": "log_linear"}]),
    *rows("EulerDiscreteScheduler", [{"timestep_type": "continuous"}], (V,)),
    *rows("EulerAncestralDiscreteScheduler", [*SPACINGS, ZERO_SNR], (EPS, V), is_random=True),
    *rows("HeunDiscreteScheduler", [*SPACINGS, *SIGMAS]),
    *rows("KDPM2DiscreteScheduler", [*SPACINGS, *SIGMAS], (EPS, V)),
    *rows("KDPM2AncestralDiscreteScheduler", [*SPACINGS, *SIGMAS], (EPS, V), is_random=True),
    *rows("DPMSolverSDEScheduler", [*SPACINGS, SIGMAS[1]], (EPS, V), is_random=True),
    *rows("DPMSolverMultistepScheduler", [*SPACINGS, *SIGMAS, {"use_lu_lambdas": True}]),
    *rows("DPMSolverMultistepScheduler", [ZERO_SNR, {"final_sigmas_type": "sigma_min"}, {"solver_order": 3}]),
    *rows("DPMSolverMultistepScheduler", [{"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}]),
    *rows("DPMSolverMultistepScheduler", [{"algorithm_type": "sde-dpmsolver++"}], is_random=True),
    *rows("DPMSolverMultistepScheduler", [{**FLOW, "flow_shift": shift} for shift in (1.0, 3.0)], ONE_FLOW),
    *rows("DPMSolverMultistepScheduler", [{**FLOW, "use_dynamic_shifting": True}], ONE_FLOW, mu=0.9),
    *rows("DPMSolverMultistepScheduler", [{"use_flow_sigmas": True}], (EPS, X)),
    *rows("DPMSolverSinglestepScheduler", [{}, *SIGMAS, {"solver_order": 3}]),
    *rows("DPMSolverSinglestepScheduler", [{"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}]),
    *rows("DPMSolverSinglestepScheduler", [{"algorithm_type": "sde-dpmsolver++", "solver_order": 2}], is_random=True),
    *rows("DPMSolverSinglestepScheduler", [{**FLOW, "flow_shift": 3.0}], ONE_FLOW),
    *rows("DEISMultistepScheduler", [*SPACINGS, *SIGMAS]),
    *rows("DEISMultistepScheduler", [{**FLOW, "flow_shift": 3.0}], ONE_FLOW),
    *rows("UniPCMultistepScheduler", [*SPACINGS, *SIGMAS, ZERO_SNR, {"predict_x0": False}, {"solver_order": 3}]),
    *rows("UniPCMultistepScheduler", [{"final_sigmas_type": "sigma_min"}]),
    *rows("UniPCMultistepScheduler", [{**FLOW, "flow_shift": 5.0}, {**FLOW, "use_karras_sigmas": True}], ONE_FLOW),
    *rows("UniPCMultistepScheduler", [{**FLOW, "use_dynamic_shifting": True}], ONE_FLOW, mu=1.1),
    *rows("SASolverScheduler", [{**ODE, **options} for options in (*SPACINGS, *SIGMAS)]),
    *rows("SASolverScheduler", [{**ODE, "algorithm_type": "noise_prediction"}]),
    *rows("SASolverScheduler", [{}], is_random=True),
    *rows("SASolverScheduler", [{**ODE, **FLOW, "flow_shift": 3.0}], ONE_FLOW),
    *rows("FlowMatchEulerDiscreteScheduler", [{}, {"shift": 3.0}, {"shift_terminal": 0.1}, *SIGMAS], ONE_FLOW),
    *rows("FlowMatchEulerDiscreteScheduler", [{"use_dynamic_shifting": True}], ONE_FLOW, mu=1.15),
    *rows("FlowMatchEulerDiscreteScheduler", [{"stochastic_sampling": True}], ONE_FLOW, is_random=True),
    *rows("FlowMatchEulerDiscreteScheduler", [{"num_train_timesteps": 500}], ONE_FLOW),
    *rows("FlowMatchHeunDiscreteScheduler", [{}, {"shift": 3.0}], ONE_FLOW),
    *rows("FlowMatchLCMScheduler", [{}, {"shift": 3.0}], ONE_FLOW, is_random=True),
    *rows("FlowMatchLCMScheduler", [{"use_dynamic_shifting": True}], ONE_FLOW, mu=1.15, is_random=True),
    *rows("EDMEulerScheduler", [{}, {"sigma_data": 1.0, "sigma_max": 120.0}], (EPS, V)),
    *rows("EDMEulerScheduler", [{"sigma_schedule": "exponential"}, {"final_sigmas_type": "sigma_min"}], (EPS, V)),
    *rows("EDMDPMSolverMultistepScheduler", [{}, {"sigma_data": 1.0}, {"solver_order": 3}], (EPS, V)),
    *rows("EDMDPMSolverMultistepScheduler", [{"algorithm_type": "sde-dpmsolver++"}], (EPS, V), is_random=True),
]


def label(value: Any) -> str | None:
    if not isinstance(value, Case):
        return None
    given = {**value.options, **value.step} | ({} if value.mu is None else {"mu": value.mu})
    return "-".join([value.cls.removesuffix("Scheduler"), *(f"{k}={v}" for k, v in given.items() if k != "tau_func")])


#: one row a class and set of options; and one a class, set of options and prediction type
each_case = pytest.mark.parametrize("case", CASES, ids=label)
each_run = pytest.mark.parametrize(
    ("case", "prediction"), [(case, prediction) for case in CASES for prediction in case.predictions], ids=label
)


@pytest.fixture(autouse=True)
def brownian_tree(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """DPMSolverSDE without torchsde: a tree of white noise, which is all a fixed walk asks of it."""
    torch.manual_seed(0)
    name = "diffusers.schedulers.scheduling_dpmsolver_sde"
    if importlib.util.find_spec("torchsde") is None:

        class BrownianTree:
            def __init__(self, size: Any = None, dtype: Any = None, device: Any = None, **_: Any) -> None:
                self.like = torch.empty(size, dtype=dtype, device=device)

            def __call__(self, start: Tensor, end: Tensor) -> Tensor:
                return torch.randn_like(self.like) * (end - start).abs().sqrt()

        stub = types.ModuleType("torchsde")
        stub.BrownianInterval = BrownianTree  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "torchsde", stub)
    yield
    sys.modules.pop(name, None)


_BUILT: dict[str, Any] = {}


def build(case: Case, prediction: str, steps: int = STEPS) -> Any:
    """A scheduler of one case with its timesteps set, the way pipelines set them; the test's own copy of one made once."""
    key = repr((case, prediction, steps))
    if case.cls == "DPMSolverSDEScheduler" or case.options.get("tau_func"):
        return build_anew(case, prediction, steps)
    if key not in _BUILT:
        _BUILT[key] = build_anew(case, prediction, steps)
    return copy.deepcopy(_BUILT[key])


def build_anew(case: Case, prediction: str, steps: int) -> Any:
    if case.cls == "DPMSolverSDEScheduler":
        cls = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde").DPMSolverSDEScheduler
    else:
        cls = getattr(diffusers, case.cls)
    names = inspect.signature(cls).parameters
    config = {**{key: value for key, value in BETAS.items() if key in names}, **case.options}
    if "prediction_type" in names:
        config.setdefault("prediction_type", prediction)
    if "clip_sample" in names:
        config.setdefault("clip_sample", False)
    scheduler = cls(**config)
    scheduler.set_timesteps(steps, **({} if case.mu is None else {"mu": case.mu}))
    return scheduler


def noise_like(seed: int) -> Tensor:
    """Latents (2, 4, 32, 32) in float64: enough of them to tell a noise level from its neighbour."""
    return torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X0, NOISE = noise_like(0) * 0.8 + 0.1, noise_like(1)


def drifts(case: Case, prediction: str) -> bool:
    """Walks that leave the line by diffusers' own doing; their schedulers still read latents as on it."""
    is_plain_average_of_v = case.cls == "PNDMScheduler" and prediction == V
    steps_short_of_next = case.cls.startswith("DDIM") and case.options.get("timestep_spacing") == "linspace"
    return is_plain_average_of_v or steps_short_of_next


def perfect_output(scheduler: Any, prediction: str, x0: Tensor, eps: Tensor, alpha: Any, sigma: Any) -> Tensor:
    """What a perfect model says, by the papers' definitions. alpha, sigma: floats."""
    if scheduler_kind(scheduler) == "edm":  # arXiv:2206.00364 eq. 7, solved for the network F
        d = scheduler.config.sigma_data
        c_skip = d**2 / (sigma**2 + d**2)
        c_out = (sigma * d) / (sigma**2 + d**2) ** 0.5 * (1 if prediction == EPS else -1)
        return (x0 - c_skip * (x0 + sigma * eps)) / c_out
    if prediction == EPS:
        return eps
    if prediction == X:
        return x0
    if prediction == "flow":
        return eps - x0
    return (alpha * eps - sigma * x0) / (alpha**2 + sigma**2) ** 0.5  # arXiv:2202.00512, normalised


def measured(latents: Tensor, x0: Tensor, eps: Tensor) -> tuple[float, float]:
    """How much of x0 and eps is in `latents`, by least squares."""
    basis = torch.stack([x0.flatten(), eps.flatten()], dim=1)
    alpha, sigma = torch.linalg.lstsq(basis, latents.double().flatten()[:, None]).solution.flatten().tolist()
    return alpha, sigma


def table_level(scheduler: Any, position: int) -> tuple[float, float]:
    """alpha, sigma of evaluation `position` counted from the whole schedule, from its tables in float64."""
    kind = SCHEDULER_KINDS[type(scheduler).__name__]
    if kind == "vp":
        abar = float(scheduler.alphas_cumprod[int(scheduler.timesteps[position])])
        return abar**0.5, (1 - abar) ** 0.5
    sigma = float(scheduler.sigmas[position])
    name = type(scheduler).__name__
    if position % 2:
        if name == "KDPM2DiscreteScheduler":
            sigma = float(scheduler.sigmas_interpol[position])
        elif name == "KDPM2AncestralDiscreteScheduler":
            sigma = float(scheduler.sigmas_interpol[position - 1])
        elif name == "DPMSolverSDEScheduler":
            start, end = scheduler.sigmas[position - 1].log().neg(), scheduler.sigmas[position].log().neg()
            sigma = float((start + (end - start) * 0.5).neg().exp())
    if kind in ("ve", "edm"):
        return 1.0, sigma
    if kind == "flow" or scheduler.config.use_flow_sigmas:
        return 1.0 - sigma, sigma
    return (1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5


def noised(scheduler: Any, position: int) -> Tensor:
    """x0 noised by the scheduler itself, in float32, to the level of evaluation `position`."""
    timestep = scheduler.timesteps[position]
    if type(scheduler).__name__ == "SASolverScheduler":  # noises by timestep, which it rounds, not by sigma
        alpha, sigma = table_level(scheduler, position)
        return (alpha * X0 + sigma * NOISE).float()
    scheduler = copy.deepcopy(scheduler)  # FlowMatchHeun and others settle their step index here
    if hasattr(scheduler, "add_noise"):
        return scheduler.add_noise(X0.float(), NOISE.float(), timestep[None])
    return scheduler.scale_noise(X0.float(), timestep[None], NOISE.float())


class Evaluation(NamedTuple):
    """One evaluation of a walk: what the scheduler held, was told, and thought (x0 or epsilon)."""

    position: int
    timestep: Tensor
    coeffs: Coefficients
    input_coeffs: Coefficients
    latents: Tensor
    model_input: Tensor
    output: Tensor
    their_x0: Tensor | None
    their_eps: Tensor | None


def walk(scheduler: Any, case: Case, prediction: str, begin: int = 0) -> Iterator[Evaluation]:
    """All evaluations of a run with a perfect model, as pipelines drive them."""
    converted: list[Tensor] = []
    if hasattr(scheduler, "convert_model_output"):
        convert = scheduler.convert_model_output
        scheduler.convert_model_output = lambda *args, **kw: converted.append(convert(*args, **kw)) or converted[-1]
    says_eps = scheduler.config.get("algorithm_type") in ("dpmsolver", "deis", "noise_prediction") or (
        scheduler.config.get("predict_x0") is False
    )
    latents = noised(scheduler, begin)
    for position, timestep in enumerate(scheduler.timesteps[begin:], begin):
        early = coefficients(scheduler, timestep)
        scale = getattr(scheduler, "scale_model_input", lambda sample, _: sample)
        model_input = scale(latents, timestep)
        coeffs, input_coeffs = coefficients(scheduler, timestep), model_input_coefficients(scheduler, timestep)
        assert early == coeffs
        if case.is_random:  # the noise is no longer NOISE; it is whatever is left
            alpha, sigma = float(coeffs.alpha), float(coeffs.sigma)
            eps = (latents.double() - alpha * X0) / sigma
        else:
            alpha, sigma = (float(c) for c in coeffs) if drifts(case, prediction) else measured(latents, X0, NOISE)
            eps = NOISE
        output = perfect_output(scheduler, prediction, X0, eps, alpha, sigma).float()
        before = latents
        result = scheduler.step(output, timestep, before, **case.step)
        theirs = converted.pop() if converted else getattr(result, "pred_original_sample", None)
        yield Evaluation(
            position, timestep, coeffs, input_coeffs, before, model_input, output,
            None if says_eps else theirs, theirs if says_eps else None,
        )  # fmt: skip
        latents = result.prev_sample


@each_run
def test_x0_and_its_inverse_are_exact_at_every_evaluation(case: Case, prediction: str) -> None:
    scheduler = build(case, prediction)
    check_scheduler(scheduler)
    kind = prediction_type(scheduler)
    x0, eps = X0[..., :6, :6], NOISE[..., :6, :6]
    compared = 0
    for position, timestep in enumerate(scheduler.timesteps):
        alpha, sigma = table_level(scheduler, position)
        ours = coefficients(scheduler, timestep)
        if sigma > 1e-3:
            x_t = alpha * x0 + sigma * eps
            output = perfect_output(scheduler, prediction, x0, eps, alpha, sigma)
            assert torch.allclose(to_x0(kind, output, x_t, *ours), x0, rtol=1e-6, atol=1e-6)
            assert torch.allclose(from_x0(kind, x0, x_t, *ours), output, rtol=1e-6, atol=1e-6)
            assert torch.allclose(to_epsilon(x0, x_t, *ours), eps, rtol=1e-6, atol=1e-6)
            edited = x0 - 0.5
            back = to_x0(kind, from_x0(kind, edited, x_t, *ours), x_t, *ours)
            assert torch.allclose(back, edited, rtol=1e-6, atol=1e-6)
            compared += 1
        scheduler.scale_model_input(x0.float(), timestep) if hasattr(scheduler, "scale_model_input") else None
        scheduler.step(x0.float(), timestep, x0.float(), **case.step)
    assert compared >= len(scheduler.timesteps) - 1


@each_run
def test_a_walk_stays_at_the_level_of_the_coefficients(case: Case, prediction: str) -> None:
    """Deterministic solvers stay on the line, random ones leave unit noise, at every evaluation."""
    scheduler = build(case, prediction)
    assert getattr(scheduler, "step_index", None) is None
    kind, count = prediction_type(scheduler), 0
    for e in walk(scheduler, case, prediction):
        alpha, sigma = float(e.coeffs.alpha), float(e.coeffs.sigma)
        at = f"evaluation {e.position}, t={float(e.timestep)}"
        count += 1
        if case.is_random:
            left = (e.latents.double() - alpha * X0) / sigma
            assert float(left.std()) == pytest.approx(1.0, abs=0.05), at
            assert float((left * X0).mean()) == pytest.approx(0.0, abs=0.05), at
        elif not drifts(case, prediction):
            tolerance = 2e-4 * max(1.0, sigma)
            assert measured(e.latents, X0, NOISE) == pytest.approx((alpha, sigma), abs=tolerance), at
        wanted = torch.as_tensor(float(e.input_coeffs.sigma) / sigma) * e.latents
        torch.testing.assert_close(e.model_input, wanted, rtol=1e-4, atol=1e-5)
        assert float(e.input_coeffs.alpha) * sigma == pytest.approx(float(e.input_coeffs.sigma) * alpha)
        frame = Coefficients(*e.coeffs).like(e.latents)
        ours = to_x0(kind, e.output, e.latents, *frame)
        assert ours.dtype is torch.float32
        scale = max(1.0, float(e.latents.abs().max()) / max(alpha, 1e-3))
        if e.their_x0 is not None and case.cls not in ("LCMScheduler", "TCDScheduler"):
            torch.testing.assert_close(ours, e.their_x0, rtol=1e-5, atol=1e-5 * scale)
        if e.their_eps is not None:
            eps = to_epsilon(ours, e.latents, *frame)
            torch.testing.assert_close(eps, e.their_eps, rtol=1e-4, atol=1e-5 * scale / min(1.0, sigma))
    assert count == len(evaluation_timesteps(scheduler))


@each_case
def test_a_run_may_begin_in_the_middle(case: Case) -> None:
    """Image to image: `set_begin_index` where a scheduler has it, else a plain late start."""
    prediction = case.predictions[0]
    scheduler = build(case, prediction, steps=12 if case.cls == "PNDMScheduler" else STEPS)
    begin = 0 if scheduler.config.get("skip_prk_steps") is False else 2 * getattr(scheduler, "order", 1)
    if case.cls == "DPMSolverSinglestepScheduler":
        begin = 0  # its list of orders starts with the run
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
        assert evaluation_timesteps(scheduler) == tuple(float(t) for t in scheduler.timesteps[begin:])
    expected = table_level(scheduler, begin)
    assert tuple(map(float, coefficients(scheduler, scheduler.timesteps[begin]))) == pytest.approx(expected)
    for e in walk(scheduler, case, prediction, begin):
        assert (float(e.coeffs.alpha), float(e.coeffs.sigma)) == pytest.approx(table_level(scheduler, e.position))


@each_case
def test_time_runs_from_a_thousand_towards_zero(case: Case) -> None:
    """Flow models: 1000 sigma, up to the solvers' rounding to whole timesteps."""
    scheduler = build(case, case.predictions[0])
    times = [training_time(scheduler, timestep) for timestep in scheduler.timesteps]
    assert all(0.0 <= time <= 1000.0 for time in times)
    assert times[0] > 800 and times[-1] < times[0] / 2
    flow = scheduler_kind(scheduler) == "flow" or scheduler.config.get("use_flow_sigmas")
    for position, time in enumerate(times if flow else ()):
        slack = 1e-3 if scheduler_kind(scheduler) == "flow" else 1.001
        assert time == pytest.approx(1000 * table_level(scheduler, position)[1], abs=slack)


@each_case
def test_a_run_of_n_steps_has_n_steps(case: Case) -> None:
    scheduler = build(case, case.predictions[0], steps=20)
    steps = evaluation_steps(scheduler)
    assert len(steps) == len(evaluation_timesteps(scheduler))
    assert steps[0] == 0 and all(0 <= later - step <= 1 for step, later in pairwise(steps))
    if scheduler.config.get("skip_prk_steps") is not False:
        assert steps[-1] + 1 == 20


def test_repeated_timesteps_of_rounded_sigmas_are_steps_of_their_own() -> None:
    """DPM++ 2M Karras with 50 steps has one timestep twice, at two noise levels."""
    case = Case("DPMSolverMultistepScheduler", {"use_karras_sigmas": True})
    scheduler = build(case, EPS, steps=50)
    assert len(set(scheduler.timesteps.tolist())) < 50
    assert evaluation_steps(scheduler) == tuple(range(50))
    sigmas = [float(e.coeffs.sigma) for e in walk(scheduler, case, EPS)]
    assert all(later < sigma for sigma, later in pairwise(sigmas))


def test_a_run_may_begin_at_the_first_of_two_equal_timesteps() -> None:
    scheduler = build(Case("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}), EPS, steps=50)
    times = scheduler.timesteps.tolist()
    begin = next(at for at, (time, later) in enumerate(pairwise(times)) if time == later)
    scheduler.set_begin_index(begin)
    for position in (begin, begin + 1):
        ours = coefficients(scheduler, scheduler.timesteps[position])
        assert tuple(map(float, ours)) == pytest.approx(table_level(scheduler, position), rel=1e-9)
        scheduler.step(X0.float(), scheduler.timesteps[position], X0.float())


def test_second_evaluations_count_with_their_step() -> None:
    pndm = build(Case("PNDMScheduler", {"skip_prk_steps": True}), EPS, steps=4)
    assert evaluation_steps(pndm) == (0, 1, 1, 2, 3)
    assert evaluation_steps(build(Case("HeunDiscreteScheduler"), EPS, steps=3)) == (0, 1, 1, 2, 2)
    for name in ("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler"):
        assert evaluation_steps(build(Case(name), EPS, steps=3)) == (0, 0, 1, 1, 2)


def test_the_second_substage_of_kdpm2_lies_between_its_ends() -> None:
    case = Case("KDPM2DiscreteScheduler")
    sigmas = [float(e.coeffs.sigma) for e in walk(build(case, EPS), case, EPS)]
    for before, middle, after in zip(sigmas[:-2:2], sigmas[1:-1:2], sigmas[2::2], strict=True):
        assert middle == pytest.approx((before * after) ** 0.5, rel=1e-5)


EXPORTED = {name for name in dir(exported) if name.endswith("Scheduler")}


def test_the_classes_of_diffusers_are_seen() -> None:
    assert len(EXPORTED) > 40
    assert set(SCHEDULER_KINDS) <= EXPORTED
    assert {entry.name for entry in KarrasDiffusionSchedulers} <= set(SCHEDULER_KINDS)
    assert {case.cls for case in CASES} | {"SCMScheduler"} == set(SCHEDULER_KINDS)  # test_sana_sprint.py


@pytest.mark.parametrize("name", sorted(EXPORTED - set(SCHEDULER_KINDS)))
def test_every_other_scheduler_of_diffusers_is_refused(name: str) -> None:
    stranger = object.__new__(getattr(exported, name))
    with pytest.raises(UnsupportedPipelineError, match=f"{name} is not supported; use one of DDIMScheduler"):
        check_scheduler(stranger)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (Case("DDPMScheduler", {"variance_type": "learned_range"}), "fixed_small"),
        (Case("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}), "invert_sigmas=False"),
        (Case("CogVideoXDDIMScheduler", {"timestep_spacing": "linspace"}), "use 'trailing' or 'leading'"),
        (Case("UniPCMultistepScheduler", {"prediction_type": "flow_prediction"}), "use_flow_sigmas=True"),
        (Case("DDIMScheduler", {"prediction_type": "flow_prediction"}), "use_flow_sigmas=True"),
        (Case("UniPCMultistepScheduler", {"prediction_type": V, "use_flow_sigmas": True}), "use_flow_sigmas=False"),
        (Case("DPMSolverMultistepScheduler", {**FLOW, "use_karras_sigmas": True}), "use_karras_sigmas"),
        (Case("UniPCMultistepScheduler", {**FLOW, "use_beta_sigmas": True}), "use_beta_sigmas"),
        (Case("EDMEulerScheduler", {"prediction_type": X}), "expected one of epsilon, v_prediction"),
    ],
    ids=label,
)
def test_configurations_without_meaning_are_refused(case: Case, reason: str) -> None:
    with pytest.raises(UnsupportedPipelineError, match=reason):
        check_scheduler(build(case, EPS))


def test_subclasses_inherit_the_row_of_their_base() -> None:
    class Mine(diffusers.KDPM2DiscreteScheduler):
        pass

    scheduler, plain = Mine(**BETAS), diffusers.KDPM2DiscreteScheduler(**BETAS)
    for one in (scheduler, plain):
        one.set_timesteps(4)
        for timestep in one.timesteps[:1]:
            one.step(X0.float(), timestep, X0.float())
    assert coefficients(scheduler, scheduler.timesteps[1]) == coefficients(plain, plain.timesteps[1])
    assert evaluation_steps(scheduler) == evaluation_steps(plain)


levels = st.floats(0.01, 100.0)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["epsilon", "v_prediction", "sample", "flow", "edm_epsilon:0.5", "edm_v_prediction:1.0"]),
    alpha=st.floats(0.01, 1.0),
    sigma=levels,
    x0=st.floats(-5, 5),
    eps=st.floats(-5, 5),
)
def test_from_x0_inverts_to_x0(kind: str, alpha: float, sigma: float, x0: float, eps: float) -> None:
    a, s, clean = (torch.tensor(value, dtype=torch.float64) for value in (alpha, sigma, x0))
    x_t = a * clean + s * eps
    output = from_x0(kind, clean, x_t, a, s)
    torch.testing.assert_close(to_x0(kind, output, x_t, a, s), clean, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(from_x0(kind, to_x0(kind, output, x_t, a, s), x_t, a, s), output, rtol=1e-7, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(sigma=levels, x_t=st.floats(-50, 50), output=st.floats(-5, 5))
def test_edm_with_unit_data_is_v_prediction(sigma: float, x_t: float, output: float) -> None:
    """CosXL's reading of v and plain v agree where sigma_data is 1; "epsilon" is its negative."""
    m, x, s = (torch.tensor(value, dtype=torch.float64) for value in (output, x_t, sigma))
    one = torch.ones_like(s)
    plain = to_x0("v_prediction", m, x, one, s)
    torch.testing.assert_close(to_x0("edm_v_prediction:1.0", m, x, one, s), plain)
    torch.testing.assert_close(to_x0("edm_epsilon:1.0", -m, x, one, s), plain)
