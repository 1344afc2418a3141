"""encode_prompts(pipe, texts): prompt embeddings as the pipeline itself would make them, for every family.

Used by `seam` (extra prompts) and by trainers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferedir.pipelines.families import family_of
from saferedir.pipelines.text_settings import named_arguments


class Encoded(NamedTuple):
    """Conditioning of N prompts: prompt (N, L, D), pooled (N, P) and mask (N, L), None where the family has none."""

    prompt: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Encoded:
        """`function` of every part that is there."""
        return Encoded(function(self.prompt), *(None if part is None else function(part) for part in self[1:]))

    def cat(self, *others: Encoded) -> Encoded:
        """All rows, those of `others` below; under a mask their lengths may differ."""
        prompt, pooled, mask = zip(self, *others, strict=True)
        if self.mask is None:
            return Encoded(torch.cat(prompt), cat_parts(pooled))
        return Encoded(cat_lengths(prompt), cat_parts(pooled), cat_lengths(mask))

    def rows(self, where: Any) -> Encoded:
        """The chosen rows of every part."""
        return self.map(lambda part: part[where])

    @property
    def floats(self) -> Encoded:
        """prompt and pooled in float32, mask as booleans."""
        pooled, mask = self.pooled, self.mask
        return Encoded(
            self.prompt.float(), None if pooled is None else pooled.float(), None if mask is None else mask.bool()
        )


def cat_parts(parts: Sequence[Tensor | None]) -> Tensor | None:
    """All rows of a part, or None where nobody has it."""
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def cat_lengths(parts: Sequence[Tensor]) -> Tensor:
    """All rows of embeddings (N, L, D) or masks (N, L) as long as the longest; the others end in zeros, for under a mask."""
    length = max(part.shape[1] for part in parts)
    missing = [part.new_zeros(part.shape[0], length - part.shape[1], *part.shape[2:]) for part in parts]
    return torch.cat(
        [torch.cat(pair, dim=1) if pair[1].shape[1] else pair[0] for pair in zip(parts, missing, strict=True)]
    )


def encode_prompts(pipe: Any, texts: Sequence[str], call: Mapping[str, Any] | None = None, batch: int = 64) -> Encoded:
    """Conditional embeddings of `texts`, in the pipeline's dtype and on its device; gradients flow where they can.

    Settings that `encode_prompt` shares with the pipeline's call (maximal length, cleaning, system prompt) have
    the call's defaults, or the values in `call`.
    """
    family = family_of(pipe)
    names = inspect.signature(pipe.encode_prompt).parameters
    defaults = named_arguments(pipe)
    empty = inspect.Parameter.empty
    settings: dict[str, Any] = {name: None for name, entry in names.items() if entry.default is empty}
    for name in names.keys() & defaults.keys():
        if defaults[name].default not in (empty, None):
            settings[name] = defaults[name].default
    settings |= dict(call or {})
    settings |= {"num_images_per_prompt": 1, "num_videos_per_prompt": 1, "do_classifier_free_guidance": False}
    settings |= {"device": pipe._execution_device}
    settings = {name: value for name, value in settings.items() if name in names and name != "prompt"}
    parts = []
    for start in range(0, len(texts), batch):
        answer = pipe.encode_prompt(prompt=list(texts[start : start + batch]), **settings)
        answer = answer if isinstance(answer, tuple) else (answer,)
        found = dict(zip(family.encoded, answer, strict=False))
        parts.append(Encoded(found["prompt"], found.get("pooled"), found.get("mask")))
    return parts[0].cat(*parts[1:])


def encode_to_length(pipe: Any, texts: Sequence[str], length: int, call: Mapping[str, Any] | None = None) -> Encoded:
    """The same, with L = `length` where the pipeline can choose it: as long as the prompts of a run under way."""
    found = encode_prompts(pipe, texts, call)
    missing = length - found.prompt.shape[1]
    name = "max_sequence_length"
    own = inspect.signature(pipe.encode_prompt).parameters.get(name)
    default = named_arguments(pipe).get(name, own)
    if not missing or default is None:
        return found
    given = (call or {}).get(name, default.default)
    return encode_prompts(pipe, texts, {**(call or {}), name: given + missing})
