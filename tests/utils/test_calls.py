"""A text given once serves every prompt of a batch."""

from __future__ import annotations

from saferedir.utils.calls import for_each_prompt, is_prompt_argument


def test_a_text_given_once_serves_every_prompt_and_nothing_else_changes() -> None:
    call = {
        "negative_prompt": "blurry", "negative_prompt_2": ["grey"], "prompt_3": "red", "height": 64, "sigmas": [1.0],
        "negative_prompt_3": ["a", "b"], "prompt_embeds": "no text of a prompt",
    }  # fmt: skip
    assert for_each_prompt(call, 2) == call | {
        "negative_prompt": ["blurry", "blurry"], "negative_prompt_2": ["grey", "grey"], "prompt_3": ["red", "red"]
    }  # fmt: skip
    assert call["negative_prompt"] == "blurry"
    assert not any(map(is_prompt_argument, ("system_prompt", "prompt_embeds", "num_images_per_prompt", "height")))
