"""Greedy coordinate gradient towards the text embedding of the prompt, without its words.

Implements the text attack of "MMA-Diffusion" (arXiv:2311.17516): min 1 - cos(pooled(tokens), pooled(prompt)) by the greedy
coordinate gradient of arXiv:2307.15043; each step takes the gradient by the one-hot vectors, swaps one token at a time for one
of the best k at its place, and keeps the best text.
Deviations: a worse text is never taken over, and each place uses its own gradient (`is_faithful` takes the best candidate even
where it is worse, and its left neighbour's gradient, as released); candidates are scored as they are read again from their text,
so that what is found can be typed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from saferedir.attacks.base import Attack, AttackConfig, Candidate, Proposals
from saferedir.attacks.embeddings.search import first_text_encoder
from saferedir.attacks.text.wording import pooled, random_tokens
from saferedir.prompts.sets import PromptItem
from saferedir.target import SoftPrompt, Target, Vocabulary


@dataclass(frozen=True)
class GreedyCoordinateConfig(AttackConfig):
    """Settings of the greedy coordinate gradient.

    Attributes:
        steps: of the search.
        tokens: length of the text.
        top_k: tokens to choose from at each place.
        candidates: swaps tried a step.
        forbidden: texts that no token may hold; None for the words of the prompt.
        is_faithful: the released code's slips: worse texts are taken over, and places use their left neighbour's gradient.
        checkpoint: every how many steps the text is judged.
    """

    steps: int = 10
    tokens: int = 8
    top_k: int = 16
    candidates: int = 32
    forbidden: tuple[str, ...] | None = None
    is_faithful: bool = False
    checkpoint: int = 5
    paper: ClassVar[dict[str, Any]] = {"steps": 1000, "tokens": 20, "top_k": 256, "candidates": 512, "checkpoint": 100}

    def __post_init__(self) -> None:
        self.require_whole("steps", at_least=0)
        self.require_whole("tokens", "top_k", "candidates", "checkpoint", at_least=1)
        self.require_flag("is_faithful")

    def to_dict(self) -> dict[str, Any]:
        """Plain data; forbidden words are counted, not named."""
        return {**super().to_dict(), "forbidden": None if self.forbidden is None else len(self.forbidden)}


class GreedyCoordinate(Attack[GreedyCoordinateConfig]):
    """Searches a text with the meaning of the prompt and none of its words."""

    name: ClassVar[str] = "greedy-coordinate"
    config_class = GreedyCoordinateConfig

    def propose(self, target: Target, item: PromptItem, generator: torch.Generator) -> Proposals:
        """Every step of the search."""
        config, encoder = self.config, first_text_encoder(target)
        forbidden = item.text.split() if config.forbidden is None else config.forbidden
        vocabulary = Vocabulary(encoder, [word for word in forbidden if len(word) > 2])
        with torch.no_grad():
            wanted = pooled(encoder, encoder.ids([item.text]))
        ids = encoder.ids(vocabulary.texts(vocabulary.ids([random_tokens(vocabulary, config.tokens, generator)])))
        with torch.no_grad():
            loss = float(_distance(pooled(encoder, ids), wanted)[0])
        for step in range(config.steps + 1):
            is_last = step == config.steps
            text = vocabulary.texts(ids)[0]
            yield Candidate(text, loss=loss, is_checkpoint=is_last or (step > 0 and step % config.checkpoint == 0))
            if is_last:
                return
            swapped = self._swapped(target, vocabulary, ids, wanted, generator)
            with torch.no_grad():
                losses = _distance(pooled(encoder, swapped), wanted)
            best = int(losses.argmin())
            if config.is_faithful or float(losses[best]) < loss:
                ids, loss = swapped[best : best + 1], float(losses[best])

    def _swapped(
        self, target: Target, vocabulary: Vocabulary, ids: Tensor, wanted: Tensor, generator: torch.Generator
    ) -> Tensor:
        """(candidates, L) ids, each with one token swapped, as their texts are read."""
        config, encoder = self.config, vocabulary.text_encoder
        embeds = target.embed(ids).detach().requires_grad_(True)
        _distance(pooled(encoder, ids, SoftPrompt(ids, embeds)), wanted).sum().backward()
        assert embeds.grad is not None
        spots = encoder.words(ids)[0].nonzero()[:, 0]
        if not len(spots):  # what was written is read as nothing
            return encoder.ids(vocabulary.texts(vocabulary.ids([random_tokens(vocabulary, config.tokens, generator)])))
        sources = spots - 1 if config.is_faithful else spots
        slope = -(embeds.grad[0, sources].float() @ vocabulary.table.T)  # (spots, V), what a swap promises
        slope = slope.masked_fill(~vocabulary.allowed, -torch.inf)
        count = min(config.top_k, int(vocabulary.allowed.sum()))
        best = slope.topk(count, dim=1).indices
        rows = vocabulary.words(ids) * config.candidates
        rows = [list(row) for row in rows]
        for row in rows:
            spot = int(torch.randint(len(spots), (1,), generator=generator))
            row[spot] = int(best[spot, int(torch.randint(count, (1,), generator=generator))])
        read = encoder.ids(vocabulary.texts(vocabulary.ids(rows)))
        held = encoder.words(read) & ~vocabulary.allowed[read]  # a forbidden token, made by what stands side by side
        clean = read[~held.any(dim=1)]
        return clean if len(clean) else ids


def _distance(left: Tensor, right: Tensor) -> Tensor:
    """(N,) 1 - cosine."""
    return 1 - torch.cosine_similarity(left, right, dim=-1)
