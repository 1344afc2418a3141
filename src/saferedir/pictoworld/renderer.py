"""Renders scenes: vectorised, anti-aliased signed-distance rendering in torch.

One call renders a whole batch; everything is closed form, so truth is known exactly. Textures are aligned to the
4-pixel grid of the latent space, so that a small autoencoder can carry them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from saferedir.pictoworld.scene import IMAGE_SIZE, SHAPES, STYLES, Scene

COLOUR_RGB = {
    "red": (0.86, 0.10, 0.12),
    "orange": (0.98, 0.52, 0.08),
    "yellow": (0.99, 0.87, 0.10),
    "green": (0.05, 0.48, 0.16),
    "blue": (0.12, 0.27, 0.90),
    "purple": (0.52, 0.16, 0.66),
    "pink": (0.99, 0.55, 0.76),
    "brown": (0.45, 0.25, 0.10),
}
BACKGROUND_RGB = {
    "white": (0.97, 0.97, 0.97),
    "grey": (0.58, 0.59, 0.60),
    "sky": (0.60, 0.84, 0.98),
    "grass": (0.58, 0.84, 0.42),
    "night": (0.05, 0.06, 0.20),
    "sand": (0.86, 0.75, 0.52),
}


def _box(x: Tensor, y: Tensor, half_x: float, half_y: float) -> Tensor:
    dx, dy = x.abs() - half_x, y.abs() - half_y
    return torch.hypot(dx.clamp(min=0), dy.clamp(min=0)) + torch.maximum(dx, dy).clamp(max=0)


def _polygon(x: Tensor, y: Tensor, corners: Sequence[tuple[float, float]]) -> Tensor:
    """Signed distance to a simple polygon: nearest edge, sign by the winding (crossing) rule."""
    distance = torch.full_like(x, 1e9)
    sign = torch.ones_like(x)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
        along = ((wx * ex + wy * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        distance = torch.minimum(distance, torch.hypot(wx - ex * along, wy - ey * along))
        crosses = (ay > y) != (by > y)
        at = (bx - ax) * (y - ay) / (by - ay if by != ay else 1e-9) + ax
        sign = torch.where(crosses & (x < at), -sign, sign)
    return distance * sign


def _ngon(points: int, inner: float) -> list[tuple[float, float]]:
    """Corners of a star with `points` tips (inner radius `inner`), first tip upwards; y grows downwards."""
    count = 2 * points
    angle = [2 * torch.pi * i / count for i in range(count)]
    radius = [1.0 if i % 2 == 0 else inner for i in range(count)]
    return [
        (r * float(torch.sin(torch.tensor(a))), -r * float(torch.cos(torch.tensor(a))))
        for r, a in zip(radius, angle, strict=True)
    ]


_STAR = _ngon(5, 0.42)
_TRIANGLE = [(0.0, -0.95), (0.95, 0.72), (-0.95, 0.72)]


def _heart(x: Tensor, y: Tensor) -> Tensor:
    lobes = torch.minimum(
        torch.hypot(x - 0.46, y + 0.36) - 0.50,
        torch.hypot(x + 0.46, y + 0.36) - 0.50,
    )
    body = _polygon(x, y, [(-0.87, -0.10), (0.0, -0.45), (0.87, -0.10), (0.0, 0.95)])
    return torch.minimum(lobes, body)


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(x, y) - 1.0, 0.82 - torch.hypot(x - 0.50, y + 0.12))


SHAPE_SDF: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": lambda x, y: torch.hypot(x, y) - 0.95,
    "square": lambda x, y: _box(x, y, 0.82, 0.82),
    "triangle": lambda x, y: _polygon(x, y, _TRIANGLE),
    "star": lambda x, y: _polygon(x, y, _STAR),
    "heart": _heart,
    "cross": lambda x, y: torch.minimum(_box(x, y, 0.95, 0.32), _box(x, y, 0.32, 0.95)),
    "ring": lambda x, y: (torch.hypot(x, y) - 0.70).abs() - 0.26,
    "crescent": _crescent,
}


def pixel_centres() -> tuple[Tensor, Tensor]:
    """(x, y) of each pixel's centre, each (64, 64)."""
    axis = torch.arange(IMAGE_SIZE, dtype=torch.float32) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def coverage(scenes: Sequence[Scene]) -> Tensor:
    """Anti-aliased share of each pixel covered by the shape, (B, 64, 64) in [0, 1]."""
    x, y = pixel_centres()
    out = torch.empty(len(scenes), IMAGE_SIZE, IMAGE_SIZE)
    for shape in SHAPES:
        rows = [i for i, scene in enumerate(scenes) if scene.shape == shape]
        if not rows:
            continue
        cx, cy, radius = (
            torch.tensor([getattr(scenes[i], name) for i in rows]).view(-1, 1, 1) for name in ("cx", "cy", "radius")
        )
        distance = SHAPE_SDF[shape]((x - cx) / radius, (y - cy) / radius) * radius
        out[rows] = (0.5 - distance).clamp(0, 1)
    return out


def _texture(style: str) -> tuple[Tensor, Tensor, Tensor]:
    """(ink, shade, tint), each (64, 64): how much of the object's paint lies on a pixel, how bright it is, how much
    white is mixed in.
    """
    x, y = pixel_centres()
    ink, shade, tint = torch.ones_like(x), torch.ones_like(x), torch.zeros_like(x)
    if style == "pointillism":  # saturated dots on a pale wash
        shift = torch.where((y / 8).floor() % 2 == 0, 0.0, 4.0)
        distance = torch.hypot((x + shift) % 8 - 4, y % 8 - 4)
        tint = 0.72 * (distance - 2.9 + 0.5).clamp(0, 1)
    elif style == "striped":
        shade = torch.where(y % 8 < 4, 1.0, 0.45)
    elif style == "mosaic":
        grout = (x % 8 < 1) | (y % 8 < 1)
        odd = ((x / 8).floor() + (y / 8).floor()) % 2 == 1
        shade = torch.where(odd, 0.72, 1.0)
        ink = torch.where(grout, 0.15, 1.0)
    return ink, shade, tint


#: (ink, shade, tint) of each style, see `_texture`
TEXTURES = {style: _texture(style) for style in STYLES}


def render(scenes: Sequence[Scene]) -> Tensor:
    """Images of the scenes, (B, 3, 64, 64) float32 in [0, 1]."""
    return paint(scenes, coverage(scenes))


def paint(scenes: Sequence[Scene], alpha: Tensor) -> Tensor:
    """Images of the scenes whose coverage (B, 64, 64) is known: it depends on shape, place and radius only."""
    ink = torch.stack([TEXTURES[scene.style][0] for scene in scenes])
    shade = torch.stack([TEXTURES[scene.style][1] for scene in scenes])
    tint = torch.stack([TEXTURES[scene.style][2] for scene in scenes])[:, None]
    colour = torch.tensor([COLOUR_RGB[scene.colour] for scene in scenes])[:, :, None, None] * shade[:, None]
    colour = colour + (1 - colour) * tint
    ground = torch.tensor([BACKGROUND_RGB[scene.background] for scene in scenes])[:, :, None, None]
    weight = (alpha * ink)[:, None]
    return colour * weight + ground * (1 - weight)
