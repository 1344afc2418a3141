"""protect: each policy on the tiny pipeline with scripted guards; whatever goes wrong, no image comes out."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from tests.conftest import generate, make_pipeline, make_scheduler, make_unet
from tests.tiny_pipelines import PIPELINES, PipelineCase, run
from torch import Tensor
from typer.testing import CliRunner

import saferedir as sr
from saferedir.cli import app
from saferedir.guard import Guard, GuardConfig, Run, Step
from saferedir.guards.negative_prompt import NegativePrompt, NegativePromptConfig
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.guards.saferedir.guard import SafeRedir
from saferedir.guards.sld import SLD, SLDConfig
from saferedir.policy.outputs import Result

PROMPTS = ["a star", "b moon", "c"]


class Scripted(Guard[GuardConfig]):
    """Fires on chosen rows, and calls rows unresolved until they are is_retried on at the level given for them."""

    method = "scripted"
    may_be_unresolved = True

    def __init__(self, fires: tuple[int, ...] = (), until: dict[int, int] | None = None) -> None:
        super().__init__(GuardConfig(concept="star"))
        self.fires, self.until = fires, until or {}
        self.levels: list[tuple[int, ...]] = []

    def start(self, run: Run) -> None:
        self.levels.append(tuple(run.retry_level))

    def on_step_start(self, step: Step) -> Tensor:
        if not any(step.run.retry_level):
            return step.prompt_embeds
        levels = torch.tensor(step.run.retry_level)[:, None, None]
        return torch.where(levels > 0, step.prompt_embeds / (1 + levels), step.prompt_embeds)

    def verdict(self, run: Run, state: None) -> list[sr.Decision]:
        levels = [*run.retry_level, *[0] * run.batch_size][: run.batch_size]
        return [
            sr.Decision(
                guard=self.method, concept="star", image=row, fired=row in self.fires,
                unresolved=levels[row] < self.until.get(row, 0), message=f"level {levels[row]}",
            )
            for row in range(run.batch_size)
        ]  # fmt: skip


class NoAnswer(Scripted):
    """Forgets an image in its verdict, or numbers them wrongly."""

    def verdict(self, run: Run, state: None) -> list[sr.Decision]:
        return [sr.Decision(guard=self.method, concept="star", image=0) for _ in range(run.batch_size)]


def test_redirect_returns_what_came_out_with_decisions(pipe: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    call: dict[str, Any] = {"num_inference_steps": 2, "output_type": "pt"}
    expected = make_pipeline()("a star", **call, generator=torch.Generator().manual_seed(0))
    with sr.protect(pipe, [Scripted(until={0: 9}), Scripted(fires=(1,))]) as guarded:
        output = guarded("a star", num_images_per_prompt=1, generator=generator, **call)
        assert isinstance(output, type(expected)) and torch.equal(output.images, expected.images)
        assert output.blocked == [False] and [d.unresolved for d in output.decisions] == [True, False]
        assert guarded.decisions == output.decisions and output.decisions[0].attempts == 1
    assert not pipe.unet._forward_pre_hooks


def test_only_failing_rows_are_drawn_again_from_the_same_noise(pipe: Any) -> None:
    guard = Scripted(until={0: 1, 2: 2})
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    finals = [torch.Generator().manual_seed(seed) for seed in range(3)]
    plain = make_pipeline()(PROMPTS, generator=finals, num_inference_steps=3, guidance_scale=5.0, output_type="latent")
    with sr.protect(pipe, guard, on_unsafe="verify") as guarded:
        output = guarded(PROMPTS, generator=generators, num_inference_steps=3, guidance_scale=5.0, output_type="latent")
        assert guard.levels == [(0, 0, 0), (1, 0, 1), (0, 0, 2)]
        assert output.blocked == [False, False, False] and [d.attempts for d in output.decisions] == [2, 1, 3]
        assert torch.equal(output.images[1], plain.images[1])
        for level, row in ((1, 0), (2, 2)):
            pipe_alone, alone = make_pipeline(), Scripted(until={})
            with sr.attach(pipe_alone, alone) as attached:
                attached.retry_level = tuple(level if i == row else 0 for i in range(3))
                assert torch.equal(generate(pipe_alone, PROMPTS)[row], output.images[row])
        guard.until = {}
        guard.levels.clear()
        guarded("a", num_inference_steps=2)
        assert not any(guard.levels[0])  # the retry ended with the call
    assert [a.get_state().tolist() for a in generators] == [b.get_state().tolist() for b in finals]


def test_without_a_generator_a_retry_starts_from_the_same_noise_too(pipe: Any) -> None:
    first: list[Tensor] = []

    class Noise(Scripted):
        def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
            if step.index == 0:
                first.append(step.x_t)
            return x0

    torch.manual_seed(5)
    sr.protect(pipe, Noise(until={0: 1}), on_unsafe="verify")("a star", num_inference_steps=2)
    assert len(first) == 2 and torch.equal(first[0], first[1])


@pytest.mark.parametrize("kind", ["pil", "np", "pt", "latent"])
@pytest.mark.parametrize("return_dict", [True, False])
def test_a_row_that_stays_unsafe_is_blocked_and_the_others_keep_every_bit(kind: str, return_dict: bool) -> None:
    settings: dict[str, Any] = {"num_inference_steps": 2, "output_type": kind}
    plain = make_pipeline()(PROMPTS, generator=torch.Generator().manual_seed(0), **settings).images
    guard = Scripted(until={1: 9})
    guarded = sr.protect(make_pipeline(), [guard, Scripted()], on_unsafe="verify", retries=1)
    output = guarded(PROMPTS, generator=torch.Generator().manual_seed(0), return_dict=return_dict, **settings)
    images = output.images if return_dict else output[0]
    assert isinstance(output, BaseOutput if return_dict else tuple) and type(images) is type(plain)
    arrays, expected = (np.stack([np.asarray(image) for image in stack]) for stack in (images, plain))
    assert output.blocked == [False, True, False] and len(guard.levels) == 2
    assert not arrays[1].any() and arrays.shape == expected.shape and arrays.dtype == expected.dtype
    assert (arrays[[0, 2]] == expected[[0, 2]]).all()
    actions = [decision.action for decision in output.decisions]
    assert actions == ["none", "blocked", "none"] * 2 and guarded.decisions == output.decisions
    assert output.decisions[1].attempts == 2 and "after 2 attempts" in output.decisions[1].message


def test_block_blocks_at_once_whatever_fired_or_is_unsafe(pipe: Any) -> None:
    guard = Scripted(fires=(0,), until={1: 1})
    with sr.protect(pipe, guard, on_unsafe="block", verify=lambda images: [False, False, True, False]) as guarded:
        output = guarded([*PROMPTS, "d"], num_inference_steps=2)
        assert output.blocked == [True, True, True, False] and len(guard.levels) == 1
        assert [np.asarray(image).any() for image in output.images] == [False, False, False, True]


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_the_verifier_sees_the_finished_pictures_and_then_only_the_retried(kind: str, pipe: Any) -> None:
    seen: list[list[Image.Image]] = []
    plain = make_pipeline()(PROMPTS, generator=torch.Generator().manual_seed(0), num_inference_steps=2).images

    def verify(images: list[Image.Image]) -> list[bool]:
        seen.append([image.copy() for image in images])
        for image in images:
            image.paste(0, (0, 0, *image.size))  # scribbling on them changes nothing
        return [len(seen) == 1 and number == 1 for number in range(len(images))]

    guarded = sr.protect(pipe, Scripted(), on_unsafe="verify", verify=verify)
    output = guarded(PROMPTS, generator=torch.Generator().manual_seed(0), num_inference_steps=2, output_type=kind)
    assert [len(images) for images in seen] == [3, 1] and output.blocked == [False] * 3
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(seen[0], plain, strict=True))
    assert [np.asarray(image).any() for image in output.images] == [True] * 3
    assert [d.attempts for d in output.decisions] == [1, 2, 1]


@pytest.mark.parametrize("answer", [
    [True], [0, 1, 0], [False, False, None], [False, False, float("nan")], None, "abc", torch.zeros(3), np.zeros((3, 1), bool),
    ZeroDivisionError("no"),
])  # fmt: skip
def test_a_verifier_that_fails_or_answers_nonsense_is_an_error(answer: Any, pipe: Any) -> None:
    def verify(images: list[Image.Image]) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    guarded = sr.protect(pipe, Scripted(), on_unsafe="verify", verify=verify)
    with pytest.raises(sr.GuardError, match="verifier"):
        guarded(PROMPTS, num_inference_steps=1)
    assert guarded.decisions == []


@pytest.mark.parametrize(
    "answer", [(False,) * 3, np.zeros(3, bool), torch.zeros(3, dtype=torch.bool), [np.bool_(0)] * 3]
)
def test_bools_of_every_library_are_understood(answer: Any, pipe: Any) -> None:
    guarded = sr.protect(pipe, Scripted(), on_unsafe="verify", verify=lambda images: answer)
    assert guarded(PROMPTS, num_inference_steps=1).blocked == [False] * 3


class FilmOutput(BaseOutput):
    """What video pipelines return."""

    frames: Any


class Filmed(StableDiffusionPipeline):
    """Two frames for each image."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        images = super().__call__(*args, **kwargs).images
        if isinstance(images, list):
            return FilmOutput(frames=[[image, image.rotate(90)] for image in images])
        both = (images, images)
        return FilmOutput(frames=torch.stack(both, 1) if isinstance(images, Tensor) else np.stack(both, 1))


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_videos_are_looked_at_and_blocked_frame_by_frame(kind: str, pipe: Any) -> None:
    asked: list[int] = []

    def verify(images: list[Image.Image]) -> list[bool]:
        asked.append(len(images))
        return [number == 3 for number in range(len(images))]  # the second frame of the second video

    guarded = sr.protect(
        Filmed(**pipe.components, requires_safety_checker=False), Scripted(), on_unsafe="block", verify=verify
    )
    with pytest.raises(sr.GuardError, match="by name"):
        guarded(PROMPTS)
    output = guarded(prompt=PROMPTS, num_inference_steps=1, output_type=kind)
    assert asked == [6] and output.blocked == [False, True, False]
    assert [[bool(np.asarray(frame).any()) for frame in video] for video in output.frames] == [
        [True, True], [False, False], [True, True],
    ]  # fmt: skip


@pytest.mark.parametrize("case", PIPELINES.values(), ids=PIPELINES)
def test_every_kind_of_pipeline_can_be_protected(case: PipelineCase) -> None:
    guard = Scripted(until={0: 1, 1: 9})
    guarded = sr.protect(
        case.build(), guard, on_unsafe="verify", verify=lambda images: [False] * len(images), retries=1
    )
    plain = run(case, case.build(), PROMPTS, output_type="np")
    images = run(case, guarded, PROMPTS, output_type="np")
    assert [d.action for d in guarded.decisions] == ["none", "blocked", "none"] and guard.levels == [
        (0,) * 3,
        (1, 1, 0),
    ]
    assert images.shape == plain.shape and not images[1].any() and images[0].any()
    assert (images[2] == plain[2]).all() and [d.attempts for d in guarded.decisions] == [2, 2, 1]


def test_parts_of_an_output_that_have_no_rows_are_blanked_with_a_blocked_image() -> None:
    class Odd(BaseOutput):
        images: Any
        sheet: Any
        nsfw_content_detected: Any

    sheet = Image.new("RGB", (4, 2), "red")
    output = Odd(images=torch.ones(2, 3, 2, 2), sheet=sheet, nsfw_content_detected=[False, True])
    result = Result(output, [sr.Decision(guard="g", concept="c", image=row) for row in range(2)])
    final, _ = result.finished({1: "why"}, {1: ("c",)})
    assert final.nsfw_content_detected == [False, True] and not np.asarray(final.sheet).any()
    assert final.images[0].all() and not final.images[1].any() and output.images is final.images
    assert final.blocked_by == [(), ("c", "diffusers' own safety checker")]


# ---------------------------------------------------------------------- it fails closed


@pytest.mark.parametrize(("how", "says"), [
    ({"on_unsafe": "shrug"}, "redirect, verify, block"),
    ({"retries": -1}, "whole number"),
    ({"retries": 1.5}, "whole number"),
    ({"verify": lambda images: []}, 'on_unsafe="verify"'),
    ({"on_unsafe": "verify", "verify": 3}, "function of PIL images"),
    ({"on_unsafe": "verify", "verify": Scripted()}, "not among"),
])  # fmt: skip
def test_settings_that_make_no_sense_leave_the_pipeline_alone(how: dict[str, Any], says: str, pipe: Any) -> None:
    with pytest.raises(sr.GuardConfigError, match=says):
        sr.protect(pipe, Scripted(), **how)
    assert not pipe.unet._forward_pre_hooks


def test_a_guard_given_as_verifier_is_its_own_classifier(pipe: Any) -> None:
    guard = Scripted(until={0: 9})
    assert sr.protect(pipe, guard, on_unsafe="verify", verify=guard)("a", num_inference_steps=1).blocked == [True]


NETWORK = {"prompt_dim": 96, "concepts": ["star"]}


class Silent(Guard[GuardConfig]):
    """A method of yours whose class says nothing of what it can tell."""

    method = "silent"


def blind(name: str) -> Guard[Any]:
    if name == "saferedir":
        return SafeRedir(SafeRedirConfig(concept="star", network=NETWORK, use_image=False))
    return {
        "sld": lambda: SLD(SLDConfig(concept="star")),
        "negative_prompt": lambda: NegativePrompt(NegativePromptConfig(concept="star")),
        "silent": lambda: Silent(GuardConfig(concept="star")),
    }[name]()


@pytest.mark.parametrize("name", ["sld", "negative_prompt", "saferedir", "silent"])
def test_verify_without_anything_that_looks_is_refused(name: str, pipe: Any) -> None:
    """These would come out as under "redirect", silently."""
    guard = blind(name)
    for given in (None, guard):
        with pytest.raises(sr.GuardConfigError, match=f"nothing to verify with: guards of '{name}' do not say"):
            sr.protect(pipe, guard, on_unsafe="verify", verify=given)
    assert not pipe.unet._forward_pre_hooks
    sr.protect(pipe, guard).detach()


def test_one_pair_of_eyes_is_enough_to_verify(pipe: Any) -> None:
    seeing = SafeRedir(SafeRedirConfig(concept="star", network=NETWORK))
    for guards, verify in (
        ([blind("sld")], lambda images: [False] * len(images)),
        ([blind("sld"), Scripted()], None),  # of a method of yours whose class says so
        ([blind("sld"), seeing], None),
    ):
        sr.protect(pipe, guards, on_unsafe="verify", verify=verify).detach()


def test_latents_cannot_be_looked_at_by_a_function(pipe: Any) -> None:
    guarded = sr.protect(pipe, Scripted(), on_unsafe="verify", verify=lambda images: [False])
    with pytest.raises(sr.GuardError, match="nothing to read"):
        guarded("a", output_type="latent")


def test_a_detached_or_disabled_guard_refuses_before_the_call(pipe: Any) -> None:
    guard = Scripted()
    guarded = sr.protect(pipe, guard)
    guard.enabled = False
    with pytest.raises(sr.GuardError, match="disabled"):
        guarded("a")
    guard.enabled = True
    guarded.detach()
    with pytest.raises(sr.GuardError, match="detached"):
        guarded("a")
    assert "detached" in repr(guarded)


def test_unet_and_scheduler_replaced_together_are_noticed_by_the_count_of_runs(pipe: Any) -> None:
    guarded = sr.protect(pipe, Scripted())
    assert guarded("a", num_inference_steps=1).blocked == [False]
    guarded.unet, guarded.scheduler = make_unet(), make_scheduler("ddim")
    assert isinstance(pipe.scheduler, type(make_scheduler("ddim"))) and pipe.unet is guarded.unet
    with pytest.raises(sr.GuardError, match="protect it again"):
        guarded("a", num_inference_steps=1)
    assert guarded.decisions == []


def test_decisions_that_do_not_cover_every_image_are_an_error(pipe: Any) -> None:
    guarded = sr.protect(pipe, [Scripted(), NoAnswer()])
    assert guarded("a", num_inference_steps=1).blocked == [False]
    with pytest.raises(sr.GuardError, match="not guarded"):
        guarded(PROMPTS, num_inference_steps=1)


def test_an_interrupted_run_is_an_error(pipe: Any) -> None:
    class Interrupting(Scripted):
        def on_step_end(self, step: Step, latents: Tensor) -> Tensor:
            pipe._interrupt = True
            return latents

    with pytest.raises(sr.GuardError, match="interrupted before its last step"):
        sr.protect(pipe, Interrupting())("a", num_inference_steps=2)


@pytest.mark.parametrize("kind", ["np", "pt"])
def test_images_that_are_not_finite_are_an_error(kind: str, pipe: Any) -> None:
    with torch.no_grad():
        pipe.vae.decoder.conv_out.weight.fill_(float("nan"))
    with pytest.raises(sr.GuardError, match="NaN"):
        sr.protect(pipe, Scripted())("a", num_inference_steps=1, output_type=kind)


def test_exceptions_pass_through_also_in_a_retry_and_nothing_is_left_over(pipe: Any) -> None:
    class Breaking(Scripted):
        def on_step_end(self, step: Step, latents: Tensor) -> Tensor:
            if any(step.run.retry_level):
                raise KeyboardInterrupt
            return latents

    guarded = sr.protect(pipe, Breaking(until={0: 1}), on_unsafe="verify")
    generator, final = (torch.Generator().manual_seed(0) for _ in range(2))
    make_pipeline()("a", num_inference_steps=1, generator=final)
    with pytest.raises(KeyboardInterrupt):
        guarded("a", num_inference_steps=1, generator=generator)
    assert guarded.decisions == [] and torch.equal(generator.get_state(), final.get_state())
    with pytest.raises(TypeError):
        guarded("a", nonsense_argument=1, prompt="b")
    guarded.guards[0].until = {}  # type: ignore[attr-defined]
    assert guarded("a", num_inference_steps=1).blocked == [False]


# ---------------------------------------------------------------------- callbacks


def values(pipe: Any, index: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
    return given


def nothing(pipe: Any, index: int, t: Any, given: dict[str, Any]) -> None:
    return None


@pytest.mark.parametrize("callback", [values, nothing])
def test_a_callback_may_look(callback: Callable[..., Any], pipe: Any) -> None:
    inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    guarded = sr.protect(pipe, Scripted())
    plain = make_pipeline()("a", generator=torch.Generator().manual_seed(0), num_inference_steps=2).images[0]
    output = guarded(
        "a", generator=torch.Generator().manual_seed(0), num_inference_steps=2,
        callback_on_step_end=callback, callback_on_step_end_tensor_inputs=inputs,
    )  # fmt: skip
    assert np.array_equal(output.images[0], plain)


def answer_other(pipe: Any, index: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
    return {"latents": given["latents"] * 0.5}


def answer_more(pipe: Any, index: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
    return {"prompt_embeds": torch.zeros(2, 77, 32)}


def write_in_place(pipe: Any, index: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
    given["latents"].mul_(0.5)
    return {}


def write_timestep(pipe: Any, index: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
    t.fill_(7)
    return {}


def write_schedule(pipe: Any, index: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
    pipe.scheduler.timesteps[-1] = 7
    return {}


def interrupt(pipe: Any, index: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
    pipe._interrupt = True
    return {}


def change_guidance(pipe: Any, index: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
    pipe._guidance_scale = 50.0
    return {}


def swap_unet(pipe: Any, index: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
    pipe.unet, pipe.scheduler = make_unet(), make_scheduler("ddim")
    return {}


@pytest.mark.parametrize("callback", [
    answer_other, answer_more, write_in_place, write_timestep, write_schedule, interrupt, change_guidance, swap_unet,
])  # fmt: skip
@pytest.mark.parametrize("at", [0, 1])
def test_a_callback_may_not_write(callback: Callable[..., Any], at: int, pipe: Any) -> None:
    def only_at(pipe: Any, index: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        return callback(pipe, index, t, given) if index == at else {}

    with pytest.raises(sr.GuardError, match="read but not write"):
        sr.protect(pipe, Scripted())("a", num_inference_steps=2, callback_on_step_end=only_at)


def test_legacy_callbacks_are_watched_as_well(pipe: Any) -> None:
    seen: list[int] = []
    guarded = sr.protect(pipe, Scripted())
    guarded("a", num_inference_steps=2, callback=lambda index, t, latents: seen.append(index), callback_steps=1)
    assert seen == [0, 1]
    with pytest.raises(sr.GuardError, match="read but not write"):
        guarded("a", num_inference_steps=2, callback=lambda i, t, latents: latents.zero_(), callback_steps=1)
    with pytest.raises(sr.GuardError, match="is a function"):
        guarded("a", num_inference_steps=2, observer=lambda: None)


def test_diffusers_own_callbacks_that_write_are_refused(pipe: Any) -> None:
    from diffusers.callbacks import SDCFGCutoffCallback

    with pytest.raises(sr.GuardError, match="read but not write"):
        sr.protect(pipe, Scripted())(
            "a", num_inference_steps=2, callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=0.5)
        )


def test_what_the_caller_kept_a_hold_of_cannot_be_written_later(pipe: Any) -> None:
    embeds, latents = torch.ones(1, 77, 32), torch.zeros(1, 4, 8, 8)
    kept: list[Tensor] = []

    def callback(pipe: Any, index: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        embeds.zero_()
        latents.fill_(9)
        for tensor in kept:
            tensor.fill_(9)
        kept.append(given["latents"])
        return {}

    call: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 1.0, "output_type": "latent"}
    plain = make_pipeline()(prompt_embeds=embeds.clone(), latents=latents.clone(), **call).images
    guarded = sr.protect(pipe, Scripted())
    output = guarded(prompt_embeds=embeds, latents=latents, callback_on_step_end=callback, **call)
    assert torch.equal(output.images, plain)


def test_a_retry_draws_what_the_first_call_was_given(pipe: Any) -> None:
    prompts, seen = ["a", "b"], []

    class Reading(Scripted):
        def on_prompt(self, step: Step) -> Tensor:
            seen.append(step.prompt_embeds)
            return step.prompt_embeds

    def callback(pipe: Any, index: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        prompts[:] = ["c", "d"]
        return {}

    sr.protect(pipe, Reading(until={0: 1}), on_unsafe="verify")(
        prompts, num_inference_steps=1, callback_on_step_end=callback
    )
    assert len(seen) == 2 and torch.equal(seen[0], seen[1])


def test_a_run_inside_a_run_is_refused(pipe: Any) -> None:
    guarded = sr.protect(pipe, Scripted())

    def callback(inner: Any, index: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        guarded("a", num_inference_steps=1)
        return {}

    with pytest.raises(sr.GuardError, match="within its own run"):
        guarded("a", num_inference_steps=2, callback_on_step_end=callback)


# ---------------------------------------------------------------------- saferedir generate --policy


@pytest.fixture(scope="module")
def firing_guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guard with random weights that fires on every prompt, and finds every image unsafe to the end."""
    torch.manual_seed(0)
    config = SafeRedirConfig(concept="star", network=NETWORK, prompt_threshold=-100.0, image_threshold=-1e9)
    return SafeRedir(config).save_pretrained(tmp_path_factory.mktemp("guards") / "star")


@pytest.mark.parametrize(("policy", "attempts"), [("redirect", 1), ("verify", 3), ("block", 1)])
def test_generate_under_a_policy(policy: str, attempts: int, firing_guard: Path, tmp_path: Path) -> None:
    words = [
        "generate",
        "a star",
        "a heart",
        "--guard",
        firing_guard,
        "--policy",
        policy,
        "--steps",
        1,
        "--out",
        tmp_path,
    ]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "summary.json").read_text())
    is_blocked = policy != "redirect"
    assert summary["policy"] == policy and [row["blocked"] for row in summary["images"]] == [is_blocked] * 2
    assert summary["images"][1]["decisions"][0]["attempts"] == attempts
    assert np.asarray(Image.open(tmp_path / "002.png")).any() != is_blocked
    assert ("Blocked, so blank: 001.png, 002.png" in result.output) == is_blocked
    assert ("Do not show 001.png, 002.png" in result.output) != is_blocked


def test_a_policy_needs_a_guard(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["generate", "a", "--policy", "block", "--out", str(tmp_path / "out")])
    assert result.exit_code == 2 and "needs a guard" in result.output and not (tmp_path / "out").exists()


# ---------------------------------------------------------------------- the handle


def test_the_rest_is_the_pipelines_own(pipe: Any) -> None:
    guarded = sr.protect(pipe, Scripted(), on_unsafe="verify")
    assert guarded.unet is pipe.unet and guarded.to("cpu") is guarded
    assert repr(guarded) == (
        "GuardedPipeline(StableDiffusionPipeline, guards=[scripted: star], on_unsafe='verify', retries=2)"
    )
    with pytest.raises(AttributeError):
        _ = guarded.nonsense
    with pytest.raises(sr.GuardError, match="protected already"):
        sr.protect(guarded, Scripted())
    for act in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(sr.GuardError, match="copied or pickled"):
            act(guarded)
    assert len(pipe("a", num_inference_steps=1).images) == 1  # guarded, without a policy
    assert len(guarded.guards[0].levels) == 1  # type: ignore[attr-defined]


def test_threads_take_turns_and_each_gets_its_own_image(pipe: Any) -> None:
    guarded = sr.protect(pipe, Scripted(until={0: 1}), on_unsafe="verify")
    seeds = range(6)
    alone = [
        guarded("a star", generator=torch.Generator().manual_seed(s), num_inference_steps=2, output_type="pt").images
        for s in seeds
    ]
    found: dict[int, Any] = {}

    def draw(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        found[seed] = guarded("a star", generator=generator, num_inference_steps=2, output_type="pt")

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert all(torch.equal(found[seed].images, alone[seed]) for seed in seeds)
    assert all([d.attempts for d in found[seed].decisions] == [2] for seed in seeds)


def test_block_is_never_weaker_than_verify(pipe: Any) -> None:
    """An image of which a guard cannot tell leaves under neither; a verifier of the finished images may let it through."""

    class Unsure(Guard[GuardConfig]):
        may_be_unresolved = True

        def verdict(self, run: Any, state: Any) -> list[sr.Decision]:
            return [
                sr.Decision(guard="unsure", concept="star", image=row, unverified=row == 1)
                for row in range(run.batch_size)
            ]

    prompts = ["a star", "a circle"]
    guard = Unsure(GuardConfig(concept="star"))
    with (
        sr.protect(pipe, guard, on_unsafe="verify") as safe,
        pytest.raises(sr.GuardError, match="nothing to verify with"),
    ):
        safe(prompts, num_inference_steps=2)
    with sr.protect(pipe, guard, on_unsafe="block") as safe:
        assert safe(prompts, num_inference_steps=2).blocked == [False, True]
    with sr.protect(pipe, guard, on_unsafe="block", verify=lambda images: [False] * len(images)) as safe:
        assert safe(prompts, num_inference_steps=2).blocked == [False, False]


def test_an_output_says_who_blocked(pipe: Any) -> None:
    """By name: a guard's concept, a verifier of several; never one that found nothing."""
    verifiers: Any = {
        "a": lambda images: [True, False],
        "b": lambda images: [False] * 2,
        "c": lambda images: [True] * 2,
    }
    with sr.protect(pipe, Scripted(fires=(1,)), on_unsafe="block", verify=verifiers) as safe:
        output = safe(PROMPTS[:2], num_inference_steps=2)
    assert output.blocked == [True, True] and output.blocked_by == [("a", "c"), ("star", "c")]
    with sr.protect(
        pipe, Scripted(fires=(0, 1)), on_unsafe="verify", verify=lambda images: [False, True][-len(images) :]
    ) as safe:
        assert safe(PROMPTS[:2], num_inference_steps=2).blocked_by == [(), ("verify",)]
    for wrong in ({}, {"a": 1}):
        with pytest.raises(sr.GuardConfigError, match="mapping of names"):
            sr.protect(pipe, Scripted(), on_unsafe="block", verify=wrong)
