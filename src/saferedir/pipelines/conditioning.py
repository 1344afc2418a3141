"""PromptEmbeds and Conditioning: what a denoiser is given of the prompts, in the one form that the whole library uses.

Pure tensors. `denoiser_call` reads them from a call and writes them into one, `encoding` makes them of texts, guards edit them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferedir.utils.writes import writes_of


class PromptEmbeds(NamedTuple):
    """Embeddings of N prompts.

    Attributes:
        prompt: (N, L, D), one embedding a token.
        pooled: (N, P), one embedding a prompt; None where the family has none.
        mask: (N, L), true or 1 at the prompt's own tokens, 0 at padding; None where the denoiser attends to every token.

    Example:
        >>> import torch
        >>> from saferedir.guard import PromptEmbeds
        >>> embeds = PromptEmbeds(torch.zeros(2, 77, 768))
        >>> embeds.cat(embeds).prompt.shape
        torch.Size([4, 77, 768])
    """

    prompt: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> PromptEmbeds:
        """`function` of every part that is there."""
        return PromptEmbeds(function(self.prompt), *(None if part is None else function(part) for part in self[1:]))

    def cat(self, *others: PromptEmbeds) -> PromptEmbeds:
        """All rows, those of `others` below; under a mask their lengths may differ."""
        prompt, pooled, mask = zip(self, *others, strict=True)
        if self.mask is None:
            return PromptEmbeds(torch.cat(prompt), cat_parts(pooled))
        return PromptEmbeds(cat_lengths(prompt), cat_parts(pooled), cat_lengths(mask))

    def rows(self, where: Any) -> PromptEmbeds:
        """The chosen rows of every part."""
        return self.map(lambda part: part[where])

    def is_same(self, other: PromptEmbeds) -> bool:
        """Whether every part is the very same object."""
        return self.prompt is other.prompt and self.pooled is other.pooled and self.mask is other.mask

    @property
    def writes(self) -> tuple[int, ...]:
        """How often each part was written to in place; tensors made for inference alone do not count."""
        return writes_of(self)

    @property
    def floats(self) -> PromptEmbeds:
        """prompt and pooled in float32, mask as booleans."""
        pooled, mask = self.pooled, self.mask
        return PromptEmbeds(
            self.prompt.float(), None if pooled is None else pooled.float(), None if mask is None else mask.bool()
        )


class Conditioning(NamedTuple):
    """What one denoiser call is given for B images: embeddings of the prompts and of the negative prompts.

    Attributes:
        cond: the prompts' embeddings, (B, ...).
        uncond: those of the negative prompts, (B, ...); None without classifier-free guidance, and where they come in a
            later call.

    Example:
        >>> import torch
        >>> from saferedir.guard import Conditioning, PromptEmbeds
        >>> given = Conditioning(PromptEmbeds(torch.ones(1, 77, 768)))
        >>> edited = given.with_cond(prompt=torch.zeros(1, 77, 768))
        >>> edited.cond.prompt.sum().item(), edited.uncond is given.uncond
        (0.0, True)
    """

    cond: PromptEmbeds
    uncond: PromptEmbeds | None = None

    def with_cond(self, **parts: Any) -> Conditioning:
        """This conditioning with other parts of `cond`; all other parts are the same objects."""
        return self._replace(cond=self.cond._replace(**parts))

    def with_uncond(self, **parts: Any) -> Conditioning:
        """This conditioning with other parts of `uncond`; unchanged where there is none."""
        return self if self.uncond is None else self._replace(uncond=self.uncond._replace(**parts))


def cat_parts(parts: Sequence[Tensor | None]) -> Tensor | None:
    """All rows of a part, or None where none has it."""
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


def cat_lengths(parts: Sequence[Tensor]) -> Tensor:
    """All rows of embeddings (N, L, D) or masks (N, L) as long as the longest; the others end in zeros, for under a mask."""
    if len(parts) == 1:
        return parts[0]
    length = max(part.shape[1] for part in parts)
    return torch.cat([lengthened(part, length) for part in parts])


def lengthened(part: Tensor, length: int) -> Tensor:
    """Embeddings (N, L, D) or masks (N, L) with zeros at their end, L = `length`; `part` itself if it is as long."""
    missing = length - part.shape[1]
    return torch.cat([part, part.new_zeros(len(part), missing, *part.shape[2:])], dim=1) if missing else part


def cat_widths(parts: Sequence[Tensor]) -> Tensor:
    """The tokens of embeddings (N, L, D), one sequence after the other, as wide as the widest; the others end in zeros."""
    width = max(part.shape[2] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[2])) for part in parts], dim=1)


def flat_layers(prompt: Tensor) -> Tensor:
    """(N, L, K * D) of embeddings (N, L, K, D), K states a token; embeddings (N, L, D) themselves."""
    return prompt.flatten(2) if prompt.ndim == 4 else prompt


def no_prompt(rows: Tensor) -> PromptEmbeds:
    """The embeddings of prompts without a token, (N, 0, 1), one for each row of `rows`: families that read no text."""
    return PromptEmbeds(rows.new_zeros(rows.shape[0], 0, 1))
