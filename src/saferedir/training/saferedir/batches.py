"""What a redirector is trained on, in memory, and how batches are sampled from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferedir.guards.saferedir.frames import LATENT_CLAMP, chosen_frames
from saferedir.guards.saferedir.layers import real_tokens
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.families import family_of
from saferedir.pipelines.text_lengths import token_counts
from saferedir.pipelines.text_settings import LENGTH
from saferedir.training.saferedir.dataset import Pair, encode_on_cpu


@dataclass(frozen=True)
class TextData:
    """Conditioning of one side of the split: unsafe and aligned safe prompts (P), and benign ones (N).

    `others`: the same prompts at other lengths, where a prompt's embeddings depend on the length it is padded to.
    """

    unsafe: PromptEmbeds
    safe: PromptEmbeds
    benign: PromptEmbeds
    others: tuple[TextData, ...] = ()

    @property
    def lengths(self) -> tuple[TextData, ...]:
        """The prompts at each length."""
        return (self, *self.others)


@dataclass(frozen=True)
class ImageData:
    """Frames (N, S, C, h, w), or (N, S, C, F, h, w) of videos, with one label, the guidance scale and the conditioning of one
    prompt an image, and the times (S,).
    """

    frames: Tensor
    prompts: PromptEmbeds
    label: Tensor
    t: Tensor
    scale: Tensor | None = None

    def rows(self, rows: Tensor) -> ImageData:
        """A copy with these images alone."""
        scale = None if self.scale is None else self.scale[rows]
        return ImageData(self.frames[rows], self.prompts.rows(rows), self.label[rows], self.t, scale)


def encode_text(
    pipe: Any, pairs: Sequence[Pair], call: Mapping[str, Any] | None = None, lengths: Sequence[int] = ()
) -> TextData:
    """Conditioning of the pairs' both sides and of the benign lines; at each of `lengths`, where there are some.

    Where prompts are as long as the longest of their batch, those that are shorter come at every length of a shorter batch, too.
    """
    if lengths:
        first, *others = (encode_text(pipe, pairs, {**(call or {}), LENGTH: length}) for length in lengths)
        return replace(first, others=tuple(others))
    if family_of(pipe).prompt_lengths == "longest":
        alone_lengths = _lengths_alone(pipe, pairs, call)
        shown = {n for n, pair in zip(alone_lengths, pairs, strict=True) if pair.unsafe is not None}
        groups = [[p for n, p in zip(alone_lengths, pairs, strict=True) if n <= limit] for limit in sorted(shown)[:-1]]
        return replace(_encoded(pipe, pairs, call), others=tuple(_encoded(pipe, group, call) for group in groups))
    return _encoded(pipe, pairs, call)


def _lengths_alone(pipe: Any, pairs: Sequence[Pair], call: Mapping[str, Any] | None) -> list[int]:
    """Length of each pair's longer prompt as the pipeline pads it in a batch of its own.

    A prompt of more tokens is never padded to fewer, so by the tokenizer's counts a few prompts are encoded for all; each is
    where no tokenizer counts.
    """
    texts = [[pair.safe] if pair.unsafe is None else [pair.safe, pair.unsafe] for pair in pairs]

    def padded_length(some: Sequence[str]) -> int:
        return int(encode_on_cpu(pipe, some, call).prompt.shape[1])

    counts = token_counts(pipe, [text for some in texts for text in some], call)
    if counts is None:
        return [padded_length(some) for some in texts]
    rest = iter(counts)
    longest = [max((next(rest), text) for text in some) for some in texts]
    text_of = dict(longest)
    lengths = _by_bisection(sorted(text_of), lambda count: padded_length([text_of[count]]))
    return [lengths[count] for count, _ in longest]


def _by_bisection(arguments: Sequence[int], function: Callable[[int], int]) -> dict[int, int]:
    """Values of a function that never falls at increasing arguments; between two of one value it is not asked."""
    values: dict[int, int] = {}

    def fill(low: int, high: int) -> None:
        for index in (low, high):
            if arguments[index] not in values:
                values[arguments[index]] = function(arguments[index])
        if values[arguments[low]] == values[arguments[high]]:
            values.update(dict.fromkeys(arguments[low : high + 1], values[arguments[low]]))
        elif high - low > 1:
            middle = (low + high) // 2
            fill(low, middle)
            fill(middle, high)

    if arguments:
        fill(0, len(arguments) - 1)
    return values


def _encoded(pipe: Any, pairs: Sequence[Pair], call: Mapping[str, Any] | None) -> TextData:
    """Conditioning of the pairs' both sides and of the benign lines, all of one length."""
    paired = [pair for pair in pairs if pair.unsafe is not None]
    alone = [pair.safe for pair in pairs if pair.unsafe is None]
    safe_texts, unsafe_texts = [pair.safe for pair in paired], [str(pair.unsafe) for pair in paired]
    if not family_of(pipe).has_set_lengths:  # in one piece, for all of them to be of one length
        every = encode_on_cpu(pipe, [*unsafe_texts, *safe_texts, *alone], call)
        count = len(paired)
        unsafe, safe, benign = (
            every.rows(rows) for rows in (slice(count), slice(count, 2 * count), slice(count, None))
        )
        return TextData(unsafe, safe, benign)
    texts = [safe_texts, unsafe_texts, *([alone] if alone else [])]
    sides = [encode_on_cpu(pipe, side, call) for side in texts]
    if any(side.mask is not None for side in sides):  # of zeros that pad; a side without any of them has no mask
        sides = [side._replace(mask=real_tokens(side.prompt, side.mask)) for side in sides]
    safe, unsafe, *rest = sides
    return TextData(unsafe, safe, safe.cat(*rest) if rest else safe)


def correctly_labelled(data: ImageData, is_shown: Tensor) -> ImageData:
    """The images whose label agrees with what they show, is_shown (N,) bool: a model generates concepts unasked, and fails to."""
    return data.rows((data.label.bool() == is_shown).nonzero()[:, 0])


class TextBatch(NamedTuple):
    """Prompts, what they should become, and label (B,): 1 asks for the concept."""

    given: PromptEmbeds
    wanted: PromptEmbeds
    label: Tensor

    def to(self, device: Any) -> TextBatch:
        """A copy on another device."""
        given, wanted = (side.map(lambda part: part.to(device)) for side in self[:2])
        return TextBatch(given, wanted, self.label.to(device))


def text_batch(data: TextData, count: int, generator: torch.Generator) -> TextBatch:
    """Half unsafe rows with their safe targets, half benign rows whose target is themselves."""
    i = torch.randint(len(data.unsafe.prompt), (count // 2,), generator=generator)
    j = torch.randint(len(data.benign.prompt), (count - count // 2,), generator=generator)
    benign = data.benign.rows(j)
    return TextBatch(
        data.unsafe.rows(i).cat(benign).floats,
        data.safe.rows(i).cat(benign).floats,
        torch.cat([torch.ones(len(i)), torch.zeros(len(j))]),
    )


class ImageBatch(NamedTuple):
    """Frames (B, C, h, w) at times t (B,), their prompts, and label (B,): 1 shows the concept."""

    frames: Tensor
    t: Tensor
    prompts: PromptEmbeds
    label: Tensor

    def to(self, device: Any) -> ImageBatch:
        """A copy on another device."""
        prompts = self.prompts.map(lambda part: part.to(device))
        return ImageBatch(self.frames.to(device), self.t.to(device), prompts, self.label.to(device))


def image_batch(
    data: ImageData,
    count: int,
    generator: torch.Generator,
    final_share: float = 0.0,
    *,
    among: Tensor | None = None,
) -> ImageBatch:
    """Random frames of random steps, shifted by at most one latent cell and slightly disturbed.

    `final_share` of them are the last frames of their runs, at the times of others: what a run looks like that begins with a
    finished image (inverted latents, image to image). `among`: the rows (R,) to sample from; None for all.
    """
    rows = torch.randint(max(1, len(data.frames if among is None else among)), (count,), generator=generator)
    rows = rows if among is None else among[rows]
    steps = torch.randint(len(data.t), (count,), generator=generator)
    shown = steps
    if final_share:
        shown = torch.where(torch.rand(count, generator=generator) < final_share, len(data.t) - 1, steps)
    frames = chosen_frames(data.frames[rows, shown], generator).float().clamp(-LATENT_CLAMP, LATENT_CLAMP)
    shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
    frames = torch.roll(frames, shifts=tuple(shift), dims=(-2, -1))
    frames = frames + 0.05 * torch.randn(frames.shape, generator=generator)
    return ImageBatch(frames, data.t[steps], data.prompts.rows(rows).floats, data.label[rows])
