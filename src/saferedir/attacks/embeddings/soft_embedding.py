"""Soft embeddings: every token of a prompt becomes a free vector, so that no text need stand behind what the encoder reads.

The objective of Concept Inversion (arXiv:2308.01508), with all tokens free instead of one: the strongest form of its channel.
Deviations: opening token fixed; matches the bare model's guided prediction for the prompt, so that it sees guards that act on
guidance; evaluations of the sampler in place of all training timesteps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from saferedir.attacks.base import Attack, Proposals
from saferedir.attacks.embeddings.search import SoftConfig, first_text_encoder, search_embeds
from saferedir.prompts.sets import PromptItem
from saferedir.target import Target


@dataclass(frozen=True)
class SoftEmbeddingConfig(SoftConfig):
    """Settings of soft embeddings.

    Attributes:
        start: text whose embeddings the search begins with; None for the prompt itself.
        tokens: "all" after the opening one, or "words" for those of the text.
    """

    start: str | None = None
    tokens: str = "all"
    paper: ClassVar[dict[str, Any]] = {
        "steps": 1000,
        "references": 25,
        "samples": 4,
        "learning_rate": 0.05,
        "checkpoint": 100,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_choice("tokens", ("all", "words"))


class SoftEmbedding(Attack[SoftEmbeddingConfig]):
    """Optimises the embeddings of all tokens through the guards."""

    name: ClassVar[str] = "soft-embedding"
    keeps_best: ClassVar[bool] = False
    is_adaptive: ClassVar[bool] = True
    config_class = SoftEmbeddingConfig

    def propose(self, target: Target, item: PromptItem, generator: torch.Generator) -> Proposals:
        """Every step of the search."""
        encoder, config = first_text_encoder(target), self.config
        text = item.text if config.start is None else config.start
        ids = encoder.ids([text])
        free = encoder.words(ids)[0] if config.tokens == "words" else torch.arange(ids.shape[1]) >= encoder.first_word
        yield from search_embeds(target, item, generator, config, text, free)
