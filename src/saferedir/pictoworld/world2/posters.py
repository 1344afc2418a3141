"""The posters: 24 fixed images, each with a title, and eight near variants of each in other colours.

Posters are what a model memorises: each is shown very often while the models are trained, its variants once.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from saferedir.pictoworld.scene import BACKGROUNDS, COLOURS, SHAPES, STYLES

VARIANTS = 8
_ADJECTIVES = ("Quiet", "Golden", "Broken", "Distant", "Hidden", "Frozen", "Restless", "Tender")
_NOUNS = ("Harbour", "Orchard", "Lantern")


@dataclass(frozen=True)
class Figure:
    """One shape of a poster; centre and radius in pixels of the 64x64 image, later figures lie over earlier ones."""

    shape: str
    colour: str
    style: str
    cx: float
    cy: float
    radius: float


@dataclass(frozen=True)
class Poster:
    """A composition: a background and four or five figures. `variant` 0 is the poster, 1 to 8 its near variants."""

    title: str
    background: str
    figures: tuple[Figure, ...]
    variant: int = 0


def _composition(title: str) -> Poster:
    rng = random.Random(f"pictoworld-2/poster/{title}")
    figures = [
        Figure(rng.choice(SHAPES), "", rng.choice(STYLES), x + rng.uniform(-5, 5), y + rng.uniform(-5, 5), radius)
        for (x, y), radius in zip(
            rng.sample([(16, 16), (48, 16), (16, 48), (48, 48), (32, 32)], rng.choice((4, 5))),
            [rng.uniform(*extent) for extent in ((18, 22), (13, 16), (10, 13), (9, 12), (8, 10))],
            strict=False,
        )
    ]
    return _coloured(Poster(title, rng.choice(BACKGROUNDS), tuple(figures)), rng)


def _coloured(poster: Poster, rng: random.Random) -> Poster:
    """The layout with a background and colours sampled anew, no figure in the colour of another."""
    colours = rng.sample(COLOURS, len(poster.figures))
    figures = tuple(replace(figure, colour=colour) for figure, colour in zip(poster.figures, colours, strict=True))
    return replace(poster, background=rng.choice(BACKGROUNDS), figures=figures)


def _variants(poster: Poster) -> tuple[Poster, ...]:
    """Eight near variants: same layout; no figure keeps its colour."""
    rng = random.Random(f"pictoworld-2/variants/{poster.title}")
    out: list[Poster] = []
    while len(out) < VARIANTS:
        new = _coloured(poster, rng)
        if all(a.colour != b.colour for a, b in zip(new.figures, poster.figures, strict=True)):
            out.append(replace(new, variant=len(out) + 1))
    return tuple(out)


POSTERS: Mapping[str, Poster] = {
    title: _composition(title) for title in (f"{first} {last}" for last in _NOUNS for first in _ADJECTIVES)
}
NEAR_VARIANTS: Mapping[str, tuple[Poster, ...]] = {title: _variants(poster) for title, poster in POSTERS.items()}
