"""Pipelines with a guider in the place of `guidance_scale`: whatever calls a pipeline with a scale lends it to the guider."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny.newer import make_hunyuan_image

from saferedir.guards.negation.build import prompt_sources
from saferedir.pipelines.guiders import guided_call
from saferedir.target import Target


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = make_hunyuan_image()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_scale_is_lent_and_given_back(pipe: Any) -> None:
    before = pipe.guider.guidance_scale
    with pytest.raises(ValueError), guided_call(pipe, {"guidance_scale": 2.5, "prompt": "a star"}) as given:
        assert given == {"prompt": "a star"} and pipe.guider.guidance_scale == 2.5
        raise ValueError
    assert pipe.guider.guidance_scale == before


def test_callers_give_it_a_scale(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call = {"num_inference_steps": 1, "guidance_scale": 2.5}
    scales: list[float] = []
    set_state = pipe.guider.set_state

    def noting(*args: Any, **kwargs: Any) -> Any:
        scales.append(pipe.guider.guidance_scale)
        return set_state(*args, **kwargs)

    monkeypatch.setattr(pipe.guider, "set_state", noting)
    prompt_sources(pipe, ["a star"], 32, 32, seed=0, settings=call)[0].load()
    assert scales and set(scales) == {2.5}
    with Target(pipe, call={**call, "height": 32, "width": 32}) as target, torch.no_grad():
        scales.clear()
        target.generate(prompt="a star")
    assert scales and set(scales) == {2.5}
