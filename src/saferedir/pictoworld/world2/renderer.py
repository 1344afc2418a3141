"""Renders PictoWorld 2: PictoWorld's shapes, paints and backgrounds, several things in one image, and characters.

Everything is closed form, so truth is known exactly. One call renders a batch, one thing at a time from back to front.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from saferedir.pictoworld.renderer import BACKGROUND_RGB, COLOUR_RGB, SHAPE_SDF, TEXTURES, pixel_centres
from saferedir.pictoworld.scene import IMAGE_SIZE
from saferedir.pictoworld.world2.characters import Character
from saferedir.pictoworld.world2.posters import Figure, Poster
from saferedir.pictoworld.world2.scene import Item, Scene

Sdf = Callable[[Tensor, Tensor], Tensor]
WHITE, INK = (0.98, 0.98, 0.98), (0.06, 0.05, 0.08)


def _ellipse(x: Tensor, y: Tensor, half_x: float, half_y: float) -> Tensor:
    """Signed distance to an ellipse, exact at its axes and close to it elsewhere."""
    length = torch.hypot(x / half_x, y / half_y)
    slope = torch.hypot(x / half_x**2, y / half_y**2).clamp(min=1e-6)
    return length * (length - 1) / slope


def _rounded_box(x: Tensor, y: Tensor, half: float, corner: float) -> Tensor:
    dx, dy = x.abs() - (half - corner), y.abs() - (half - corner)
    return torch.hypot(dx.clamp(min=0), dy.clamp(min=0)) + torch.maximum(dx, dy).clamp(max=0) - corner


HEAD_SDF: dict[str, Sdf] = {
    "round": lambda x, y: _ellipse(x, y, 0.72, 0.68),
    "square": lambda x, y: _rounded_box(x, y, 0.66, 0.14),
    "tall": lambda x, y: _ellipse(x, y, 0.52, 0.72),
    "wide": lambda x, y: _ellipse(x, y, 0.94, 0.54),
}
#: half extent of each head, across and up
_HEAD_EXTENT = {"round": (0.72, 0.68), "square": (0.66, 0.66), "tall": (0.52, 0.72), "wide": (0.94, 0.54)}
#: half width of each head where the ears stand, and the height of that place
_EAR_AT = {"round": (0.42, -0.48), "square": (0.44, -0.60), "tall": (0.30, -0.52), "wide": (0.52, -0.40)}


def _ear(kind: str, x: Tensor, y: Tensor) -> Tensor:
    """One ear that stands at the origin and points upwards."""
    if kind == "pointed":
        return torch.maximum((x.abs() + (y + 0.48) * -0.55 + 0.0) * 0.876, torch.maximum(y - 0.2, -(y + 0.55)))
    if kind == "round":
        return torch.hypot(x, y + 0.06) - 0.28
    if kind == "long":
        return _ellipse(x, y + 0.22, 0.15, 0.40)
    return torch.maximum(torch.hypot(x, y + 0.10) - 0.34, 0.26 - torch.hypot(x - 0.20, y + 0.16))  # curved: a horn


def _ears(character: Character, x: Tensor, y: Tensor) -> Tensor:
    across, height = _EAR_AT[character.head]
    return _ear(character.ears, x.abs() - across, y - height)


OUTLINE = 0.07  # width of a character's outline, in units of the radius
HEAD_DOWN = 0.26  # a head sits this much below the centre, so that the ears have room


def character_sdf(character: Character, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to a character with its outline, in units of the radius from its centre."""
    return torch.minimum(HEAD_SDF[character.head](x, y - HEAD_DOWN), _ears(character, x, y - HEAD_DOWN)) - OUTLINE


def _pattern(character: Character, x: Tensor, y: Tensor) -> Tensor:
    """Where a head has its second colour, as a signed distance in units of the radius."""
    half_x, half_y = _HEAD_EXTENT[character.head]
    kind = character.pattern
    if kind == "spotted":
        spots = [(-0.66, -0.30), (0.66, -0.26), (0.0, -0.70), (-0.50, 0.56), (0.50, 0.58)]
        return torch.stack([torch.hypot(x - a * half_x, y - b * half_y) - 0.17 for a, b in spots]).amin(0)
    if kind == "banded":
        return (y - 0.56 * half_y).abs() - 0.15
    if kind == "patched":  # one half of the face
        return x + 0.02
    return torch.full_like(x, 1.0)


def _blend(image: Tensor, alpha: Tensor, colour: Tensor) -> Tensor:
    """`colour` (B, 3) or (B, 3, H, W) over `image` (B, 3, H, W), `alpha` (B, H, W) in [0, 1]."""
    if colour.ndim == 2:
        colour = colour[:, :, None, None]
    return image + alpha[:, None] * (colour - image)


def _cover(distance: Tensor, radius: Tensor) -> Tensor:
    """Anti-aliased coverage of a signed distance in units of the radius."""
    return (0.5 - distance * radius).clamp(0, 1)


def paint_objects(image: Tensor, things: Sequence[Item | Figure]) -> Tensor:
    """Objects (shape, colour, style, centre, radius) over images (B, 3, 64, 64), one each."""
    x, y = pixel_centres()
    alpha = torch.empty(len(things), IMAGE_SIZE, IMAGE_SIZE)
    for shape in {thing.shape for thing in things}:
        rows = [i for i, thing in enumerate(things) if thing.shape == shape]
        cx, cy, radius = _geometry([things[i] for i in rows])
        alpha[rows] = _cover(SHAPE_SDF[shape]((x - cx) / radius, (y - cy) / radius), radius)
    ink, shade, tint = (torch.stack([TEXTURES[thing.style][part] for thing in things]) for part in range(3))
    colour = torch.tensor([COLOUR_RGB[thing.colour] for thing in things])[:, :, None, None] * shade[:, None]
    return _blend(image, alpha * ink, colour + (1 - colour) * tint[:, None])


def _geometry(things: Sequence[Item | Figure]) -> tuple[Tensor, Tensor, Tensor]:
    cx, cy, radius = (
        torch.tensor([float(getattr(thing, name)) for thing in things]).view(-1, 1, 1)
        for name in ("cx", "cy", "radius")
    )
    return cx, cy, radius


def paint_characters(image: Tensor, items: Sequence[Item]) -> Tensor:
    """Characters over images (B, 3, 64, 64), one each: ears, head, pattern, eyes, mouth."""
    x, y = pixel_centres()
    out = image.clone()
    for name in {item.character for item in items}:
        rows = [i for i, item in enumerate(items) if item.character == name]
        character = items[rows[0]].recipe
        cx, cy, radius = _geometry([items[i] for i in rows])
        u, v = (x - cx) / radius, (y - cy) / radius - HEAD_DOWN
        body, trim = (torch.tensor(COLOUR_RGB[c]).expand(len(rows), 3) for c in (character.colour, character.trim))
        white, black = (torch.tensor(c).expand(len(rows), 3) for c in (WHITE, INK))
        head, ears = HEAD_SDF[character.head](u, v), _ears(character, u, v)
        face = _blend(out[rows], _cover(torch.minimum(head, ears) - OUTLINE, radius), black)
        face = _blend(face, _cover(ears, radius), body)
        face = _blend(face, _cover(ears + 0.10, radius), trim)
        face = _blend(face, _cover(head, radius), body)
        face = _blend(face, _cover(torch.maximum(head, _pattern(character, u, v)), radius), trim)
        side = u.abs() - 0.27 if character.eyes == "two" else u
        size = 0.19 if character.eyes == "two" else 0.27
        face = _blend(face, _cover(torch.hypot(side, v + 0.08) - size, radius), white)
        face = _blend(face, _cover(torch.hypot(side, v + 0.08) - size / 2, radius), black)
        out[rows] = face
    return out


def _grounds(backgrounds: Sequence[str]) -> Tensor:
    colours = torch.tensor([BACKGROUND_RGB[name] for name in backgrounds])
    return colours[:, :, None, None].expand(-1, -1, IMAGE_SIZE, IMAGE_SIZE).clone()


def render(scenes: Sequence[Scene]) -> Tensor:
    """Images of the scenes, (B, 3, 64, 64) float32 in [0, 1]."""
    image = _grounds([scene.background for scene in scenes])
    for slot in range(2):
        for paint, is_character in ((paint_objects, False), (paint_characters, True)):
            rows = [
                i
                for i, scene in enumerate(scenes)
                if len(scene.items) > slot and scene.items[slot].is_character == is_character
            ]
            if rows:
                image[rows] = paint(image[rows], [scenes[i].items[slot] for i in rows])
    return image


def render_posters(posters: Sequence[Poster]) -> Tensor:
    """Images of posters or of their variants, (B, 3, 64, 64) float32 in [0, 1]."""
    image = _grounds([poster.background for poster in posters])
    for layer in range(max(len(poster.figures) for poster in posters)):
        rows = [i for i, poster in enumerate(posters) if len(poster.figures) > layer]
        image[rows] = paint_objects(image[rows], [posters[i].figures[layer] for i in rows])
    return image


def render_contents(contents: Sequence[Scene | Poster]) -> Tensor:
    """Images of scenes and posters in their order, (B, 3, 64, 64) in [0, 1]."""
    out = torch.empty(len(contents), 3, 64, 64)
    scenes = {i: content for i, content in enumerate(contents) if isinstance(content, Scene)}
    posters = {i: content for i, content in enumerate(contents) if isinstance(content, Poster)}
    if scenes:
        out[list(scenes)] = render(list(scenes.values()))
    if posters:
        out[list(posters)] = render_posters(list(posters.values()))
    return out
