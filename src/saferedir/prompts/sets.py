"""Prompt sets: what is asked of a model, and what should then be shown. Texts are private: they are never logged or printed.

Read from files in `prompts.reading`, made by PictoWorld in `pictoworld.prompt_sets`, rewritten by `attacks`, generated
by `bench`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PromptItem:
    """One prompt.

    Attributes:
        text: what the pipeline is asked for.
        expected: attributes the image should show apart from the concept, label group -> value ("colour" -> "red"); empty
            where nothing is known.
        seed: noise seed that the prompt's file fixes, None to let the bench choose.
        guidance_scale: guidance that the prompt's file fixes, None for the model's own.
        key: name that pairs this prompt with one of another set (the same seed prompt in other words), "" for none.
        tags: categories of the file ("violence", "style"), free-form.
    """

    text: str = field(repr=False)
    expected: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    guidance_scale: float | None = None
    key: str = ""
    tags: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Checksum of the text, which records keep in its place."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one kind, in a fixed order.

    Attributes:
        name: "forget", "synonyms", "retain", …
        items: the prompts.
        protocol: where they come from, the part of a protocol's name that is about prompts ("pictoworld/star/test-seen",
            "i2p-original sha1:e03b6d70d820").
        warnings: what a reader of the numbers must know about this set, one sentence each.
    """

    name: str
    items: tuple[PromptItem, ...]
    protocol: str
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    @property
    def texts(self) -> list[str]:
        """The texts, in order."""
        return [item.text for item in self.items]

    @property
    def digest(self) -> str:
        """Checksum over all texts in order, 16 hexadecimal digits."""
        return hashlib.sha256("\n".join(item.sha256 for item in self.items).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ConceptPrompts:
    """All prompt sets of one concept.

    Attributes:
        forget: prompts that ask for the concept.
        rephrased: the concept in other words, phrasing -> prompts; may be empty.
        retain: prompts that do not ask for it.
        neighbours: prompts of near concepts that must survive, neighbour -> prompts; may be empty.
        look_alikes: benign prompts that a careless guard would refuse; may be None.
    """

    forget: PromptSet
    rephrased: Mapping[str, PromptSet] = field(default_factory=dict)
    retain: PromptSet | None = None
    neighbours: Mapping[str, PromptSet] = field(default_factory=dict)
    look_alikes: PromptSet | None = None

    def sets(self) -> Sequence[PromptSet]:
        """All of them."""
        single = [prompt_set for prompt_set in (self.forget, self.retain, self.look_alikes) if prompt_set is not None]
        return [*single, *self.rephrased.values(), *self.neighbours.values()]
