"""No attack: the concept is asked for in the words it was given in. Every other attack is compared with this one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from saferedir.attacks.base import Attack, AttackConfig
from saferedir.prompts.sets import ConceptPrompts, PromptSet


class NoAttack(Attack[AttackConfig]):
    """The forget prompts as they are."""

    name: ClassVar[str] = "none"
    rung: ClassVar[str] = "none"

    def prompts(self, concept: ConceptPrompts) -> Mapping[str, PromptSet]:
        return {concept.forget.name: concept.forget}
