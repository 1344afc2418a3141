"""What a guard may answer where it is asked for conditioning, and what the steps that it was given say afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.tiny_pipelines import PIPELINES, run
from torch import Tensor

import saferedir as sr
from saferedir.errors import GuardError
from saferedir.guard import Conditioning, Guard, GuardConfig, PromptEmbeds, Step
from saferedir.guards.step import Embeds

SDXL = PIPELINES["sdxl"]


class Answers(Guard[GuardConfig]):
    """Answers what it was made with."""

    method = "answers"

    def __init__(self, answer: Callable[[Step], Any], point: str = "on_step_start") -> None:
        super().__init__(GuardConfig(concept="star"))
        self.answer, self.point, self.steps = answer, point, list[Step]()

    def uses(self, point: str) -> bool:
        return point == self.point

    def on_step_start(self, step: Step) -> Any:
        self.steps.append(step)
        return self.answer(step)

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        self.steps.append(step)
        return self.answer(step)  # type: ignore[no-any-return]


def latents(*guards: Guard[Any], name: str = "sdxl", **call: Any) -> Tensor:
    case = PIPELINES[name]
    pipe = case.build()
    with sr.attach(pipe, list(guards)):
        return run(case, pipe, ["a star", "the moon"], **call)


def test_a_tensor_an_embeds_and_a_conditioning_say_the_same() -> None:
    bare = run(SDXL, SDXL.build(), ["a star", "the moon"])
    short = latents(Answers(lambda step: 0.5 * step.prompt_embeds))
    assert not torch.equal(short, bare)
    for answer in (
        lambda step: step.conditioning.with_cond(prompt=0.5 * step.prompt_embeds),
        lambda step: Conditioning(PromptEmbeds(0.5 * step.prompt_embeds)),  # parts that are None are left as they are
        lambda step: Embeds(prompt=0.5 * step.prompt_embeds),
    ):
        assert torch.equal(latents(Answers(answer)), short)


def test_every_part_of_both_halves_can_be_answered() -> None:
    def halved(embeds: PromptEmbeds) -> PromptEmbeds:
        return embeds.map(lambda part: 0.5 * part)

    def both(step: Step) -> Conditioning:
        assert step.conditioning.uncond is not None
        return Conditioning(halved(step.conditioning.cond), halved(step.conditioning.uncond))

    def older(step: Step) -> Embeds:
        cond, uncond = both(step)
        assert uncond is not None
        return Embeds(cond.prompt, uncond.prompt, cond.pooled, uncond.pooled)

    assert torch.equal(latents(Answers(both)), latents(Answers(older)))


@pytest.mark.parametrize("name", ["sdxl", "flux-true-cfg", "pixart-sigma"])
def test_the_given_conditioning_and_its_parts_leave_every_bit(name: str) -> None:
    case = PIPELINES[name]
    bare = run(case, case.build(), ["a star", "the moon"])
    for answer in (
        lambda step: step.conditioning,
        lambda step: Conditioning(step.conditioning.cond),
        lambda step: step.conditioning.with_cond(prompt=step.prompt_embeds),
        lambda step: Embeds(),
    ):
        assert torch.equal(latents(Answers(answer), name=name), bare)


def test_a_negative_half_is_kept_for_the_call_that_has_it() -> None:
    def negative(step: Step) -> Conditioning:
        return step.conditioning._replace(uncond=PromptEmbeds(-step.prompt_embeds))

    bare = latents(Answers(lambda step: step.conditioning), name="flux-true-cfg")
    assert not torch.equal(latents(Answers(negative), name="flux-true-cfg"), bare)
    alone = PIPELINES["flux"]
    assert torch.equal(latents(Answers(negative), name="flux"), run(alone, alone.build(), ["a star", "the moon"]))


def test_a_misfit_answer_is_refused() -> None:
    for answer in (
        lambda step: "a star",
        lambda step: step.prompt_embeds[:1],
        lambda step: Conditioning(PromptEmbeds(step.prompt_embeds[:, :1])),
        lambda step: Conditioning(step.prompt_embeds),
        lambda step: step.conditioning.with_uncond(pooled=step.prompt_embeds),
    ):
        with pytest.raises(GuardError, match="from on_step_start"):
            latents(Answers(answer))


def test_a_mask_can_be_answered_and_must_be_one() -> None:
    def shorter(step: Step) -> Conditioning:
        mask = step.conditioning.cond.mask
        assert mask is not None
        mask = mask.clone()
        mask[:, 1:] = 0
        return step.conditioning.with_cond(mask=mask)

    bare = latents(Answers(lambda step: step.conditioning), name="pixart-sigma")
    late = Answers(lambda step: step.x0, "on_denoised")
    assert not torch.equal(latents(Answers(shorter), late, name="pixart-sigma"), bare)
    assert late.steps[0].prompt_mask.sum(1).tolist() == [1, 1]
    with pytest.raises(GuardError, match="mask"):
        latents(
            Answers(lambda step: step.conditioning.with_cond(mask=torch.zeros_like(step.conditioning.cond.mask))),
            name="pixart-sigma",
        )


def test_steps_given_before_the_call_never_learn_what_came_after() -> None:
    early, late = Answers(lambda step: 0.5 * step.prompt_embeds), Answers(lambda step: 0.5 * step.x0, "on_denoised")
    latents(early, late)
    assert len(early.steps) == len(late.steps) >= 3
    for before, after in zip(early.steps, late.steps, strict=True):
        assert before.pred is None and before.x0 is None and before.pred_cond is None
        assert after.pred is not None and after.x0 is not None
        assert torch.equal(after.prompt_embeds, 0.5 * before.prompt_embeds)


@pytest.mark.parametrize("name", ["Apart", "Embeds"])
def test_old_names_are_still_importable(name: str) -> None:
    import saferedir.guard as module

    with pytest.warns(DeprecationWarning, match=name):
        found = getattr(module, name)
    assert issubclass(found, tuple)


def test_retry_level_has_its_old_name() -> None:
    pipe = SDXL.build()
    with sr.attach(pipe, Answers(lambda step: step.conditioning)) as attached:
        with pytest.warns(DeprecationWarning, match="retry_level"):
            attached.insist = (1, 0)
        assert attached.retry_level == (1, 0)
        with pytest.warns(DeprecationWarning, match="retry_level"):
            assert attached.insist == (1, 0)
