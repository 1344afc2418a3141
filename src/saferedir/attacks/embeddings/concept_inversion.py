"""Concept Inversion: one soft token that brings the concept back, learned from images of the bare model.

Implements the objective of "Circumventing Concept Erasure Methods For Text-to-Image Generative Models" (arXiv:2308.01508):
min over v of E ||eps - eps_guarded(x_t, t, c(v))||^2.
Deviations: learned for each prompt from the bare model's images of it; guided prediction matched to guided prediction for every
guard (the paper's form for guidance defences; "noise" is its form for edited weights); evaluations of the sampler in place of
all training timesteps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from saferedir.attacks.base import Attack, Proposals
from saferedir.attacks.embeddings.search import SoftConfig, first_text_encoder, search_embeds
from saferedir.errors import AttackError
from saferedir.prompts.sets import PromptItem
from saferedir.target import Target

#: stands for the soft token until it is replaced; a short word that most tokenizers have as one token
STAND_IN = "a"


@dataclass(frozen=True)
class ConceptInversionConfig(SoftConfig):
    """Settings of Concept Inversion.

    Attributes:
        template: the text around the soft tokens, with one "{}".
        tokens: number of soft tokens.
    """

    template: str = "an image of {}"
    tokens: int = 1
    paper: ClassVar[dict[str, Any]] = {
        "steps": 5000, "references": 25, "samples": 4, "learning_rate": 0.05, "weight_decay": 0.01, "checkpoint": 250,
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.template.count("{}") == 1, "template", 'a text with one "{}"')
        self.require_whole("tokens", at_least=1)


class ConceptInversion(Attack[ConceptInversionConfig]):
    """Optimises the embedding of one token through the guards."""

    name: ClassVar[str] = "concept-inversion"
    keeps_best: ClassVar[bool] = False
    is_adaptive: ClassVar[bool] = True
    config_class = ConceptInversionConfig

    def propose(self, target: Target, item: PromptItem, generator: torch.Generator) -> Proposals:
        """Every step of the search."""
        encoder, config = first_text_encoder(target), self.config
        stand_ins = " ".join([STAND_IN] * config.tokens)
        text = config.template.format(stand_ins)
        words = [int(encoder.words(encoder.ids([part])).sum()) for part in (text, *config.template.split("{}"))]
        count, before = words[0] - words[1] - words[2], words[1]
        if count < 1:
            raise AttackError(
                f"the template leaves no token to learn; it has {words[0]} of them, give another template."
            )
        positions = torch.arange(encoder.length)
        first = encoder.first_word + before
        yield from search_embeds(
            target, item, generator, config, text, (positions >= first) & (positions < first + count)
        )
