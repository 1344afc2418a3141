"""Two sequences of prompt embeddings as one: what is joined comes apart again, and nothing enters beside it."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from tests.contract.guards import PROMPT, Watcher
from tests.newer_pipelines import NEWER, embeds_arguments
from tests.pipelines.test_coverage import Zero
from tests.tiny_pipelines import run
from torch import Tensor

import saferedir as sr
from saferedir.errors import UnsupportedPipelineError
from saferedir.pipelines.conditioning import Conditioning
from saferedir.pipelines.encoding import encode_prompts
from saferedir.pipelines.families import family_of
from saferedir.pipelines.families.facts import SecondPrompt
from saferedir.pipelines.guiders import guided_call
from saferedir.pipelines.joined import Parts, cut, join
from saferedir.seam.texts import PromptTexts, texts_of

TOKENS = SecondPrompt(argument="second", position="tokens", width="e", mask="second_mask")
CHANNELS = SecondPrompt(argument="second", position="channels", width="e", layers="layers")


def parts_of(fact: SecondPrompt, rows: int = 2, length: int = 5) -> Parts:
    """Numbers that are all unlike, of widths and lengths that are all unlike."""
    if fact.position == "channels":
        return Parts(torch.randn(rows, length, 4), torch.randn(3, rows, 7, 6, dtype=torch.float64))
    masks = torch.ones(rows, length, dtype=torch.int64), torch.zeros(rows, 3, dtype=torch.bool)
    return Parts(torch.randn(rows, length, 6), torch.randn(rows, 3, 4, dtype=torch.float64), *masks)


@pytest.mark.parametrize("fact", [TOKENS, CHANNELS], ids=["tokens", "channels"])
def test_what_is_joined_comes_apart_as_it_was(fact: SecondPrompt) -> None:
    parts = parts_of(fact)
    prompt, mask = join(fact, parts)
    assert prompt.shape == ((2, 8, 6) if fact is TOKENS else (2, 7, 4 + 3 * 6))
    for back, part in zip(cut(fact, prompt, mask, parts), parts, strict=True):
        assert (back is None) is (part is None)
        if part is not None and back is not None:
            assert back.dtype == part.dtype and torch.equal(back, part) and back.is_contiguous()


def test_more_rows_and_longer_prompts_come_apart_at_the_same_place() -> None:
    short, long = parts_of(TOKENS), parts_of(TOKENS, rows=4, length=9)
    back = cut(TOKENS, *join(TOKENS, long), short)
    assert torch.equal(back.prompt, long.prompt) and torch.equal(back.second, long.second)
    assert back.mask is not None and back.mask.shape == (4, 9)


def calls_of(name: str, guard: Any, **changes: Any) -> list[dict[str, Tensor]]:
    """The keyword arguments of each denoiser call of a guarded run; without guidance, where it is not in calls of its own."""
    case, calls = NEWER[name], []
    pipe = case.build()
    with sr.attach(pipe, guard):
        handle = pipe.transformer.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append(dict(kwargs)), with_kwargs=True
        )
        prompt = None if changes else PROMPT
        run(case, pipe, prompt, **{**({} if case.guidance_is_sequential else case.unguided), **changes})
        handle.remove()
    return calls


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("hunyuan-image", ("encoder_hidden_states", "encoder_hidden_states_2")),
        ("hunyuan-dit", ("encoder_hidden_states", "encoder_hidden_states_t5")),
        ("hidream", ("encoder_hidden_states_t5", "encoder_hidden_states_llama3", "pooled_embeds")),
    ],
)
def test_zeros_in_place_of_the_prompt_leave_no_text_input_with_words(name: str, texts: tuple[str, ...]) -> None:
    before, after = calls_of(name, Watcher()), calls_of(name, Zero())
    per_step = 2 if NEWER[name].guidance_is_sequential else 1
    for text in texts:
        assert all(call[text].any() for call in before[::per_step])
    for given, used in zip(before[::per_step], after[::per_step], strict=True):
        for text in texts:
            assert given[text].shape == used[text].shape and not used[text].any()
    for given, used in zip(before[1::2], after[1::2], strict=True):  # the negative prompt, in a call of its own
        assert per_step == 1 or all(torch.equal(given[text], used[text]) for text in texts)


@torch.no_grad()
def test_hidreams_two_sequences_may_have_lengths_of_their_own() -> None:
    pipe = NEWER["hidream"].build()
    given = embeds_arguments(pipe, encode_prompts(pipe, [PROMPT], {"max_sequence_length": 24}))
    given["prompt_embeds_t5"] = given["prompt_embeds_t5"][:, :5]
    (before, *_), (after, *_) = calls_of("hidream", Watcher(), **given), calls_of("hidream", Zero(), **given)
    for text in ("encoder_hidden_states_t5", "encoder_hidden_states_llama3"):
        assert before[text].any() and before[text].shape == after[text].shape and not after[text].any()


def test_a_second_sequence_of_another_length_is_refused() -> None:
    case = NEWER["hunyuan-image"]
    pipe = case.build()
    given = embeds_arguments(pipe, encode_prompts(pipe, [PROMPT]))
    given |= {name: given[name][:, :5] for name in ("prompt_embeds_2", "prompt_embeds_mask_2")}
    with sr.attach(pipe, Zero()), pytest.raises(sr.GuardError, match="has 5 tokens where"):
        run(case, pipe, None, **given)


@pytest.mark.parametrize("name", ["hunyuan-image", "hunyuan-image-refiner"])
def test_a_mask_that_hides_the_first_token_is_refused(name: str) -> None:
    """The denoiser lets every token attend to the first one, whatever its mask says."""
    case = NEWER[name]
    pipe = case.build()
    given = embeds_arguments(pipe, encode_prompts(pipe, [PROMPT]))
    given["prompt_embeds_mask"] = given["prompt_embeds_mask"].clone()
    given["prompt_embeds_mask"][:, 0] = 0
    other = {**given, "prompt_embeds": given["prompt_embeds"].clone()}
    other["prompt_embeds"][:, 0] += 1.0
    assert not torch.equal(run(case, pipe, None, **given), run(case, pipe, None, **other))
    with sr.attach(pipe, Watcher()), pytest.raises(sr.GuardError, match="hides its first token"):
        run(case, pipe, None, **given)


def test_a_guider_that_calls_the_denoiser_in_another_way_is_refused() -> None:
    case = NEWER["hunyuan-image"]
    pipe = case.build()
    pipe.guider = diffusers.SkipLayerGuidance(skip_layer_guidance_layers=[0])
    with pytest.raises(UnsupportedPipelineError, match="is a SkipLayerGuidance"):
        sr.attach(pipe, Zero())
    pipe.guider = None
    with sr.attach(pipe, Zero()):
        run(case, pipe)
        pipe.ocr_guider = diffusers.PerturbedAttentionGuidance(perturbed_guidance_layers=[0])
        with pytest.raises(UnsupportedPipelineError, match="ocr_guider of this"):
            run(case, pipe)


def test_a_guider_that_leaves_the_negative_prompt_its_weight_is_refused() -> None:
    """Adaptive projected guidance clips the difference of the two predictions: to nothing, and the negative prompt is left."""
    case = NEWER["hunyuan-image"]
    pipe = case.build()
    pipe.guider = diffusers.AdaptiveProjectedMixGuidance(
        adaptive_projected_guidance_start_step=1, adaptive_projected_guidance_rescale=1e-3
    )
    with sr.attach(pipe, Watcher()), pytest.raises(sr.GuardError, match="negative prompt shape the image"):
        run(case, pipe)


def test_a_guiders_scale_is_the_runs_and_stays_the_guiders() -> None:
    case = NEWER["hunyuan-image"]
    pipe, watcher = case.build(), Watcher()
    with sr.attach(pipe, watcher):
        run(case, pipe, guidance_scale=4.0)
    assert watcher.runs[0].guidance_scale == 4.0 and pipe.guider.guidance_scale == 3.5
    with guided_call(pipe, {"guidance_scale": 2.0, "height": 8}) as given:
        assert given == {"height": 8} and pipe.guider.guidance_scale == 2.0


@torch.no_grad()
def test_the_text_of_embeddings_handed_over_in_part_is_unknown() -> None:
    pipe = NEWER["hunyuan-image"].build()
    texts = PromptTexts(family_of(pipe))
    own = Conditioning(encode_prompts(pipe, [PROMPT]))
    texts.encode_prompt(pipe, pipe.encode_prompt, prompt=[PROMPT])
    assert texts_of(own, texts.known()).prompts == (PROMPT,)
    other = encode_prompts(pipe, ["b"])
    given = embeds_arguments(pipe, other)
    second = {name: given[name] for name in ("prompt_embeds_2", "prompt_embeds_mask_2")}
    mixed = PromptTexts(family_of(pipe))
    mixed.encode_prompt(pipe, pipe.encode_prompt, prompt=[PROMPT], **second)
    assert mixed.known() == ()


@torch.no_grad()
def test_two_calls_of_encode_prompt_make_one_text_known_if_they_say_the_same() -> None:
    pipe = NEWER["hunyuan-dit"].build()
    family = family_of(pipe)
    second = family.second_prompt
    assert second is not None
    own = Conditioning(encode_prompts(pipe, [PROMPT]))
    for first, expected in ((PROMPT, (PROMPT,)), ("b", (None,))):
        texts = PromptTexts(family)
        texts.encode_prompt(pipe, pipe.encode_prompt, prompt=[first], **family.encoder_settings)
        texts.encode_prompt(pipe, pipe.encode_prompt, prompt=[PROMPT], **second.encoder_settings)
        assert texts_of(own, texts.known()).prompts == expected
