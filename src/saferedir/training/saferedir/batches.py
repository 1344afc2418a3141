"""What a redirector is trained on, in memory, and how batches are sampled from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferedir.guards.saferedir.frames import LATENT_CLAMP, chosen_frames
from saferedir.guards.saferedir.layers import real_tokens
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.families import family_of
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
        alone_lengths = [_length_alone(pipe, pair, call) for pair in pairs]
        shown = {n for n, pair in zip(alone_lengths, pairs, strict=True) if pair.unsafe is not None}
        groups = [[p for n, p in zip(alone_lengths, pairs, strict=True) if n <= limit] for limit in sorted(shown)[:-1]]
        return replace(_encoded(pipe, pairs, call), others=tuple(_encoded(pipe, group, call) for group in groups))
    return _encoded(pipe, pairs, call)


def _length_alone(pipe: Any, pair: Pair, call: Mapping[str, Any] | None) -> int:
    """Tokens of the longer one of a pair's prompts, encoded in a batch of its own."""
    texts = [pair.safe] if pair.unsafe is None else [pair.safe, pair.unsafe]
    return int(encode_on_cpu(pipe, texts, call).prompt.shape[1])


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
    kept = (data.label.bool() == is_shown).nonzero()[:, 0]
    return ImageData(
        data.frames[kept],
        data.prompts.rows(kept),
        data.label[kept],
        data.t,
        None if data.scale is None else data.scale[kept],
    )


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


def image_batch(data: ImageData, count: int, generator: torch.Generator, final_share: float = 0.0) -> ImageBatch:
    """Random frames of random steps, shifted by at most one latent cell and slightly disturbed.

    `final_share` of them are the last frames of their runs, at the times of others: what a run looks like that begins with a
    finished image (inverted latents, image to image).
    """
    rows = torch.randint(len(data.frames), (count,), generator=generator)
    steps = torch.randint(len(data.t), (count,), generator=generator)
    shown = steps
    if final_share:
        shown = torch.where(torch.rand(count, generator=generator) < final_share, len(data.t) - 1, steps)
    frames = chosen_frames(data.frames[rows, shown], generator).float().clamp(-LATENT_CLAMP, LATENT_CLAMP)
    shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
    frames = torch.roll(frames, shifts=tuple(shift), dims=(-2, -1))
    frames = frames + 0.05 * torch.randn(frames.shape, generator=generator)
    return ImageBatch(frames, data.t[steps], data.prompts.rows(rows).floats, data.label[rows])
