"""How long prompts are, by a pipeline's tokenizers: nothing is encoded.

`cut_prompts`: which prompts are longer than a text encoder of the pipeline reads, and by how much. diffusers cuts such prompts
with a note in its log; what stands behind the cut is never read. `token_counts`: how many tokens prompts have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from saferedir.pipelines.text_settings import named_arguments

_UNLIMITED = 100_000  # tokenizers without a limit say 1e30


class Cut(NamedTuple):
    """A text encoder that reads the first `read` of a prompt's `tokens` tokens, start and end included."""

    text_encoder: str
    tokens: int
    read: int


def cut_prompts(pipe: Any, prompts: Sequence[str], call: Mapping[str, Any] | None = None) -> list[list[Cut]]:
    """For each prompt the text encoders that do not read it to its end.

    Args:
        pipe: a diffusers pipeline of any family.
        prompts: as they are given to its call.
        call: more arguments of the call; `max_sequence_length` there counts.
    """
    encoders = _tokenizers(pipe, call or {})
    cuts = []
    for prompt in prompts:
        lengths = [(name, _count(tokenizer, before + prompt), limit) for name, tokenizer, limit, before in encoders]
        cuts.append([Cut(name, tokens, limit) for name, tokens, limit in lengths if tokens > limit])
    return cuts


def token_counts(pipe: Any, prompts: Sequence[str], call: Mapping[str, Any] | None = None) -> list[int] | None:
    """Tokens of each prompt, start and end included, at most as many as are read, before the pipeline pads them.

    None where it is not one tokenizer with a known limit that says so.
    """
    encoders = _tokenizers(pipe, call or {})
    if len(encoders) != 1:
        return None
    ((_, tokenizer, limit, before),) = encoders
    return [min(limit, _count(tokenizer, before + prompt)) for prompt in prompts]


def _count(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, truncation=False, verbose=False)["input_ids"])


def _tokenizers(pipe: Any, call: Mapping[str, Any]) -> list[tuple[str, Any, int, str]]:
    """(name of the text encoder, its tokenizer, tokens it reads, text that the pipeline puts before every prompt)."""
    tokenizers = []
    asked = call.get("max_sequence_length") or _default(pipe, "max_sequence_length")
    before = getattr(pipe, "system_prompt", None)  # Lumina 2 counts it
    before = f"{call.get('system_prompt') or before} <Prompt Start> " if isinstance(before, str) else ""
    for name, part in pipe.components.items():
        if not name.startswith("tokenizer") or not callable(part):
            continue
        part = getattr(part, "tokenizer", part)  # a processor takes images first
        limit = getattr(part, "model_max_length", None)
        is_clip = "clip" in type(part).__name__.lower()  # always to its own length
        if asked is not None and not is_clip:
            limit = asked
        if limit is not None and limit < _UNLIMITED:
            encoder = name.replace("tokenizer", "text_encoder")
            label = f"{encoder} ({type(pipe.components.get(encoder)).__name__})"
            tokenizers.append((label, part, int(limit), "" if is_clip else before))
    return tokenizers


def _default(pipe: Any, name: str) -> int | None:
    """The default of an argument of the pipeline's call, or of its `encode_prompt`."""
    for method in ("__call__", "encode_prompt"):
        entry = named_arguments(pipe, method).get(name)
        if entry is not None and isinstance(entry.default, int):
            return int(entry.default)
    return None
