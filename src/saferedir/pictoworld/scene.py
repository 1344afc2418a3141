"""What a PictoWorld image contains: attributes, their values, and random scenes.

Images of a scene: renderer.py; sentences about it: captions.py. A scene has five categorical attributes (shape,
colour, background, style, position) and a continuous size.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "crescent")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
BACKGROUNDS = ("white", "grey", "sky", "grass", "night", "sand")
STYLES = ("flat", "pointillism", "striped", "mosaic")
POSITIONS = ("centre", "left", "right", "top", "bottom")
SIZES = ("small", "medium", "large")

VALUES: Mapping[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "background": BACKGROUNDS,
    "style": STYLES,
    "position": POSITIONS,
    "size": SIZES,
}
JUDGED = ("shape", "colour", "background", "style", "position")

IMAGE_SIZE = 64

RADIUS_OF_SIZE = {"small": (11.5, 13.0), "medium": (13.5, 16.0), "large": (16.5, 19.0)}  # pixels
POSITION_OFFSET = 11.0  # pixels from the centre
CENTRE_OF_POSITION = {
    "centre": (32.0, 32.0),
    "left": (32.0 - POSITION_OFFSET, 32.0),
    "right": (32.0 + POSITION_OFFSET, 32.0),
    "top": (32.0, 32.0 - POSITION_OFFSET),
    "bottom": (32.0, 32.0 + POSITION_OFFSET),
}


@dataclass(frozen=True)
class Scene:
    """One image's content. `radius`, `cx`, `cy` are in pixels of the 64x64 image; the rest are names from `VALUES`."""

    shape: str
    colour: str
    background: str
    style: str
    position: str
    size: str
    radius: float
    cx: float
    cy: float

    def value(self, attribute: str) -> str:
        """The value of a categorical attribute by its name."""
        return str(getattr(self, attribute))

    def index(self, attribute: str) -> int:
        """Position of the attribute's value in `VALUES[attribute]`."""
        return VALUES[attribute].index(self.value(attribute))


def random_scene(rng: random.Random, **fixed: str) -> Scene:
    """A scene with independent attributes; half of all scenes are flat, 40 % are centred, 60 % of medium size."""
    values = {
        "shape": rng.choice(SHAPES),
        "colour": rng.choice(COLOURS),
        "background": rng.choice(BACKGROUNDS),
        "style": "flat" if rng.random() < 0.5 else rng.choice(STYLES[1:]),
        "position": "centre" if rng.random() < 0.4 else rng.choice(POSITIONS[1:]),
        "size": "medium" if rng.random() < 0.6 else rng.choice(("small", "large")),
    }
    values.update(fixed)
    x, y = CENTRE_OF_POSITION[values["position"]]
    radius = rng.uniform(*RADIUS_OF_SIZE[values["size"]])
    return Scene(**values, radius=radius, cx=x + rng.uniform(-1.5, 1.5), cy=y + rng.uniform(-1.5, 1.5))
