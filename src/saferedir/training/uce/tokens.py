"""Which tokens of a prompt with the concept count, and which token of its counterpart each is to become.

Implements docs/methods/uce.md (2). A pair of prompts is one sentence twice, with the concept and with what replaces it. Tokens
before and after the part that differs have their counterparts by position; those of the part are spread over the other part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferedir.errors import GuardConfigError
from saferedir.guards.saferedir.layers import real_tokens
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.families import family_of
from saferedir.pipelines.text_encoders import make_text_encoders

TOKENS = ("all", "last")


class Row(NamedTuple):
    """A token of one prompt and its counterpart: positions, and whether it is the last of the part that differs."""

    position: int
    counterpart: int
    is_last: bool


class Segment(NamedTuple):
    """Tokens of one text encoder in prompt embeddings of L tokens: where they begin and end, and ids (N, ·) of all prompts.

    `lengths` (N,): tokens before the padding. `ids` is None where no text encoder of the family is known.
    """

    start: int
    stop: int
    lengths: Tensor
    ids: Tensor | None


def segments_of(pipe: Any, texts: Sequence[str], embeds: PromptEmbeds) -> list[Segment]:
    """The segments of N encoded prompts; one without ids for families of which no text encoder is known."""
    length = embeds.prompt.shape[1]
    segments: dict[int, Segment] = {}
    for encoder in make_text_encoders(pipe, family_of(pipe), length):
        if (
            encoder.tokens is not None and encoder.tokens.start not in segments
        ):  # two CLIPs side by side read the same ids
            ids = encoder.ids(texts).cpu()
            lengths = encoder.attended(ids).sum(1)
            segments[encoder.tokens.start] = Segment(encoder.tokens.start, encoder.tokens.stop, lengths, ids)
    if segments:
        return list(segments.values())
    return [Segment(0, length, real_tokens(embeds.prompt, embeds.mask).sum(1), None)]


def counterparts(unsafe: Sequence[int] | int, safe: Sequence[int] | int, size: int) -> list[Row]:
    """Rows of one pair in a segment of `size` tokens, from the ids of both, or from their lengths where ids are unknown."""
    n, m = (len(part) if isinstance(part, Sequence) else part for part in (unsafe, safe))
    before = behind = 0
    if isinstance(unsafe, Sequence) and isinstance(safe, Sequence):
        while before < min(n, m) and unsafe[before] == safe[before]:
            before += 1
        while behind < min(n, m) - before and unsafe[n - 1 - behind] == safe[m - 1 - behind]:
            behind += 1
    wide, narrow = n - before - behind, m - before - behind
    rows = []
    for position in range(size):
        if position < before:
            other = position
        elif position < before + wide:  # the part that differs; the first token behind it where nothing replaces it
            share = (position - before) / (wide - 1) if wide > 1 else 1.0  # the last one becomes the last
            other = before + round(share * (narrow - 1)) if narrow else min(before, size - 1)
        elif position < n:
            other = position - n + m
        else:  # padding
            other = min(position - n + m, size - 1)
        rows.append(Row(position, other, position == max(0, before + wide - 1)))
    return rows


def pair_rows(
    pipe: Any, unsafe: Sequence[str], safe: Sequence[str], both: PromptEmbeds, tokens: str
) -> list[list[Row]]:
    """Rows of N pairs, of all their tokens or of the last one of the part that differs; `both` (2N, ...): unsafe, then safe.

    Tokens that the denoiser never reads (masked padding) are left out.
    """
    count = len(unsafe)
    chosen: list[list[Row]] = [[] for _ in range(count)]
    for segment in segments_of(pipe, [*unsafe, *safe], both):
        if tokens == "last" and segment.ids is None:
            raise GuardConfigError(
                f"tokens='last' needs a text encoder whose tokens are known, and this {type(pipe).__name__} has none; take "
                "tokens='all'."
            )
        size = segment.stop - segment.start
        for number in range(count):
            sides: list[Any] = []
            for prompt in (number, number + count):
                n = int(segment.lengths[prompt])
                sides.append(n if segment.ids is None else segment.ids[prompt, :n].tolist())
            for row in counterparts(sides[0], sides[1], size):
                position, other = row.position + segment.start, row.counterpart + segment.start
                if (tokens == "all" or row.is_last) and is_read(both, number, position):
                    chosen[number].append(Row(position, other, row.is_last))
    return chosen


def is_read(embeds: PromptEmbeds, row: int, position: int) -> bool:
    """Whether the denoiser reads this token: everything without a mask, padding that is not zero included."""
    return embeds.mask is None or bool(embeds.mask[row, position])


def read_tokens(embeds: PromptEmbeds) -> Tensor:
    """(N, L) bool: tokens that the denoiser reads."""
    if embeds.mask is None:
        return torch.ones(embeds.prompt.shape[:2], dtype=torch.bool)
    return embeds.mask.bool().cpu()
