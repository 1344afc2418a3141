"""What the seam does for a guard with latents of its own (`Guard.extra_latents`), and the solver it hands out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.conftest import SCHEDULERS, generate, make_pipeline, make_scheduler
from tests.guards.guidance_probe import close
from tests.tiny_pipelines import PIPELINES, run
from torch import Tensor

import saferedir as sr
from saferedir.guard import Guard, GuardConfig, SecondLatents, Step
from saferedir.guards.dual_latent import DualLatentR2, DualLatentR2Config
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.solver import HISTORIES, Solver, same_noise
from saferedir.seam.extra_rows import followed

REFUSED = ("pndm", "pndm-prk", "heun", "kdpm2", "kdpm2-ancestral", "dpm-singlestep")
FOLLOWED = [name for name in SCHEDULERS if name not in REFUSED]


def dual(**settings: Any) -> DualLatentR2:
    given = {"concept": "a star", "provider": "phrase", "safe_phrase": "b moon", "tau": 0.0, **settings}
    return DualLatentR2(DualLatentR2Config(**given))


# --- the solver


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_fork_leaves_the_live_scheduler_and_the_generator_alone_and_draws_the_same_noise(name: str) -> None:
    scheduler = make_scheduler(name)
    scheduler.set_timesteps(5)
    generator = torch.Generator().manual_seed(0)
    takes_generator = name not in ("lms", "unipc", "unipc-flow", "deis")
    call: dict[str, Any] = {"generator": generator} if takes_generator else {}
    draw = torch.Generator().manual_seed(1)
    solver, x = Solver(scheduler, tuple(scheduler.timesteps)), torch.randn(2, 4, 8, 8, generator=draw)
    for index, t in enumerate(scheduler.timesteps[:3]):
        pred, other = (torch.randn(2, 4, 8, 8, generator=draw) for _ in range(2))
        solver.meet(index, torch.float32, (), call)
        scheduler_state = {key: value for key, value in vars(scheduler).items() if not isinstance(value, list)}
        lists = {key: list(value) for key, value in vars(scheduler).items() if isinstance(value, list)}
        before, own = generator.get_state(), torch.get_rng_state()
        same, apart = solver.fork().step(pred, x), solver.fork().step(other, x + 1)
        assert torch.equal(generator.get_state(), before) and torch.equal(torch.get_rng_state(), own)
        assert all(vars(scheduler)[key] is value for key, value in scheduler_state.items())
        assert all(a is b for key, value in lists.items() for a, b in zip(vars(scheduler)[key], value, strict=True))
        live = scheduler.step(pred, t, x, **call)[0]
        assert torch.equal(live, same) and not torch.equal(live, apart)
        x = live


def test_histories_are_mixed_image_by_image_and_copied_where_an_image_splits_late() -> None:
    scheduler = make_scheduler("dpm++")
    scheduler.set_timesteps(5)
    solver = Solver(scheduler, tuple(scheduler.timesteps))
    x = torch.zeros(2, 1, 2, 2)
    solver.meet(0, torch.float32, (), {})
    fork = solver.fork()
    fork.step(x + 2, x)
    scheduler.step(x + 1, scheduler.timesteps[0], x)
    mine, theirs = scheduler.model_outputs[-1], fork._scheduler.model_outputs[-1]
    fork.hand_over(torch.tensor([0.0, 0.25]), lambda live, forked: live)
    mixed = scheduler.model_outputs[-1]
    assert torch.equal(mixed[0], mine[0]) and close(mixed[1], 0.75 * mine[1] + 0.25 * theirs[1], 1e-6)
    assert scheduler.model_outputs[0] is None and fork._scheduler.model_outputs[-1] is theirs
    fork.follow(torch.tensor([True, False]))
    assert torch.equal(fork._scheduler.model_outputs[-1][0], mixed[0]) and torch.equal(
        fork._scheduler.model_outputs[-1][1], theirs[1]
    )
    assert scheduler.step_index == fork._scheduler.step_index == 1


def test_draws_are_taken_back_even_after_an_exception() -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    before = [generator.get_state() for generator in generators]
    with pytest.raises(ZeroDivisionError), same_noise((generators, None), torch.device("cpu")):
        torch.randn(3, generator=generators[1])
        raise ZeroDivisionError
    assert all(torch.equal(one.get_state(), state) for one, state in zip(generators, before, strict=True))


# --- refusals


@pytest.mark.parametrize("name", REFUSED)
def test_schedulers_of_several_stages_are_refused_when_attaching_and_when_swapped_in(name: str) -> None:
    pipe = make_pipeline(name)
    with pytest.raises(sr.UnsupportedPipelineError, match="second latent cannot follow"):
        sr.attach(pipe, dual())
    assert not pipe.unet._forward_hooks and "step" not in vars(pipe.scheduler)
    pipe = make_pipeline()
    with sr.attach(pipe, dual()):
        pipe.scheduler = make_scheduler(name)
        with pytest.raises(sr.UnsupportedPipelineError, match="second latent cannot follow"):
            generate(pipe)


def test_every_history_that_is_named_is_there() -> None:
    for name in FOLLOWED:
        scheduler = make_scheduler(name)
        scheduler.set_timesteps(4)
        assert all(hasattr(scheduler, attribute) for attribute in HISTORIES[type(scheduler).__name__])
    lists = {"model_outputs", "derivatives", "ets", "last_sample", "cur_sample", "prev_derivative", "dt"}
    for name in FOLLOWED:  # and none that is not
        found = lists & set(vars(make_scheduler(name)))
        assert found == set(HISTORIES[type(make_scheduler(name)).__name__])


# --- extra rows with latents of their own


def test_what_the_pipeline_overwrites_it_overwrites_in_both_latents() -> None:
    now, expected = torch.tensor([[1.0, 2.0, 3.0]] * 2), torch.tensor([[1.0, 5.0, 3.0]] * 2)
    own = torch.full((2, 3), 9.0)
    assert followed(now, expected, SecondLatents(own, torch.tensor([True, False])), own).tolist() == [
        [9, 2, 9],
        [1, 2, 3],
    ]
    with pytest.raises(sr.GuardError, match="all latents were replaced"):
        followed(now + 10, expected, SecondLatents(own, torch.tensor([True, False])), own)
    case = PIPELINES["sd-inpaint"]
    pipe, settings = case.build(), {"dual_fraction": 0.6, "w": 1.0}
    with sr.attach(pipe, dual(**settings)) as attached:
        found = run(case, pipe, steps=6, strength=1.0)
    assert attached.decisions[0].fired and found.isfinite().all()
    safe, plain = run(case, pipe, "b moon", steps=6, strength=1.0), run(case, pipe, steps=6, strength=1.0)
    assert close(found, safe, 1e-4) and not close(found, plain, 1e-2)


def test_a_callback_that_replaces_all_latents_while_there_are_two_fails_closed(pipe: Any) -> None:
    def replace_latents(pipe: Any, index: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        return {"latents": values["latents"] + 1}

    with pytest.raises(sr.GuardError, match="all latents were replaced"):
        with sr.attach(pipe, dual(dual_fraction=0.6)):
            generate(pipe, num_inference_steps=5, callback_on_step_end=replace_latents)


class Apiece(Guard[GuardConfig]):
    """Feeds its extra row with latents of its own, and keeps the steps."""

    def __init__(self, shift: float) -> None:
        super().__init__(GuardConfig(concept="x"))
        self.shift = shift
        self.last: Tensor | None = None
        self.seen: list[Step] = []

    def extra_embeds(self, step: Step, extra: Any) -> Any:
        return PromptEmbeds(step.prompt_embeds[None])

    def extra_latents(self, step: Step) -> SecondLatents | None:
        rows = torch.ones(len(step.model_input), dtype=torch.bool)
        return None if self.last is None else SecondLatents(self.last + self.shift, rows)

    def on_prediction(self, step: Step) -> Tensor:
        self.seen.append(step)
        assert step.pred is not None
        return step.pred

    def on_step_end(self, step: Step, latents: Tensor) -> Tensor:
        self.last = latents
        return latents


@pytest.mark.parametrize(
    "name", ["sd", "sd-inpaint9", "sdxl", "sd3", "flux", "flux-true-cfg", "pixart-sigma", "lumina", "wan"]
)
def test_extra_rows_at_the_images_own_latents_predict_what_its_own_rows_do(name: str) -> None:
    case = PIPELINES[name]
    pipe = case.build()
    same, shifted = Apiece(0.0), Apiece(0.5)
    plain = run(case, pipe, ["a star", "b moon"])
    for guard in (same, shifted):
        with sr.attach(pipe, guard):
            assert torch.allclose(run(case, pipe, ["a star", "b moon"]), plain, rtol=1e-3, atol=1e-3)
    assert same.seen[0].extra_latents is None and same.seen[0].pred_extra_uncond is None
    for step, other in zip(same.seen[1:], shifted.seen[1:], strict=True):
        assert step.extra_latents is not None and torch.equal(step.extra_latents, step.x_t)
        torch.testing.assert_close(step.pred_extra[0], step.pred_cond, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(other.pred_extra[0], step.pred_cond, rtol=1e-3, atol=1e-3)  # type: ignore[arg-type]
        assert (step.pred_extra_uncond is None) == (step.pred_uncond is None)
        if step.pred_uncond is not None:
            torch.testing.assert_close(step.pred_extra_uncond, step.pred_uncond, rtol=1e-3, atol=1e-3)


def test_another_guard_does_not_see_the_second_latents(pipe: Any) -> None:
    seen: list[Step] = []

    class Watch(Guard[GuardConfig]):
        def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
            seen.append(step)
            return x0

    with sr.attach(pipe, [dual(dual_fraction=0.6), Watch(GuardConfig(concept="x"))]):
        generate(pipe, num_inference_steps=5)
    assert len(seen) == 5 and all(step.extra_latents is None and step.pred_extra_uncond is None for step in seen)
