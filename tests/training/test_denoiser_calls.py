"""A denoiser in training is given what its pipeline gives it: the same output, bit for bit but for the order of a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny_pipelines import PIPELINES, run

from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.encoding import encode_prompts
from saferedir.pipelines.families import family_of
from saferedir.pipelines.packing import grid_of_img_ids, unpack_2x2
from saferedir.training.denoiser_calls import CALLS, FLUX_GUIDANCE

NAMES = ("sd", "sd3", "flux")


def test_every_family_is_tested() -> None:
    assert {family_of(PIPELINES[name].build()).name for name in NAMES} == set(CALLS)


@pytest.mark.parametrize("name", NAMES)
def test_the_call_equals_the_pipeline_s_own(name: str) -> None:
    case = PIPELINES[name]
    pipe = case.build()
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    seen: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []
    hook = denoiser.register_forward_hook(
        lambda module, args, kwargs, output: seen.append((args, kwargs, output)), with_kwargs=True
    )
    run(case, pipe)
    hook.remove()
    args, kwargs, output = seen[0]
    x = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    t = kwargs["timestep"] if "timestep" in kwargs else args[1]
    sample = output[0] if isinstance(output, tuple) else output.sample
    prompt = PromptEmbeds(kwargs["encoder_hidden_states"], kwargs.get("pooled_projections"))
    if name == "flux":
        grid = grid_of_img_ids(kwargs)
        x, sample, t = unpack_2x2(x, grid), unpack_2x2(sample, grid), t * 1000
        if kwargs["guidance"] is not None:
            assert float(kwargs["guidance"][0]) == FLUX_GUIDANCE
    with torch.no_grad():
        found = CALLS[family_of(pipe).name](denoiser, x, t.expand(len(x)), prompt)
    torch.testing.assert_close(found, sample, rtol=1e-5, atol=1e-6)
    assert encode_prompts(pipe, ["a star"]).prompt.shape[-1] == prompt.prompt.shape[-1]
