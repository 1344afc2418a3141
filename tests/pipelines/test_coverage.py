"""Every pipeline class that is accepted is guarded: in every call of every denoiser, and in every row of the prompt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers.pipelines import auto_pipeline
from tests.contract.feature import guarded, is_apart, same
from tests.contract.guard_features import check_acts, check_extra_rows, check_read_only
from tests.contract.guards import CONFIG, GUARDS, OTHER_PROMPT, PROMPT, Watcher, shared_pipeline
from tests.tiny_pipelines import PipelineCase, run
from tests.tiny_variants import ALL_CASES, VARIANTS
from torch import Tensor

import saferedir as sr
from saferedir.guard import Conditioning, Guard, GuardConfig, Step
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.denoiser_call import Call
from saferedir.pipelines.families import FAMILIES, REFUSED, TEXT_FAMILIES, family_of, refusal_of
from saferedir.pipelines.joined import Joined
from saferedir.pipelines.listed import Lists


class Zero(Guard[GuardConfig]):
    """Puts zeros in the place of the prompt's embeddings, pooled ones included, at every step, for all images or for one."""

    method = "zero"

    def __init__(self, row: int | None = None) -> None:
        super().__init__(CONFIG)
        self.row = row

    def on_step_start(self, step: Step) -> Conditioning:
        kept = torch.ones(len(step.prompt_embeds)) * (self.row is not None)
        if self.row is not None:
            kept[self.row] = 0.0
        pooled = None if step.pooled is None else kept[:, None] * step.pooled
        return step.conditioning.with_cond(prompt=kept[:, None, None] * step.prompt_embeds, pooled=pooled)


@contextmanager
def recorded(pipe: Any) -> Iterator[dict[str, list[PromptEmbeds]]]:
    """Module -> the embeddings of each of its calls, as it is given them behind the guards' hooks."""
    family, handles = family_of(pipe), []
    calls: dict[str, list[PromptEmbeds]] = defaultdict(list)
    for name in (family.denoiser, *family.more_denoisers, *family.conditioned_modules):
        module = getattr(pipe, name, None)
        if module is None:
            continue

        def look(_: Any, args: Any, kwargs: Any, name: str = name) -> None:
            if kwargs.get(family.prompt_arg[1], True) is None:  # a ControlNet that reads no prompt
                kwargs = {**kwargs, family.prompt_arg[1]: torch.zeros(1, 0, 1)}
            given = Lists(family).tensors(args, kwargs) if family.listed else Joined(family, pipe).flat(kwargs)
            calls[name].append(Call(family, args, given).embeds)

        handles.append(module.register_forward_pre_hook(look, with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def without(rows: Tensor, prompt: Tensor) -> tuple[Tensor, int]:
    """Rows (R, ...) with zeros where they are the prompt's (1, ...), and how many these are."""
    if rows.shape[1:] != prompt.shape[1:]:
        return rows, 0  # a negative prompt of another length
    is_prompt = (rows == prompt).flatten(1).all(1)
    return torch.where(is_prompt.view(-1, *(1,) * (rows.ndim - 1)), 0.0, rows), int(is_prompt.sum())


def calls_under(
    case: PipelineCase, guard: Guard[Any], prompt: str | list[str] = PROMPT, **changes: Any
) -> tuple[Tensor, dict[str, list[PromptEmbeds]]]:
    """(images, calls) of a run under a guard."""
    pipe = shared_pipeline(case.name)
    with sr.attach(pipe, guard), recorded(pipe) as calls:
        images = run(case, pipe, prompt, **changes)
    return images, calls


@pytest.mark.parametrize("name", ALL_CASES)
def test_zeros_in_place_of_the_prompt_reach_every_call_and_change_the_image(name: str) -> None:
    case = ALL_CASES[name]
    watcher = Watcher()
    plain, before = calls_under(case, watcher, steps=2)
    zeroed, after = calls_under(case, Zero(), steps=2)
    assert zeroed.isfinite().all() and is_apart(zeroed, plain)
    check_calls(case, watcher.steps[0].conditioning.cond, before, after)


#: pipelines that take one prompt a call -> what they say of two; PRX gives its transformer the time of two rows where it guides
ONE_PROMPT = {"qwen-image-edit-plus": "only supports batch_size=1", "prx": "must match the size"}


@pytest.mark.parametrize("name", [name for name in ALL_CASES if name not in ONE_PROMPT])
def test_zeros_in_place_of_the_second_of_two_prompts_leave_the_first_image_bit_for_bit(name: str) -> None:
    case = ALL_CASES[name]
    watcher, prompts = Watcher(), [OTHER_PROMPT, PROMPT]
    plain, before = calls_under(case, watcher, prompts, steps=2)
    zeroed, after = calls_under(case, Zero(1), prompts, steps=2)
    same(zeroed[:1], plain[:1], "the first image")
    assert zeroed.isfinite().all() and is_apart(zeroed[1:], plain[1:])
    check_calls(case, watcher.steps[0].conditioning.cond.rows(slice(1, 2)), before, after)


@pytest.mark.parametrize("name", sorted(ONE_PROMPT))
def test_pipelines_of_one_prompt_take_no_two(name: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=ONE_PROMPT[name]):
        calls_under(ALL_CASES[name], Zero(1), [OTHER_PROMPT, PROMPT])


def check_calls(
    case: PipelineCase,
    prompt: PromptEmbeds,
    before: dict[str, list[PromptEmbeds]],
    after: dict[str, list[PromptEmbeds]],
) -> None:
    """Each call of `after` is that of `before` with zeros for the prompt (1, ...), and each one has it."""
    assert before.keys() == after.keys()
    for module, calls in before.items():
        assert len(calls) == len(after[module])
        count = 0
        for given, used in zip(calls, after[module], strict=True):
            expected, met = without(given.prompt, prompt.prompt)
            same(used.prompt, expected, f"embeddings that the {module} is given")
            if given.pooled is not None:
                assert prompt.pooled is not None and used.pooled is not None
                same(
                    used.pooled,
                    without(given.pooled, prompt.pooled)[0],
                    f"pooled embeddings that the {module} is given",
                )
            count += met or not given.prompt.numel()
        assert count >= (len(calls) / 2 if case.guidance_is_sequential else len(calls))


def test_prompts_that_change_from_frame_to_frame_are_refused() -> None:
    family = family_of(shared_pipeline("sd-animatediff"))
    prompt = torch.ones(6, 7, 8)  # two videos of three frames
    call = Call(family, (torch.zeros(2, 4, 3, 8, 8), 1), {"encoder_hidden_states": prompt})
    assert call.embeds.prompt.shape == (2, 7, 8)
    prompt[4] = 0.0
    with pytest.raises(sr.GuardError, match="change from frame to frame"):
        _ = call.embeds


ACCEPTED = {name for family in FAMILIES.values() for name in family.pipelines}
#: task -> (diffusers' own table, how many of it are to be guarded)
TASKS = {
    "text to image": (auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING, 45),
    "image to image": (auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING, 23),
    "inpainting": (auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING, 16),
}


@pytest.mark.parametrize("task", TASKS)
def test_classes_of_diffusers_are_guarded_or_refused_with_a_reason(
    task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tables are those of AutoPipelineForText2Image, AutoPipelineForImage2Image and AutoPipelineForInpainting."""
    table, least = TASKS[task]
    names = [cls.__name__ for cls in table.values()]
    guarded_names = [name for name in names if name in ACCEPTED]
    with capsys.disabled():
        print(f"\n{task}: {len(guarded_names)} of {len(names)} classes guarded")
    assert len(guarded_names) >= least
    assert [name for name in names if name not in ACCEPTED and name not in REFUSED] == []
    assert ACCEPTED & set(REFUSED) == set()


def test_every_accepted_class_has_a_tiny_pipeline_that_the_checks_above_run() -> None:
    built = {base.__name__ for name in ALL_CASES for base in type(shared_pipeline(name)).__mro__}
    assert {name for family in TEXT_FAMILIES.values() for name in family.pipelines} - built == set()


def test_a_refused_class_hears_why_and_which_one_is_near() -> None:
    known = refusal_of(["StableUnCLIPPipeline", "DiffusionPipeline"])
    assert "read by a prior" in known and "nearest class that is guarded is Stable" in known
    unknown = refusal_of(["Nowhere"])
    assert "in no row" in unknown and "docs/pipelines.md lists" in unknown


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_variants_are_guarded_as_their_family_is(name: str) -> None:
    case = VARIANTS[name]
    check_read_only(case, GUARDS["watcher"])
    if "pag_scale" in case.settings:
        with pytest.raises(sr.GuardError, match="pag_scale=0"):  # broken off, such a run leaves its attention behind
            guarded(case, GUARDS["extra-texts"].make(None, case), pipe=case.build())
    else:
        check_extra_rows(case, GUARDS["extra-texts"])
    check_acts(case, GUARDS["x0-editor"])
