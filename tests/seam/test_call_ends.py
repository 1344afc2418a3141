"""A call that ends without one guarded step gives no image; steps of others are never taken for the pipeline's own."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
from tests.conftest import generate, make_pipeline
from tests.contract.guards import Watcher, X0Editor
from tests.tiny_pipelines import PIPELINES, run
from torch import equal

import saferedir as sr

METHODS = {"progress_bar", "maybe_free_model_hooks"}


@pytest.mark.parametrize("output_type", ["latent", "pt"])
@pytest.mark.parametrize("is_protected", [False, True])
def test_a_negative_number_of_steps_gives_no_image_and_is_named(
    is_protected: bool, output_type: str, pipe: Any
) -> None:
    plain = generate(pipe)
    with (sr.protect if is_protected else sr.attach)(pipe, Watcher()) as handle:
        call = handle if is_protected else pipe
        with pytest.raises(sr.GuardError, match=r"num_inference_steps=-4 leaves no step"):
            generate(call, num_inference_steps=-4, output_type=output_type)
        assert equal(generate(call), plain) and len(handle.decisions) == 1
    assert not METHODS & set(vars(pipe)) and equal(generate(pipe), plain)


def test_a_strength_that_leaves_no_step_is_named() -> None:
    case = PIPELINES["sd-img2img"]
    pipe = case.build()
    with sr.attach(pipe, Watcher()), pytest.raises(sr.GuardError, match=r"strength=0.01 leaves no step"):
        run(case, pipe, strength=0.01)


@pytest.mark.parametrize("name", ["sd", "flux", "wan"])
def test_an_interrupted_call_gives_no_image(name: str) -> None:
    case = PIPELINES[name]
    pipe = case.build()

    def interrupt(pipe: Any, index: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = True
        return {}

    with sr.attach(pipe, Watcher()) as attached:
        with pytest.raises(sr.GuardError, match="interrupted before its last step"):
            run(case, pipe, callback_on_step_end=interrupt)
        run(case, pipe)
        assert attached.decisions
        for guard in attached.guards:
            guard.enabled = False
        run(case, pipe, callback_on_step_end=interrupt)  # nothing acts, so nothing is refused


@pytest.mark.parametrize("name", ["sd", "sdxl-inpaint"])  # the second returns latents before it frees its modules
def test_a_run_on_other_modules_gives_no_image(name: str) -> None:
    case = PIPELINES[name]
    pipe, other = case.build(), case.build()
    with sr.attach(pipe, Watcher()):
        pipe.unet, pipe.scheduler = other.unet, other.scheduler
        with pytest.raises(sr.GuardError, match="denoiser or scheduler was replaced"):
            run(case, pipe)


class Loopless(type(make_pipeline())):  # type: ignore[misc]
    """A user's own call, without progress bar."""

    def __call__(self, steps: int) -> str:
        self.scheduler.set_timesteps(steps)
        self.maybe_free_model_hooks()
        return "an image"


def test_a_call_of_the_users_own_is_seen_to_end_as_well() -> None:
    pipe = make_pipeline()
    own = Loopless(**pipe.components, requires_safety_checker=False)
    assert own(-4) == "an image"
    with sr.attach(own, Watcher()), pytest.raises(sr.GuardError, match="without one guarded step"):
        own(-4)


def test_the_pipelines_helpers_stay_free_to_use_between_calls(pipe: Any) -> None:
    with sr.attach(pipe, Watcher()):
        pipe.scheduler.set_timesteps(5)
        pipe.maybe_free_model_hooks()
        assert list(pipe.progress_bar(range(3))) == [0, 1, 2]
        with pipe.progress_bar(total=2) as bar:
            bar.update()


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_sibling_does_not_go_on_in_a_run_that_broke_off(name: str) -> None:
    case = PIPELINES[name]
    pipe = case.build()
    parts = {**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)}
    sibling = type(pipe)(**parts, **({"requires_safety_checker": False} if name == "sd" else {}))
    sibling.set_progress_bar_config(disable=True)

    def breaks(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    with sr.attach(pipe, X0Editor()) as attached:
        with pytest.raises(KeyboardInterrupt):
            run(case, pipe, callback_on_step_end=breaks)
        with pytest.raises(sr.GuardError, match="shares the"):
            run(case, sibling, steps=1)
        run(case, pipe)
        assert attached.runs == 1


def test_another_pipeline_with_the_same_scheduler_is_told_so(pipe: Any) -> None:
    other = make_pipeline()
    other.scheduler = pipe.scheduler
    with sr.attach(pipe, Watcher()) as attached:
        with pytest.raises(sr.GuardError, match="shares the scheduler of a guarded StableDiffusionPipeline"):
            generate(other)
        generate(pipe)
        assert attached.runs == 1
    generate(other)


def test_a_guarded_run_keeps_no_frame_of_the_pipeline_alive(pipe: Any) -> None:
    """Frames in a cycle would hold a call's latents and images until the garbage collector finds them."""
    seen: list[Any] = []

    def watch(_pipe: Any, _index: int, _time: Any, given: dict[str, Any]) -> dict[str, Any]:
        seen.append(weakref.ref(given["latents"]))
        return {}

    with sr.attach(pipe, X0Editor()):
        gc.collect()
        gc.disable()
        try:
            pipe("a", num_inference_steps=2, height=32, width=32, output_type="pt", callback_on_step_end=watch)
            assert [latents() for latents in seen] == [None, None]
        finally:
            gc.enable()


def test_a_run_cancelled_before_its_first_step_says_so() -> None:
    pipe = PIPELINES["sd"].build()
    original = pipe.prepare_latents

    def cancelled(*args: Any, **kwargs: Any) -> Any:
        pipe._interrupt = True
        return original(*args, **kwargs)

    pipe.prepare_latents = cancelled
    with sr.attach(pipe, Watcher()), pytest.raises(sr.GuardError, match="cancelled before its first step"):
        run(PIPELINES["sd"], pipe)


@pytest.mark.parametrize("at", [0, 2], ids=["first-step", "last-step"])
def test_a_callback_cannot_take_the_run_of_its_own_pipeline(at: int) -> None:
    case = PIPELINES["sd"]
    pipe = case.build()

    def callback(_: Any, step: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == at:
            with pytest.raises(sr.GuardError, match="from within its own run"):
                run(case, pipe, "the moon")
        return values

    expected = run(case, case.build())
    with sr.attach(pipe, Watcher()) as attached:
        assert equal(run(case, pipe, callback_on_step_end=callback), expected)
        assert attached.runs == 1 and len(attached.decisions) == 1
