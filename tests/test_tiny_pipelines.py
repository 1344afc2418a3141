"""The tiny pipelines themselves: finite, the same each time, and in need of the prompt, the noise and the guidance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.newer_pipelines import EVERY
from tests.tiny_pipelines import HEIGHT, PIPELINES, WIDTH, PipelineCase, run

PROMPT, OTHER_PROMPT = "a star", "the moon"
by_every_case = pytest.mark.parametrize("case", EVERY.values(), ids=EVERY)  # newer families have their share in these
by_case = pytest.mark.parametrize("case", PIPELINES.values(), ids=PIPELINES)
guided = pytest.mark.parametrize(
    "case", [case for case in PIPELINES.values() if case.guidance], ids=lambda case: case.name
)


def denoiser_of(pipe: Any) -> Any:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Root mean square of the difference, relative to the first."""
    return ((one - other).norm() / one.norm()).item()


@by_case
def test_two_builds_agree_bit_for_bit_and_are_finite(case: PipelineCase) -> None:
    first, second = run(case, case.build()), run(case, case.build())
    assert first.dtype == torch.float32
    assert first.isfinite().all()
    assert torch.equal(first, second)


@by_case
def test_models_are_in_eval_mode(case: PipelineCase) -> None:
    models = [part for part in case.build().components.values() if isinstance(part, torch.nn.Module)]
    assert models and not any(model.training for model in models)


@by_every_case
def test_prompt_and_noise_change_the_result(case: PipelineCase) -> None:
    pipe = case.build()
    for mode in (case.guidance, case.unguided):
        result = run(case, pipe, PROMPT, **mode)
        assert distance(result, run(case, pipe, OTHER_PROMPT, **mode)) > 0.02
        assert distance(result, run(case, pipe, PROMPT, seeds=[1], **mode)) > 0.02


@pytest.mark.parametrize("name", [case.name for case in PIPELINES.values() if "image" in case.settings])
def test_picture_changes_the_result(name: str) -> None:
    case = PIPELINES[name]
    pipe = case.build()
    other_picture = 1 - case.settings["image"]
    assert distance(run(case, pipe), run(case, pipe, image=other_picture)) > 0.02


@guided
def test_guidance_switches(case: PipelineCase) -> None:
    pipe = case.build()
    assert distance(run(case, pipe), run(case, pipe, **case.unguided)) > 0.02


#: the first takes one prompt a call, the second one image, which it spreads over a batch in another way than alone; PRX takes one
#: prompt a call where it guides; Kandinsky 3 takes the mean of a prompt's tokens and of padding up to the longest of its batch
OF_ONE = {"qwen-image-edit-plus", "qwen-image-edit-inpaint", "prx", "kandinsky-3", "kandinsky-3-img2img"}


@pytest.mark.parametrize(
    "case", [case for case in EVERY.values() if case.name not in OF_ONE], ids=lambda case: case.name
)
def test_a_batch_equals_single_runs(case: PipelineCase) -> None:
    pipe = case.build()
    singles = [run(case, pipe, prompt, seeds=[seed]) for seed, prompt in enumerate([PROMPT, OTHER_PROMPT])]
    near = 1e-3 if case.name.startswith("kandinsky-5") else 1e-4  # it rounds rotated queries and keys to bfloat16
    torch.testing.assert_close(run(case, pipe, [PROMPT, OTHER_PROMPT]), torch.cat(singles), rtol=near, atol=near)


@by_case
def test_images_of_one_prompt_equal_single_runs(case: PipelineCase) -> None:
    pipe = case.build()
    singles = [run(case, pipe, seeds=[seed]) for seed in range(2)]
    torch.testing.assert_close(run(case, pipe, num_images_per_prompt=2), torch.cat(singles), rtol=1e-4, atol=1e-4)


@by_case
def test_latents_decode(case: PipelineCase) -> None:
    picture = run(case, case.build(), output_type="pt")
    assert picture.shape[-3] == 3
    assert picture.shape[-2:] == (case.settings.get("height", HEIGHT), case.settings.get("width", WIDTH))
    assert picture.isfinite().all()


@by_every_case
def test_denoiser_calls_per_step(case: PipelineCase) -> None:
    pipe = case.build()
    calls: dict[str, int] = {"denoiser": 0, "second": 0}

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    denoiser_of(pipe).register_forward_pre_hook(count("denoiser"))
    second = getattr(pipe, "transformer_2", None)
    if second is not None:
        second.register_forward_pre_hook(count("second"))
    run(case, pipe, **case.guidance)
    assert sum(calls.values()) == pipe_steps(case, pipe) * (2 if case.guidance_is_sequential else 1)
    assert (calls["second"] > 0) == (second is not None)


def pipe_steps(case: PipelineCase, pipe: Any) -> int:
    """Denoising steps of the last run; PixArt does not tell."""
    return 3 if case.family == "pixart" else pipe.num_timesteps
