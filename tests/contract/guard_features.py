"""Contract checks that every guard may break in its own way: idle, acting, batches, arguments, dtypes, gradients.

Imports tests.contract.feature; listed in tests/contract/features.py.
"""

from __future__ import annotations

import functools
import inspect
import tempfile
from typing import Any

import torch
from tests.contract.feature import (
    NotApplicable,
    acts,
    bare,
    clean,
    close,
    guarded,
    is_apart,
    on_shared,
    same,
)
from tests.contract.guards import OTHER_PROMPT, PROMPT, ExtraRows, GuardCase, Watcher, X0Editor, shared_pipeline
from tests.newer_pipelines import EVERY, embeds_arguments
from tests.tiny_pipelines import PipelineCase, embeds_argument, run

import saferedir as sr
from saferedir.attach import Attached
from saferedir.guard import Guard
from saferedir.pipelines.encoding import encode_prompts, prompt_encoder

#: the pipeline on which the images of a guard that was saved are compared; on the others its tensors and config are
IMAGES_COMPARED_ON = "sd"


def check_read_only(case: PipelineCase, guard: GuardCase) -> None:
    watcher = Watcher()
    images, attached = guarded(case, watcher)
    same(images, bare(case), "images under a guard that only watches")
    assert len(watcher.steps) == watcher.runs[0].num_evaluations and len(attached.decisions) == len(images)
    for step in watcher.steps:
        assert step.x0 is not None and step.x0.isfinite().all() and step.x0.dtype == torch.float32
        assert step.prompt_mask.shape == step.prompt_embeds.shape[:2] and step.prompt_mask.any(dim=1).all()
        assert step.run.guided == (step.pred_uncond is not None) == bool(case.guidance)


def check_disabled(case: PipelineCase, guard: GuardCase) -> None:
    pipe = shared_pipeline(case.name)
    made = guard.make(pipe, case)
    made.enabled = False
    images, attached = guarded(case, made)
    same(images, bare(case), "images under a disabled guard")
    assert attached.decisions == []


def check_acts(case: PipelineCase, guard: GuardCase) -> None:
    skip_if_lacking(guard, case)
    images, attached = guarded(case, guard)
    acts(guard, case, images, bare(case))
    same(images, on_shared(case, guard), "a second guarded run")
    same_decisions(guard, attached.decisions, len(images))


def check_detach(case: PipelineCase, guard: GuardCase) -> None:
    guarded(case, guard)
    pipe = shared_pipeline(case.name)
    clean(case, pipe)
    same(run(case, pipe, PROMPT), bare(case), "images after detach")


def check_save_and_load(case: PipelineCase, guard: GuardCase) -> None:
    if not guard.is_method:
        raise NotApplicable("a script of the tests, not a registered method")
    pipe = shared_pipeline(case.name)
    with tempfile.TemporaryDirectory() as folder:
        guard.make(pipe, case).save_pretrained(f"{folder}/one")
        one = Guard.from_pretrained(f"{folder}/one")
        one.save_pretrained(f"{folder}/two")
        two = Guard.from_pretrained(f"{folder}/two")
    assert type(one) is type(two) and one.config == two.config
    # the first saving may round weights to half, the second changes nothing
    first, second = one.tensors(), two.tensors()
    assert first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())
    images = guarded(case, two)[0]
    if case.name == IMAGES_COMPARED_ON:
        same(guarded(case, one)[0], images, "a guard saved and loaded against the same saved twice")
    acts(guard, case, images, bare(case))
    if not first:
        same(images, on_shared(case, guard), "a guard without weights saved, loaded and saved again")


def check_batch(case: PipelineCase, guard: GuardCase) -> None:
    skip_if_lacking(guard, case)
    prompts = [PROMPT, OTHER_PROMPT]
    images, attached = guarded(case, guard, prompts)
    acts(guard, case, images, bare(case, prompts))
    same_decisions(guard, attached.decisions, 2)
    if guard.is_exact_in_batches:
        singles = [on_shared(case, guard), guarded(case, guard, OTHER_PROMPT, seeds=[1])[0]]
        close(images, torch.cat(singles), "a batch of two against single runs")


def check_images_per_prompt(case: PipelineCase, guard: GuardCase) -> None:
    skip_if_lacking(guard, case)
    images, attached = guarded(case, guard, num_images_per_prompt=2)
    acts(guard, case, images, bare(case, num_images_per_prompt=2))
    same_decisions(guard, attached.decisions, 2)
    if guard.is_exact_in_batches:
        singles = [on_shared(case, guard), guarded(case, guard, seeds=[1])[0]]
        close(images, torch.cat(singles), "two images of one prompt against single runs")


def check_guidance_off(case: PipelineCase, guard: GuardCase) -> None:
    if not case.guidance:
        raise NotApplicable("no classifier-free guidance on this pipeline")
    if guard.needs == "guidance":
        raise NotApplicable(f"acts by way of guidance only; without, {idle(case, guard, **case.unguided)}")
    skip_if_lacking(guard, case)
    watcher, pipe = Watcher(), shared_pipeline(case.name)
    made = guard.make(pipe, case)  # which may run the pipeline, to see its sizes, and the watcher is not to see that
    with sr.attach(pipe, watcher):
        images, _ = guarded(case, made, **case.unguided)
    acts(guard, case, images, bare(case, **case.unguided))
    assert not watcher.runs[0].guided and watcher.steps[0].pred_uncond is None


def check_negative_prompt(case: PipelineCase, guard: GuardCase) -> None:
    if not case.guidance:
        raise NotApplicable("no classifier-free guidance on this pipeline")
    if "negative_prompt" not in inspect.signature(type(shared_pipeline(case.name)).__call__).parameters:
        raise NotApplicable("no negative prompt on this pipeline")
    skip_if_lacking(guard, case)
    changes = {"negative_prompt": "rain"}
    images, _ = guarded(case, guard, **changes)
    acts(guard, case, images, bare(case, **changes))
    if guard.needs != "guidance":
        assert is_apart(images, on_shared(case, guard)), "the negative prompt has no effect under the guard"


@functools.cache
def given_embeds(name: str) -> dict[str, Any]:
    """Arguments with which a user hands over prompt embeddings, as this pipeline wants them. Not to be changed."""
    case, pipe = EVERY[name], shared_pipeline(name)
    names = inspect.signature(type(pipe).__call__).parameters
    shared = ["max_sequence_length", "system_prompt"]
    if (image := inspect.signature(prompt_encoder(pipe)).parameters.get("image")) and image.default is image.empty:
        shared.append("image")
    call = {name: case.settings[name] for name in shared if name in case.settings}
    is_negative = bool(case.guidance) and "negative_prompt" in names
    given: dict[str, Any] = {"negative_prompt": None} if is_negative else {}  # some have "" there by themselves
    for prefix, text in (("", PROMPT), ("negative_", "b")):
        if prefix and not case.guidance:
            continue
        given |= embeds_arguments(pipe, encode_prompts(pipe, [text], call), prefix)
    return given


@functools.cache
def bare_from_embeds(name: str) -> torch.Tensor:
    return bare(EVERY[name], None, **given_embeds(name))


def check_prompt_embeds(case: PipelineCase, guard: GuardCase) -> None:
    skip_if_lacking(guard, case)
    given = given_embeds(case.name)
    images, attached = guarded(case, guard, None, **given)
    acts(guard, case, images, bare_from_embeds(case.name))
    same_decisions(guard, attached.decisions, 1)
    if not case.guidance:
        same(images, on_shared(case, guard), "embeddings handed over against the prompt itself")


@functools.cache
def in_bfloat16(name: str) -> tuple[Any, torch.Tensor]:
    """The pipeline in bfloat16, and what it makes without guards."""
    case = EVERY[name]
    pipe = case.build().to(torch.bfloat16)
    return pipe, run(case, pipe, PROMPT)


def check_bfloat16(case: PipelineCase, guard: GuardCase) -> None:
    skip_if_lacking(guard, case)
    pipe, before = in_bfloat16(case.name)
    images, _ = guarded(case, guard, pipe=pipe)
    assert images.dtype == before.dtype
    acts(guard, case, images, before)
    clean(case, pipe)
    same(run(case, pipe, PROMPT), before, "images after detach")


class Undecorated:
    """A pipeline whose call is its loop without `no_grad`."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        for name in ("controlnet", "guider", "ocr_guider"):
            if hasattr(pipe, name):
                setattr(self, name, getattr(pipe, name))

    def __call__(self, **arguments: Any) -> Any:
        return type(self.pipe).__call__.__wrapped__(self.pipe, **arguments)  # type: ignore[attr-defined]


def check_gradients(case: PipelineCase, guard: GuardCase) -> None:
    skip_if_lacking(guard, case)
    pipe = shared_pipeline(case.name)
    given = given_embeds(case.name)
    name = embeds_argument(given)
    is_listed = isinstance(given[name], list)
    leaf = (given[name][0] if is_listed else given[name]).clone().requires_grad_()
    with torch.enable_grad():
        with sr.attach(pipe, guard.make(pipe, case)):
            images = run(case, Undecorated(pipe), None, **{**given, name: [leaf] if is_listed else leaf})
        images.square().sum().backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all() and leaf.grad.abs().sum() > 0
    pipe_parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    for part in pipe_parts:
        part.zero_grad()


def check_nested(case: PipelineCase, guard: GuardCase) -> None:
    pipe, plain, middle = shared_pipeline(case.name), bare(case), on_shared(case, guard)
    handles: list[Attached] = []
    try:
        for one in (Watcher(), guard.make(pipe, case), X0Editor()):
            handles.append(sr.attach(pipe, one))
        first, _, last = handles
        all_three = run(case, pipe, PROMPT)
        assert [handle.runs for handle in handles] == [1, 1, 1]
        first.detach()
        same(run(case, pipe, PROMPT), all_three, "the first of three taken off")
        assert is_apart(all_three, plain)
        last.detach()
        same(run(case, pipe, PROMPT), middle, "only the middle one left")
    finally:
        for handle in handles:
            handle.detach()
    same(run(case, pipe, PROMPT), bare(case), "images after detach")
    clean(case, pipe)


def skip_if_lacking(guard: GuardCase, case: PipelineCase) -> None:
    if lack := guard.lacks(case):
        raise NotApplicable(f"{lack}; {idle(case, guard)}")


def idle(case: PipelineCase, guard: GuardCase, **changes: Any) -> str:
    """Assert that the guard leaves the images alone, and say how exactly."""
    images, unguarded = guarded(case, guard, **changes)[0], bare(case, **changes)
    if guard.is_exact_when_idle(case):
        same(images, unguarded, "images where the guard has nothing to do")
        return f"checked to change no bit {guard.idle_note}".strip()
    close(images, unguarded, "images where the guard has nothing to do")
    return (
        f"{guard.name}'s row rides in the first call, before it is known that none of guidance follows, so that images change by "
        "rounding (1e-6)"
    )


def same_decisions(guard: GuardCase, decisions: list[Any], images: int) -> None:
    assert [decision.image for decision in decisions] == list(range(images)), "not one decision for each image"
    if guard.is_method:
        assert all(decision.fired and decision.guard == guard.name for decision in decisions)


def check_extra_rows(case: PipelineCase, guard: GuardCase) -> None:
    pipe = shared_pipeline(case.name)
    made = guard.make(pipe, case)
    assert isinstance(made, ExtraRows)
    made.own_rows = (0,)
    watcher, prompts, settings = Watcher(), [PROMPT, OTHER_PROMPT], {}
    if "system_prompt" in case.settings:  # a guard's texts have the pipeline's own system prompt, never the user's
        settings = {"system_prompt": None, "max_sequence_length": 200}
    if made.embeds is not None:
        settings = {}
    with sr.attach(pipe, watcher):
        images, _ = guarded(case, made, prompts, **settings)
    assert made.compared == watcher.runs[0].num_evaluations
    assert all(step.pred_extra == () for step in watcher.steps), "another guard sees the extra rows"
    acts(guard, case, images, bare(case, prompts, **settings))
