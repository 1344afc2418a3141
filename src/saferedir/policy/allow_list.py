"""Allow-lists of a policy: whole prompts, reviewed by a person, that may pass a concept's prompt verdict.

Only whole prompts: a phrase inside a longer one could bring the concept along. In doubt nothing is allowed. The verdict on the
image, its verifier and the retries stay as they are.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

_COUNTS = frozenset({"num_images_per_prompt", "num_videos_per_prompt"})
#: arguments under which a listed prompt is still all that says what is generated; under any other nothing is allowed
_HARMLESS = _COUNTS | {
    "callback",
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
    "callback_steps",
    "eta",
    "generator",
    "guidance_scale",
    "height",
    "max_sequence_length",
    "num_frames",
    "num_inference_steps",
    "output_type",
    "prompt",
    "return_dict",
    "true_cfg_scale",
    "width",
}
_PROMPTS = ("prompt_2", "prompt_3", "prompt_4")


def normalised(text: str) -> str:
    """A prompt as it is compared: Unicode's NFKC, case folded, runs of white space as one blank.

    Marks that show nothing (zero-width joiners, controls of direction) stay, so that a prompt with them is another one.

    Example:
        >>> normalised("  Star\\u00a0ANISE in a bowl ")
        'star anise in a bowl'
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def allowed_images(allow: Sequence[str], call: Mapping[str, Any]) -> tuple[bool, ...]:
    """One flag an image of a pipeline's call (arguments by name): whether its prompt is on the list.

    () where none is: without a list, and where an argument beside the prompt could say what is generated (an image, latents, a
    negative prompt, embeddings, another text for a second encoder, and all that is not known to say nothing).
    """
    listed = set(map(normalised, allow))
    given = {name: value for name, value in call.items() if value is not None}
    prompts = given.get("prompt")
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if not listed or not isinstance(prompts, list | tuple) or not all(isinstance(text, str) for text in prompts):
        return ()
    for name, value in given.items():
        texts = [value] if isinstance(value, str) else value
        is_same = name in _PROMPTS and isinstance(texts, list | tuple) and list(texts) == list(prompts)
        if name not in _HARMLESS and not is_same and not _is_empty(value):
            return ()
    counts = [given.get(name, 1) for name in _COUNTS]
    if not all(isinstance(count, int) and count >= 1 for count in counts):
        return ()
    each = max(counts)
    flags = tuple(normalised(text) in listed for text in prompts for _ in range(each))
    return flags if any(flags) else ()


def _is_empty(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_empty, value))
    return isinstance(value, str | Mapping) and not value
