"""A protected pipeline among other people's code: the signature it shows, and an exception in place of a blank."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest
from tests.conftest import generate, make_pipeline
from tests.contract.guards import CONFIG, Watcher
from torch import Tensor, equal

import saferedir as sr
from saferedir.guard import Guard, GuardConfig, Run


class Finds(Guard[GuardConfig]):
    """Calls chosen images unresolved."""

    method = "finds"

    def __init__(self, *images: int) -> None:
        super().__init__(CONFIG)
        self.images = images

    def on_denoised(self, step: Any, x0: Tensor) -> Tensor:
        return x0

    def verdict(self, run: Run, state: Any) -> list[sr.Decision]:
        rows = range(run.batch_size)
        return [sr.Decision(guard="finds", concept="star", image=i, unresolved=i in self.images) for i in rows]


def test_the_call_shows_the_signature_of_the_pipelines(pipe: Any) -> None:
    own = inspect.signature(type(pipe).__call__)
    with sr.protect(pipe, Watcher()) as call:
        assert inspect.signature(type(call).__call__) == own
        assert inspect.signature(call) == inspect.signature(call.__call__) == inspect.signature(pipe.__call__)
        assert "prompt" in inspect.signature(call).parameters
        assert isinstance(call, sr.GuardedPipeline) and type(call).__name__ == "GuardedPipeline"
        assert not hasattr(type(call).__call__, "__wrapped__")  # the loop below, past the policy
        other = make_pipeline()
        with sr.protect(other, Watcher()) as second:
            assert type(second) is type(call)


@pytest.mark.parametrize("return_dict", [True, False])
def test_a_blocked_image_is_an_exception_if_asked_for(return_dict: bool, pipe: Any) -> None:
    prompts = ["a star", "the moon"]
    plain = generate(pipe, prompts)
    with sr.protect(pipe, Finds(0), on_unsafe="block", on_block="raise") as call:
        with pytest.raises(sr.BlockedError, match="1 of 2 images blocked") as found:
            call(prompts, num_inference_steps=3, output_type="latent", return_dict=return_dict, generator=None)
        error = found.value
        assert error.blocked == (0,) and list(error.images) == [1]
        assert [d.action for d in error.decisions] == ["blocked", "none"] == [d.action for d in call.decisions]
        with pytest.raises(sr.BlockedError) as found:
            generate(call, prompts)
        assert equal(found.value.images[1], plain[1])
        again = pickle.loads(pickle.dumps(found.value))
        assert again.blocked == (0,) and again.decisions == error.decisions
    with sr.protect(pipe, Finds(), on_unsafe="block", on_block="raise") as call:
        assert equal(generate(call, prompts), plain)


def test_on_block_has_two_ways(pipe: Any) -> None:
    with pytest.raises(sr.GuardConfigError, match="on_block is 'error'; expected one of blank, raise"):
        sr.protect(pipe, Watcher(), on_block="error")
