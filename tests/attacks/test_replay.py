"""Candidates that begin in the middle of a run, judged under another schedule: they begin at its nearest noise level."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tests.attacks.planted import CALL, CONCEPT_PROMPT, make_planted, shows

import saferedir as sr
from saferedir.attacks.base import Candidate
from saferedir.attacks.replay import latents_on, load_candidates, save_candidates, start_on, with_noise_level
from saferedir.errors import AttackError
from saferedir.target import Target

STRENGTHS = (1.0, 0.8, 0.5, 0.2)
#: evaluations are not steps in the last one
SCHEDULERS = ("DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler")


@pytest.fixture(scope="module")
def world() -> Any:
    return make_planted()


@pytest.fixture
def usual(world: Any) -> Iterator[Any]:
    """The world's own scheduler, back afterwards."""
    scheduler = world.scheduler
    yield scheduler
    world.scheduler = scheduler


def run(world: Any, name: str, steps: int, settings: dict[str, Any], **more: Any) -> Any:
    call = {**CALL, "num_inference_steps": steps}
    return sr.attack(world, None, name, [CONCEPT_PROMPT], judge=shows, settings=settings, call=call, **more)


def levels(world: Any, steps: int) -> list[float]:
    """Noise levels of the evaluations at which a run can begin, inf elsewhere."""
    with Target(world, (), {**CALL, "num_inference_steps": steps}) as target:
        moments = target.moments
    firsts = [all(other.index != one.index for other in moments[:at]) for at, one in enumerate(moments)]
    return [one.sigma / one.alpha if first else math.inf for one, first in zip(moments, firsts, strict=True)]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("strength", STRENGTHS)
def test_an_image_to_image_candidate_begins_at_the_nearest_noise_level(
    world: Any, usual: Any, scheduler: str, strength: float, tmp_path: Path
) -> None:
    """However many steps the other run has, by the same sampler or another; on its own schedule it begins where it did."""
    settings = {"strengths": (strength,)}
    (result,) = run(world, "image-to-image", 10, settings).results
    save_candidates([result.candidate], tmp_path / "one.pt")
    candidates = load_candidates(tmp_path / "one.pt")
    (saved,) = candidates
    assert saved.start == result.candidate.start and saved.noise_level == result.candidate.noise_level
    level = levels(world, 10)[saved.start]
    (again,) = run(world, "image-to-image", 10, settings, candidates=candidates).results
    assert again.candidate.start == saved.start
    torch.testing.assert_close(again.images, result.images)
    world.scheduler = getattr(diffusers, scheduler).from_config(usual.config)
    for steps in (1, 2, 3, 7):
        (there,) = run(world, "image-to-image", steps, settings, candidates=candidates).results
        assert [entry.refusal for entry in there.evaluations] == [
            ""
        ] and there.candidate.noise_level == saved.noise_level
        if not saved.start:
            assert there.candidate.start == 0
            continue
        others = levels(world, steps)
        apart = [abs(math.log(other / level)) for other in others]
        assert apart[there.candidate.start] == min(apart)


def test_a_replay_of_a_strength_runs_about_as_many_of_fewer_steps(world: Any) -> None:
    """Half of 10 steps are about half of 4: what the index of the first one would not give."""
    (result,) = run(world, "image-to-image", 10, {"strengths": (0.5,)}).results
    with Target(world, (), {**CALL, "num_inference_steps": 4}) as target:
        assert result.candidate.start == 5 and start_on(target, result.candidate) in (1, 2)


@pytest.mark.parametrize("scheduler", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("start", [0, 5])
def test_latents_are_carried_into_the_frame_of_another_sampler(
    world: Any, usual: Any, scheduler: str, start: int, tmp_path: Path
) -> None:
    """The same clean image and noise, mixed by DDIM, are what the other sampler would mix of them at that noise level."""
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with Target(world, (), {**CALL, "num_inference_steps": 10}) as target:
        one = target.moments[start]
        found = with_noise_level(Candidate("a", latents=target.noised(clean, noise, start), start=start), target)
    save_candidates([found], tmp_path / "one.pt")
    (found,) = load_candidates(tmp_path / "one.pt")
    world.scheduler = getattr(diffusers, scheduler).from_config(usual.config)
    with Target(world, (), {**CALL, "num_inference_steps": 10}) as target:
        other = target.moments[start]
        carried = latents_on(target, found, start)
    assert carried is not None and (scheduler != "DDIMScheduler" or torch.equal(carried, found.latents))
    ratio = other.amplitude / one.amplitude
    torch.testing.assert_close(carried, ratio * (one.alpha * clean + one.sigma * noise), rtol=2e-3, atol=2e-3)
    if math.isclose(one.noise_level, other.noise_level, rel_tol=1e-3):
        torch.testing.assert_close(carried, other.alpha * clean + other.sigma * noise, rtol=5e-3, atol=5e-3)


def test_noised_latents_need_a_level_of_their_own(world: Any) -> None:
    """Nothing puts other noise on them; those of older files, whose level nobody noted, begin at their index as before."""
    (result,) = run(world, "completion", 6, {"shares": (0.5,)}).results
    middle = result.candidate
    assert middle.latents is not None and middle.start == 3
    with Target(world, (), {**CALL, "num_inference_steps": 6}) as target:
        assert start_on(target, middle) == 3
    with Target(world, (), {**CALL, "num_inference_steps": 5}) as target:
        with pytest.raises(AttackError, match=r"noise level .* give the call its own steps"):
            start_on(target, middle)
        assert start_on(target, Candidate("a", latents=middle.latents)) == 0
        assert start_on(target, replace(middle, noise_level=None)) == 3
        with pytest.raises(AttackError, match="begins at evaluation 5, and this run has 5"):
            start_on(target, replace(middle, noise_level=None, start=5))
