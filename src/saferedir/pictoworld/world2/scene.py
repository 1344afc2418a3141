"""What an image of PictoWorld 2 contains: one or two items on a background, or a poster.

An item is an object (shape, colour, style) or a character. Images of a scene: renderer.py.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from saferedir.pictoworld.scene import BACKGROUNDS, COLOURS, SHAPES, STYLES
from saferedir.pictoworld.world2.characters import CHARACTERS, Character

RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE: Mapping[str, str] = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

SINGLE_RADIUS = (13.0, 18.0)  # pixels of the 64x64 image
PAIR_RADIUS = (10.5, 13.0)
SINGLE_JITTER = 4.0  # pixels from the centre, each axis
PAIR_OFFSET = 15.5  # pixels from the centre along the axis of the relation
PAIR_JITTER = 1.5
CHARACTER_SHARE = 0.3  # of all items
PAIR_SHARE = 0.5  # of all scenes


@dataclass(frozen=True)
class Item:
    """One thing in a scene: an object by shape, colour and style, or a character by name (then the three are "").

    Attributes:
        cx, cy: centre in pixels of the 64x64 image, y downwards.
        radius: half of the thing's extent in pixels.
    """

    shape: str = ""
    colour: str = ""
    style: str = ""
    character: str = ""
    cx: float = 32.0
    cy: float = 32.0
    radius: float = 16.0

    @property
    def is_character(self) -> bool:
        """Whether the item is a character and not an object."""
        return bool(self.character)

    @property
    def recipe(self) -> Character:
        """The parts of the character; `KeyError` for an object."""
        return CHARACTERS[self.character]

    def has(self, values: Mapping[str, str]) -> bool:
        """Whether every attribute named in `values` ("shape", "colour", "style", "character") has that value."""
        return all(getattr(self, name) == value for name, value in values.items())


@dataclass(frozen=True)
class Scene:
    """The content of one image: a background with one item, or with two and a relation.

    `items[0]` stands in `relation` to `items[1]` ("left of": the first item is on the left).
    """

    background: str
    items: tuple[Item, ...]
    relation: str = ""

    def __post_init__(self) -> None:
        if len(self.items) not in (1, 2) or (len(self.items) == 2) != (self.relation in RELATIONS):
            raise ValueError(
                f"A scene has one item and no relation, or two and one of {', '.join(RELATIONS)}; "
                f"got {len(self.items)} items and {self.relation!r}."
            )

    @property
    def is_pair(self) -> bool:
        """Whether the scene has two items."""
        return len(self.items) == 2

    def turned(self) -> Scene:
        """The same image described from its other item: items exchanged, the relation reversed."""
        if not self.is_pair:
            return self
        return replace(self, items=self.items[::-1], relation=OPPOSITE[self.relation])

    def in_reading_order(self) -> Scene:
        """The same image with the left or upper item first, so that two names of one image become equal."""
        return self.turned() if self.relation in ("right of", "below") else self

    def has(self, values: Mapping[str, str]) -> bool:
        """Whether the scene shows an item with these values; "background" is a value of the scene."""
        wanted = dict(values)
        background = wanted.pop("background", self.background)
        return background == self.background and any(item.has(wanted) for item in self.items)


def random_item(rng: random.Random, *, may_be_character: bool = True, **fixed: str) -> Item:
    """An item with independent attributes, half of the objects flat; `fixed` sets attributes.

    Every random number is sampled whatever is fixed, so that two calls from one state differ in the fixed values only.
    """
    is_character = rng.random() < CHARACTER_SHARE and may_be_character
    name = rng.choice(list(CHARACTERS))
    shape, colour = rng.choice(SHAPES), rng.choice(COLOURS)
    style = "flat" if rng.random() < 0.5 else rng.choice(STYLES[1:])
    if fixed.get("character") or (is_character and not fixed):
        return Item(character=fixed.get("character", name))
    values = {"shape": shape, "colour": colour, "style": style, **fixed}
    return Item(values["shape"], values["colour"], values["style"])


def random_scene(rng: random.Random, *, items: tuple[Item, ...] = (), background: str | None = None) -> Scene:
    """A random scene; `items` are what it must contain (place and size are sampled anew), `background` fixes that too."""
    is_pair = rng.random() < PAIR_SHARE if not items else len(items) == 2
    ground, relation = rng.choice(BACKGROUNDS), rng.choice(RELATIONS)
    chosen = items or tuple(random_item(rng) for _ in range(2 if is_pair else 1))
    ground = background or ground
    return placed(Scene(ground, chosen, relation if is_pair else ""), rng)


def placed(scene: Scene, rng: random.Random) -> Scene:
    """The scene with places and sizes sampled anew, as its relation says."""
    if not scene.is_pair:
        cx, cy = (32 + rng.uniform(-SINGLE_JITTER, SINGLE_JITTER) for _ in range(2))
        return replace(scene, items=(replace(scene.items[0], cx=cx, cy=cy, radius=rng.uniform(*SINGLE_RADIUS)),))
    sign = -1 if scene.relation in ("left of", "above") else 1
    items = []
    for item, side in zip(scene.items, (sign, -sign), strict=True):
        along = 32 + side * PAIR_OFFSET + rng.uniform(-PAIR_JITTER, PAIR_JITTER)
        across = 32 + rng.uniform(-2 * PAIR_JITTER, 2 * PAIR_JITTER)
        cx, cy = (along, across) if scene.relation in ("left of", "right of") else (across, along)
        items.append(replace(item, cx=cx, cy=cy, radius=rng.uniform(*PAIR_RADIUS)))
    return replace(scene, items=tuple(items))
