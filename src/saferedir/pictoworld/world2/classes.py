"""The sixteen classes of the class-conditional model: each a mixture of sub-populations with known shares.

Eight classes are shapes, whose sub-populations are colours; eight are families of characters, whose sub-populations are the four
members. A class says nothing of which sub-population an image shows: that is what a guard without words can forget.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from saferedir.pictoworld.scene import COLOURS, SHAPES
from saferedir.pictoworld.world2.characters import CHARACTERS
from saferedir.pictoworld.world2.scene import Item, Scene, random_item, random_scene

SHARES = (0.40, 0.25, 0.20, 0.15)  # of the four sub-populations of every class


@dataclass(frozen=True)
class ImageClass:
    """One class.

    Attributes:
        index: its label, 0 to 15. name: "ring", or "family 3".
        parts: sub-population -> share; a colour for a shape's class, a character's name for a family's.
    """

    index: int
    name: str
    shape: str
    parts: Mapping[str, float]

    def part_of(self, item: Item) -> str:
        """The sub-population that an item of this class belongs to; "" if it is of none."""
        value = item.colour if self.shape else item.character
        is_member = value in self.parts and (not self.shape or item.shape == self.shape)
        return value if is_member else ""


def _shape_class(index: int, shape: str) -> ImageClass:
    """Four colours of eight, so that every colour is the 20 % sub-population of one class."""
    colours = [COLOURS[(index + step) % len(COLOURS)] for step in (3, 5, 0, 1)]
    return ImageClass(index, shape, shape, dict(zip(colours, SHARES, strict=True)))


def _family_class(index: int, family: int) -> ImageClass:
    members = [character.name for character in CHARACTERS.values() if character.family == family]
    return ImageClass(index, f"family {family}", "", dict(zip(members, SHARES, strict=True)))


CLASSES: tuple[ImageClass, ...] = (
    *(_shape_class(index, shape) for index, shape in enumerate(SHAPES)),
    *(_family_class(len(SHAPES) + family, family) for family in range(8)),
)


def class_scene(label: int, rng: random.Random) -> Scene:
    """A random image of a class: one item of one of its sub-populations, on a random background."""
    chosen = CLASSES[label]
    part = rng.choices(list(chosen.parts), weights=list(chosen.parts.values()))[0]
    item = random_item(rng, shape=chosen.shape, colour=part) if chosen.shape else random_item(rng, character=part)
    return random_scene(rng, items=(item,))
