"""Prompts that a text encoder cuts: said where and only where more words change nothing."""

from __future__ import annotations

import pytest
import torch
from tests.tiny_pipelines import PIPELINES

from saferedir.pipelines.encoding import encode_prompts
from saferedir.pipelines.text_lengths import cut_prompts


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "pixart-sigma", "flux"])
def test_a_prompt_is_cut_where_more_words_change_nothing(name: str) -> None:
    case = PIPELINES[name]
    pipe = case.build()
    call = {key: value for key, value in case.settings.items() if key == "max_sequence_length"}
    with torch.no_grad():
        for words in (2, 1000):
            prompt = " ".join(["a", "b"] * (words // 2))
            (cuts,) = cut_prompts(pipe, [prompt], call)
            first, longer = (encode_prompts(pipe, [text], call) for text in (prompt, prompt + " b a"))
            is_same = torch.equal(first.prompt, longer.prompt) if first.prompt.shape == longer.prompt.shape else False
            tokenizers = [part for key, part in pipe.components.items() if key.startswith("tokenizer") and part]
            assert bool(cuts) == is_same and len(cuts) in (0, len(tokenizers))
            assert all(cut.tokens > cut.read for cut in cuts)


def test_the_length_asked_for_counts() -> None:
    pipe = PIPELINES["sd3"].build()
    prompt = " ".join(["a"] * 40)
    (loose,), (tight,) = (cut_prompts(pipe, [prompt], {"max_sequence_length": n}) for n in (200, 20))
    assert [cut.read for cut in tight if cut.text_encoder.startswith("text_encoder_3")] == [20]
    assert not any(cut.text_encoder.startswith("text_encoder_3") for cut in loose)
