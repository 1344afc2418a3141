"""Attack: proposes what to generate. The bench generates and judges it; an attack never decides its own success.

One attack, one file; their names: registry.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from saferedir.prompts.sets import ConceptPrompts, PromptSet


class Attack(ABC):
    """Base class.

    Class attributes: `name` in the registry and in records; `knowledge`, what the attacker knows (T1 nothing but returned
    images, T2 any argument of the API, T3 white box, T3g grey box); `channel`, what is sent ("text", "embeddings",
    "latents", "image"); `rung` of the ladder ("none", "static", "transfer", "adaptive", …).
    """

    name: ClassVar[str] = ""
    knowledge: ClassVar[str] = "T1"
    channel: ClassVar[str] = "text"
    rung: ClassVar[str] = "static"

    @abstractmethod
    def prompts(self, concept: ConceptPrompts) -> Mapping[str, PromptSet]:
        """Prompts to generate, by phrasing; each set is a cell of its own. Empty where the attack has nothing to offer for this
        concept.
        """
