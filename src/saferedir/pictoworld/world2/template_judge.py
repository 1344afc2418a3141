"""A second judge of PictoWorld 2 without learning: analysis by synthesis against the renderer, item by item.

It confirms what the CNN claims: an attack that fools a network has no reason to fool this one too. Some tenths of a second
an image, so it is used for checks.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from saferedir.pictoworld.renderer import BACKGROUND_RGB, SHAPE_SDF, pixel_centres
from saferedir.pictoworld.scene import COLOURS, IMAGE_SIZE, STYLES
from saferedir.pictoworld.world2.characters import CHARACTERS
from saferedir.pictoworld.world2.judgement import Judgement
from saferedir.pictoworld.world2.renderer import Sdf, character_sdf, paint_characters, paint_objects
from saferedir.pictoworld.world2.scene import Item, Scene

_COVERED = (0.12, 0.22)  # distance from the background colour of an item's pixels: absolute, share of the largest
_EDGE = 2  # pixels of an item's outermost row or column
_FEWEST = 12  # pixels of an item
_GAP = range(27, 37)  # where the gap between two items lies
_RADII = (-1.0, 0.0, 1.0)  # pixels, around what an item's extent says
_SHIFTS = (-1.0, 0.0, 1.0)
_REFINED = 5  # candidates whose geometry is refined
_NEAR = (-0.6, 0.0, 0.6)  # pixels
_BROKEN_RESIDUAL = 0.03  # mean squared error per channel over an item's neighbourhood
_GROUNDS = torch.tensor(list(BACKGROUND_RGB.values()))


@dataclass(frozen=True)
class _Silhouette:
    """One outline: a shape's, or that of the characters with one head and one kind of ears.

    Attributes:
        extent: left, right, top, bottom in units of the radius.
    """

    sdf: Sdf
    shape: str
    characters: tuple[str, ...]
    extent: tuple[float, float, float, float]

    def coverage(self, cx: Tensor, cy: Tensor, radius: Tensor) -> Tensor:
        """Share of each pixel covered, (N, 64, 64), for N centres and radii."""
        x, y = pixel_centres()
        cx, cy, radius = (value.view(-1, 1, 1) for value in (cx, cy, radius))
        return (0.5 - self.sdf((x - cx) / radius, (y - cy) / radius) * radius).clamp(0, 1)


def _extent(sdf: Sdf) -> tuple[float, float, float, float]:
    axis = torch.linspace(-1.5, 1.5, 601)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    inside = sdf(x, y) < 0
    across, down = axis[inside.any(dim=0)], axis[inside.any(dim=1)]
    return float(across[0]), float(across[-1]), float(down[0]), float(down[-1])


@functools.cache
def _silhouettes() -> tuple[_Silhouette, ...]:
    out = [_Silhouette(sdf, shape, (), _extent(sdf)) for shape, sdf in SHAPE_SDF.items()]
    by_outline: dict[tuple[str, str], list[str]] = {}
    for name, character in CHARACTERS.items():
        by_outline.setdefault((character.head, character.ears), []).append(name)
    for names in by_outline.values():
        sdf = functools.partial(character_sdf, CHARACTERS[names[0]])
        out.append(_Silhouette(sdf, "", tuple(names), _extent(sdf)))
    return tuple(out)


def _gap(covered: Tensor) -> int | None:
    """The middle of the empty columns of a (64, 64) mask that part two items, or None; one alone is grout of a mosaic."""
    columns = covered.sum(dim=0)
    empty = [x for x in _GAP if columns[x] == columns[x - 1] == 0]
    if not empty:
        return None
    middle = empty[len(empty) // 2]
    return middle if min(int(columns[:middle].sum()), int(columns[middle:].sum())) >= _FEWEST else None


def _regions(covered: Tensor) -> tuple[str, list[Tensor]]:
    """The relation and the (64, 64) region of each item, in reading order."""
    for relation, mask in (("left of", covered), ("above", covered.T)):
        gap = _gap(mask)
        if gap is not None:
            first = torch.zeros_like(mask)
            first[:, :gap] = True
            region = first if relation == "left of" else first.T
            return relation, [region, ~region]
    return "", [torch.ones_like(covered)]


class TemplateJudge:
    """Finds the renderer's scene that explains an image best.

    The gap between two items says where each is. An item's extent and outline give the `top` best geometries by
    correlation with "unlike the background"; shape, colour and style, or the character, are those of the full render with
    the smallest squared error.
    """

    def __init__(self, top: int = 10) -> None:
        self.top = top

    @torch.no_grad()
    def judge(self, images: Tensor) -> Judgement:
        """Judge (B, 3, h, w) images in [0, 1]; `broken` is 0 or 1. Images of another size are scaled to 64 pixels."""
        if images.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
            images = interpolate(images, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True)
        scenes, broken = zip(*(self._scene(image) for image in images), strict=True)
        return Judgement(tuple(scenes), torch.tensor(broken).float())

    def _scene(self, image: Tensor) -> tuple[Scene | None, bool]:
        border = torch.cat([image[:, :3].flatten(1), image[:, -3:].flatten(1)], dim=1).median(dim=1).values
        index = int(torch.cdist(border[None], _GROUNDS).argmin())
        unlike = torch.linalg.vector_norm(image - border[:, None, None], dim=0)
        covered = unlike > max(_COVERED[0], _COVERED[1] * float(unlike.flatten().quantile(0.98)))
        relation, regions = _regions(covered)
        if any(int((covered & region).sum()) < _FEWEST for region in regions):
            return None, True
        fits = [self._item(image, _GROUNDS[index], unlike * region, covered & region, region) for region in regions]
        scene = Scene(list(BACKGROUND_RGB)[index], tuple(item for item, _ in fits), relation)
        return scene, max(error for _, error in fits) > _BROKEN_RESIDUAL

    def _item(
        self, image: Tensor, ground: Tensor, unlike: Tensor, covered: Tensor, region: Tensor
    ) -> tuple[Item, float]:
        """The item that explains a region best, and its error."""
        candidates = [
            item
            for silhouette, cx, cy, radius in self._geometries(unlike, covered)
            for item in _candidates(silhouette, cx, cy, radius)
        ]
        errors = _errors(image, ground, candidates, region)
        best = sorted(range(len(candidates)), key=errors.__getitem__)[:_REFINED]
        near = [
            replace(candidates[i], cx=candidates[i].cx + dx, cy=candidates[i].cy + dy, radius=candidates[i].radius + dr)
            for i in best
            for dx, dy, dr in product(_NEAR, _NEAR, _NEAR)
        ]
        errors = _errors(image, ground, near, region)
        chosen = min(range(len(near)), key=errors.__getitem__)
        return near[chosen], errors[chosen]

    def _geometries(self, unlike: Tensor, covered: Tensor) -> list[tuple[_Silhouette, float, float, float]]:
        """The best outlines with centre and radius: at most two of each outline, `top` in all."""
        columns, rows = ((covered.sum(dim=axis) >= _EDGE).nonzero()[:, 0] for axis in (0, 1))
        if not len(columns) or not len(rows):
            columns, rows = (covered.any(dim=axis).nonzero()[:, 0] for axis in (0, 1))
        left, right, top, bottom = float(columns[0]), float(columns[-1]) + 1, float(rows[0]), float(rows[-1]) + 1
        target = unlike.flatten() - unlike.mean()
        offsets = torch.cartesian_prod(*(torch.tensor(values) for values in (_RADII, _SHIFTS, _SHIFTS)))
        scored: list[tuple[float, _Silhouette, float, float, float]] = []
        for silhouette in _silhouettes():
            x0, x1, y0, y1 = silhouette.extent
            radius = ((right - left) / (x1 - x0) + (bottom - top) / (y1 - y0)) / 2
            radii = radius + offsets[:, 0]
            cx = (left + right) / 2 - radius * (x0 + x1) / 2 + offsets[:, 1]
            cy = (top + bottom) / 2 - radius * (y0 + y1) / 2 + offsets[:, 2]
            maps = silhouette.coverage(cx, cy, radii.clamp(min=4)).flatten(1)
            maps = maps - maps.mean(dim=1, keepdim=True)
            scores = (maps @ target) / torch.linalg.vector_norm(maps, dim=1).clamp(min=1e-6)
            for i in scores.topk(2).indices.tolist():
                scored.append((float(scores[i]), silhouette, float(cx[i]), float(cy[i]), float(radii[i].clamp(min=4))))
        scored.sort(key=lambda entry: -entry[0])
        return [entry[1:] for entry in scored[: self.top]]


def _candidates(silhouette: _Silhouette, cx: float, cy: float, radius: float) -> list[Item]:
    if silhouette.characters:
        return [Item(character=name, cx=cx, cy=cy, radius=radius) for name in silhouette.characters]
    return [
        Item(silhouette.shape, colour, style, cx=cx, cy=cy, radius=radius) for colour in COLOURS for style in STYLES
    ]


def _errors(image: Tensor, ground: Tensor, items: Sequence[Item], region: Tensor) -> list[float]:
    """Weighted mean squared error of each item's render within the region; pixels that it covers weigh more."""
    plain = ground.view(1, 3, 1, 1).expand(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    rows = torch.nonzero(region.any(dim=1))[:, 0]
    columns = torch.nonzero(region.any(dim=0))[:, 0]
    window = (slice(None), slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    out = torch.empty(len(items))
    for is_character, paint in ((False, paint_objects), (True, paint_characters)):
        chosen = [i for i, item in enumerate(items) if item.is_character == is_character]
        if not chosen:
            continue
        rendered = paint(plain.expand(len(chosen), -1, -1, -1).clone(), [items[i] for i in chosen])
        part, target = rendered[(slice(None), *window)], image[window]
        weight = 0.2 + ((part - ground.view(1, 3, 1, 1)).abs().amax(dim=1, keepdim=True) > 0.05).float()
        squared = (part - target).square() * weight
        out[chosen] = squared.sum(dim=(1, 2, 3)) / (3 * weight.sum(dim=(1, 2, 3)))
    values: list[float] = out.tolist()
    return values
