"""Prompts that a policy has a SafeRedir guard redirect to in place of what it learned.

Encoded once, by the pipeline that the guard is attached to. Shapes: prompt embeddings (N, L, D), N anchors; pooled (N, P).
Deviation from arXiv:2601.08623, which knows no such anchor: the embeddings of the whole prompt give way to the anchor's, as at
the last level of escalation (docs/methods/saferedir.md), from the first step on that a verdict fires in.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor

from saferedir.errors import GuardConfigError, GuardError
from saferedir.guards.saferedir.layers import real_tokens
from saferedir.guards.saferedir.redirect import match_length
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.utils.broadcast import per_sample
from saferedir.utils.names import unknown_name_message


class Anchors(NamedTuple):
    """Conditioning of N anchors.

    Attributes:
        prompt: (N, L, D), the last real token of each in place of its padding.
        pooled: (N, P), None where the family has none.
    """

    prompt: Tensor
    pooled: Tensor | None

    @classmethod
    def of(cls, embeds: PromptEmbeds) -> Self:
        """As an encoder made them; GuardError for values that are not finite."""
        parts = [part for part in (embeds.prompt, embeds.pooled) if part is not None]
        if not bool(torch.stack([torch.isfinite(part).all() for part in parts]).all()):
            raise GuardError(
                "the text encoder makes values that are not finite of the policy's anchors; use another dtype."
            )
        real = embeds._replace(mask=real_tokens(embeds.prompt, embeds.mask))
        return cls(without_padding(real, zeros_are_read=embeds.mask is None), embeds.pooled)

    def in_place(
        self, given: PromptEmbeds, weight: Tensor, index: Tensor | None = None, *, is_hard: bool = True
    ) -> PromptEmbeds:
        """Conditional embeddings of B prompts with anchors in their place; the padding that their mask hides stays.

        Args:
            given: of the prompts, (B, ...).
            weight: (B,) gate in [0, 1], rows above 0 give way.
            index: (B,) which anchor; None for the first.
            is_hard: whether rows of weight 0 keep every bit; else the gradient goes through them, too.
        """
        where = torch.zeros_like(weight, dtype=torch.long) if index is None else index.to(weight.device)

        def moved(old: Tensor, new: Tensor, rows: Tensor) -> Tensor:
            new = new.to(old)[where]
            return torch.where(rows > 0, new, old) if is_hard else old + rows.to(old) * (new - old)

        length = given.prompt.shape[1]
        anchors = torch.stack([match_length(anchor, length) for anchor in self.prompt])
        rows = per_sample(weight, given.prompt)
        if given.mask is not None:
            rows = rows * given.mask.bool()[..., None]
        prompt = moved(given.prompt, anchors, rows)
        pooled = given.pooled
        if pooled is not None and self.pooled is not None:
            pooled = moved(pooled, self.pooled, per_sample(weight, pooled))
        return given._replace(prompt=prompt, pooled=pooled)


def checked_anchors(anchors: str | Mapping[str, str], concepts: Collection[str], title: str) -> dict[str, str]:
    """Concept -> anchor; one text stands for all concepts. GuardConfigError for an unknown concept, or an empty prompt."""
    given = dict.fromkeys(concepts, anchors) if isinstance(anchors, str) else dict(anchors)
    for name, text in given.items():
        if name not in concepts:
            raise GuardConfigError(unknown_name_message(f"concept in {title}", name, sorted(concepts)))
        if not isinstance(text, str) or not text.strip():
            raise GuardConfigError(f"the anchor of {name!r} in {title} is {text!r}; expected a prompt.")
    return given


def without_padding(prompts: PromptEmbeds, *, zeros_are_read: bool = True) -> Tensor:
    """Embeddings (N, L, D) with each prompt's last real token in place of its padding.

    A denoiser goes on reading through the mask of the prompt it was given. In a longer prompt's place a shorter one would
    show padding, which nothing was trained to read there; its end once more says nothing new. Padding of zeros stays: such
    denoisers (Wan's) have no mask and read it. Not so with `zeros_are_read=False`, where the zeros are only there to make
    prompts of unlike lengths one tensor.
    """
    if prompts.mask is None:
        return prompts.prompt
    real = prompts.mask.bool()
    last = (real * torch.arange(real.shape[1], device=real.device)).amax(dim=1)
    ends = prompts.prompt[torch.arange(len(real), device=real.device), last]
    kept = real | ~real_tokens(prompts.prompt) if zeros_are_read else real
    return torch.where(kept[..., None], prompts.prompt, ends[:, None])
