"""What is new about the newer families: prompts of their own lengths, lists of tensors, guidance that stops by itself."""

from __future__ import annotations

import pytest
import torch
from tests.contract.guards import GUARDS, Watcher, shared_pipeline
from tests.newer_pipelines import NEWER
from tests.security.family_probes import SAFE, Target
from tests.tiny_pipelines import run

import saferedir as sr
from saferedir.pipelines.encoding import encode_prompts, encode_to_length
from saferedir.pipelines.listed import padded, unpadded

LONG = "a star over the sky and the sea"


@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_guidance_that_stops_amid_a_run_is_steered_before_and_after(ratio: float) -> None:
    case = NEWER["z-image"]
    target = Target(case, is_guarded=True)
    plain = run(case, shared_pipeline(case.name), SAFE, cfg_truncation=ratio)
    guarded = target.draw("a star", cfg_truncation=ratio)
    torch.testing.assert_close(guarded, plain, rtol=1e-4, atol=1e-4)
    assert not torch.equal(plain, run(case, shared_pipeline(case.name), SAFE))


@pytest.mark.parametrize("prompts", ["a star", ["a star", "the moon"]])
def test_guidance_that_ends_before_the_first_step_is_none(prompts: str | list[str]) -> None:
    """Image to image begins late, where a truncation at 0 leaves no guided step."""
    case, pipe, watcher = NEWER["z-image-img2img"], shared_pipeline("z-image-img2img"), Watcher()
    plain = run(case, pipe, prompts, cfg_truncation=0.0)
    with sr.attach(pipe, watcher):
        assert torch.equal(run(case, pipe, prompts, cfg_truncation=0.0), plain)
    assert not watcher.runs[0].guided and watcher.runs[0].batch_size == len(plain)


@pytest.mark.parametrize("name", ["qwen-image", "z-image"])
def test_words_of_a_guard_beside_prompts_of_several_lengths(name: str) -> None:
    """A batch has a mask where a single prompt has none, and a guard's words have a third length."""
    case, pipe = NEWER[name], shared_pipeline(name)
    prompts = ["a", LONG]
    with sr.attach(pipe, GUARDS["sld"].make(pipe, case)):
        together = run(case, pipe, prompts)
        alone = [run(case, pipe, prompt, seeds=[seed]) for seed, prompt in enumerate(prompts)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-3)


def test_a_guard_that_needs_texts_knows_those_of_lists() -> None:
    """Z-Image writes its template into the list of prompts that it is given."""
    case, pipe = NEWER["z-image"], shared_pipeline("z-image")
    watcher = Watcher()
    watcher.needs_text = True
    with sr.attach(pipe, watcher):
        run(case, pipe, ["a", LONG])
    assert watcher.steps[0].prompts == ("a", LONG)


def test_lists_and_tensors_are_inverse() -> None:
    rows = [torch.randn(length, 3) for length in (2, 5)]
    found = padded(rows)
    assert found.mask is not None and found.prompt.shape == (2, 5, 3)
    assert all(torch.equal(*pair) for pair in zip(unpadded(found.prompt, found.mask), rows, strict=True))


def test_a_text_is_as_long_as_the_run_where_the_longest_of_a_batch_decides() -> None:
    pipe = shared_pipeline("cogview-4")
    wanted = encode_prompts(pipe, [LONG * 2]).prompt.shape[1]
    assert encode_prompts(pipe, ["a"]).prompt.shape[1] < wanted
    assert encode_to_length(pipe, ["a"], wanted).prompt.shape[1] == wanted
