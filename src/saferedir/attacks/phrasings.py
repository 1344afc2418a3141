"""Static phrasings: the concept in other words that come with it (synonyms, descriptions, misspellings). No model is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from saferedir.attacks.base import Attack, AttackConfig
from saferedir.prompts.sets import ConceptPrompts, PromptSet


class Phrasings(Attack[AttackConfig]):
    """Every rephrased set of the concept, a cell each."""

    name: ClassVar[str] = "phrasings"

    def prompts(self, concept: ConceptPrompts) -> Mapping[str, PromptSet]:
        return concept.rephrased
