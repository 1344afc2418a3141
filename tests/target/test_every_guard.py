"""Every registered guard, seen through a target, on a pipeline of every family: the same images, and right gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.contract.guards import GUARDS, PROMPT, GuardCase
from tests.tiny_pipelines import PIPELINES, PipelineCase
from torch import Tensor

import saferedir as sr
from saferedir.errors import UnsupportedPipelineError
from saferedir.target import Target

STEPS = 3
#: one pipeline of each family, text to image
FAMILIES = ("sd", "sdxl", "sd3", "flux-true-cfg", "pixart-sigma", "sana", "lumina2", "lumina", "aura-flow", "wan")
METHODS = [case for case in GUARDS.values() if case.is_method]
#: whose corrections have corners (clamped scales, radii) near which a difference quotient says little
CORNERED = {"sld", "spell"}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def call_of(case: PipelineCase) -> dict[str, Any]:
    return {**case.settings, **case.guidance, "num_inference_steps": STEPS}


def final_latents(pipe: Any, call: dict[str, Any]) -> Tensor:
    """What the last scheduler step returned, unpacked where the family packs."""
    seen: list[Tensor] = []

    class Last(sr.Guard[Any]):
        def on_step_end(self, step: Any, latents: Tensor) -> Tensor:
            seen.append(latents)
            return latents

    with sr.attach(pipe, Last(sr.guard.GuardConfig(concept="none"))):
        pipe([PROMPT], **call, generator=seeded(), output_type="latent")
    return seen[-1]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("guard", METHODS, ids=lambda guard: guard.name)
def test_the_target_is_the_guarded_pipeline(name: str, guard: GuardCase) -> None:
    """CT1 and CT4: bit for bit the same latents, and finite gradients towards them that are not zero."""
    case = PIPELINES[name]
    if why := guard.lacks(case):
        pytest.skip(why)
    pipe = case.build()
    try:
        with sr.attach(pipe, guard.make(pipe, case)):
            expected = final_latents(pipe, call_of(case))
    except UnsupportedPipelineError as error:
        pytest.skip(str(error))
    with Target(pipe, [guard.make(pipe, case)], call_of(case)) as target:
        with torch.no_grad():
            run = target.roll_out(None, prompt=[PROMPT], generator=seeded())
        assert torch.equal(run[-1].latents, expected)
        latents = run[1].x_t.clone().requires_grad_(True)
        said = target.predict(latents, 1, prompt=[PROMPT], generator=seeded())
        (gradient,) = torch.autograd.grad(said.x0.square().sum(), latents)
    assert bool(gradient.isfinite().all()) and float(gradient.abs().sum()) > 0


@pytest.mark.parametrize("name", ["sd", "sd3", "flux-true-cfg"])
@pytest.mark.parametrize("guard", [case for case in METHODS if case.name not in CORNERED], ids=lambda guard: guard.name)
def test_gradients_through_a_guard_are_right(name: str, guard: GuardCase) -> None:
    """CT4: along the gradient itself, a central difference of the guarded estimate says the same within 5 %."""
    case = PIPELINES[name]
    if why := guard.lacks(case):
        pytest.skip(why)
    pipe = case.build()
    with Target(pipe, [guard.make(pipe, case)], call_of(case)) as target:
        with torch.no_grad():
            start = target.roll_out(None, 0, 2, prompt=[PROMPT], generator=seeded())[1].x_t

        def loss(latents: Tensor) -> Tensor:
            return target.predict(latents, 1, prompt=[PROMPT], generator=seeded()).x0.square().sum()

        latents = start.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(latents), latents)
        along, step = gradient / gradient.norm(), 1e-2
        with torch.no_grad():
            quotient = float(loss(start + step * along) - loss(start - step * along)) / (2 * step)
    assert quotient == pytest.approx(float(gradient.norm()), rel=0.05)
