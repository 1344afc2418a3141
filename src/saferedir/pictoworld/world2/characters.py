"""The forty characters: invented mascots, each a fixed recipe of parts with a name and a description.

Ten families of four. The members of a family share every part but one, so each has three siblings that a guard for it
must leave alone.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

HEADS = ("round", "square", "tall", "wide")
EARS = ("pointed", "round", "long", "curved")
PATTERNS = ("plain", "spotted", "banded", "patched")
EYES = ("two", "one")
PART_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
VARIED = ("ears", "pattern", "colour", "head", "trim")  # family f varies VARIED[f % 5]

_FIRST = ("Mul", "Zep", "Kir", "Tav", "Lom", "Fip", "Nub", "Pel", "Rax", "Gof")
_LAST = ("do", "ka", "zin", "bo")


@dataclass(frozen=True)
class Character:
    """The parts of one character.

    Attributes:
        name: two invented syllables.
        family: 0 to 9; `varied` names the one part in which its four members differ.
        colour: of head and ears; `trim` of the pattern and of the inner ears. They are always different.
    """

    name: str
    family: int
    varied: str
    head: str
    ears: str
    pattern: str
    colour: str
    trim: str
    eyes: str

    def difference(self, other: Character) -> list[str]:
        """The parts in which two characters differ."""
        parts = ("head", "ears", "pattern", "colour", "trim", "eyes")
        return [part for part in parts if getattr(self, part) != getattr(other, part)]


def _names() -> list[str]:
    """Forty names in an order that says nothing of families."""
    names = [first + last for first in _FIRST for last in _LAST]
    random.Random("pictoworld-2/names").shuffle(names)
    return names


def _families() -> list[Character]:
    """Ten random recipes, four members each; recipes that come close to another family are sampled again."""
    rng = random.Random("pictoworld-2/characters")
    names = iter(_names())
    members: list[Character] = []
    choices: Mapping[str, tuple[str, ...]] = {
        "head": HEADS, "ears": EARS, "pattern": PATTERNS, "colour": PART_COLOURS, "trim": PART_COLOURS,
    }  # fmt: skip
    for family in range(10):
        varied = VARIED[family % len(VARIED)]
        while True:
            colour, trim = rng.sample(PART_COLOURS, 2)
            pattern = rng.choice(PATTERNS[1:])  # a plain head has no trim to tell members by
            base = Character(
                "", family, varied, rng.choice(HEADS), rng.choice(EARS), pattern, colour, trim, EYES[family % 2]
            )
            free = [v for v in choices[varied] if v not in ({trim} if varied == "colour" else {colour})]
            new = [replace(base, **dict[str, Any]({varied: value})) for value in rng.sample(free, 4)]
            if all(len(member.difference(other)) >= 3 for member in new for other in members):
                break
        members += [replace(member, name=next(names)) for member in new]
    return members


CHARACTERS: Mapping[str, Character] = {character.name: character for character in _families()}


def siblings(name: str) -> list[str]:
    """The three other members of a character's family."""
    family = CHARACTERS[name].family
    return [other.name for other in CHARACTERS.values() if other.family == family and other.name != name]
