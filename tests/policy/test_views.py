"""What comes out of a guarded pipeline, as a person reads it: image by image, with names and short representations."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import saferedir as sr

PROMPTS = ["a red star on white", "a blue heart over the sky"]


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = sr.load_pipeline("pictoworld")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def guards() -> list[sr.Guard[Any]]:
    return [sr.Guard.from_pretrained(f"pictoworld/{name}") for name in ("star", "emblem")]


def settings(**more: Any) -> dict[str, Any]:
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    return {"num_inference_steps": 3, "generator": generators, **more}


@pytest.fixture(scope="module")
def output(pipe: Any, guards: list[sr.Guard[Any]]) -> Any:
    guarded = sr.protect(pipe, guards, on_unsafe="block")
    try:
        return guarded(PROMPTS, **settings())
    finally:
        guarded.detach()


def test_an_output_is_read_image_by_image(output: Any) -> None:
    from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput

    assert (
        isinstance(output, StableDiffusionPipelineOutput) and type(output).__name__ == "StableDiffusionPipelineOutput"
    )
    first, second = output.by_image()
    assert (first.blocked, second.blocked) == (True, False)
    assert first.image is output.images[0] and second.image is output.images[1]
    for index, image in enumerate((first, second)):
        assert [decision.name for decision in image.decisions] == ["pictoworld/star", "pictoworld/emblem"]
        assert {decision.image for decision in image.decisions} == {index}
    assert sorted(output.decisions, key=lambda one: one.image) == [*first.decisions, *second.decisions]


def test_a_tuple_is_read_image_by_image_too(pipe: Any, guards: list[sr.Guard[Any]]) -> None:
    guarded = sr.protect(pipe, guards)
    try:
        found = guarded(PROMPTS, return_dict=False, **settings())
    finally:
        guarded.detach()
    assert isinstance(found, tuple) and [one.image for one in found.by_image()] == list(found[0])  # type: ignore[attr-defined]


@pytest.mark.parametrize("copy_of", [copy.copy, copy.deepcopy, lambda output: pickle.loads(pickle.dumps(output))])
def test_an_output_survives_copies_and_pickling(output: Any, copy_of: Any) -> None:
    found = copy_of(output)
    assert type(found) is type(output) and found.blocked == output.blocked and found.decisions == output.decisions
    assert [image.tobytes() for image in found.images] == [image.tobytes() for image in output.images]
    assert repr(found) == repr(output)


def test_representations_are_short_and_say_what_happened(output: Any, guards: list[sr.Guard[Any]]) -> None:
    assert repr(output).splitlines()[0] == "StableDiffusionPipelineOutput(2 images, 1 blocked"
    assert len(repr(output.decisions[0])) < 160 and "image 0: blocked, prompt " in repr(output.decisions[0])
    assert repr(guards[0]).startswith("SafeRedir('pictoworld/star', concept='star', prompt_threshold=")


def test_a_notebook_shows_thumbnails_and_escapes_names(output: Any) -> None:
    page = output._repr_html_()
    assert page.count("data:image/png;base64,") == 2 and "<b>blocked</b>" in page
    changed = copy.copy(output)
    changed.decisions = [sr.Decision(guard="a", concept="<script>", image=0)]
    assert "<script>" not in changed._repr_html_()


def test_decisions_of_an_attachment_by_image(pipe: Any, guards: list[sr.Guard[Any]]) -> None:
    with sr.attach(pipe, guards) as attached:
        assert attached.by_image() == []
        images = pipe(PROMPTS, **settings()).images
        for _, decisions in zip(images, attached.by_image(), strict=True):
            assert [decision.name for decision in decisions] == [guard.name for guard in guards]
        assert "2 runs guarded" not in repr(attached) and "1 runs guarded" in repr(attached)


def test_a_name_of_ones_own_is_in_the_decisions(pipe: Any) -> None:
    guard = sr.Guard.from_pretrained("pictoworld/star")
    guard.name = "star, March"
    with sr.attach(pipe, guard) as attached:
        pipe(PROMPTS, **settings())
    assert {decision.name for decision in attached.decisions} == {"star, March"}
    assert sr.Decision.from_dict(attached.decisions[0].to_dict()) == attached.decisions[0]
