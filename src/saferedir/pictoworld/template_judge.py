"""A second judge without learning: analysis by synthesis against the renderer.

It confirms what the CNN claims: an attack that fools a network has no reason to fool this one too. Slower (about 10 ms
an image), so it is used for checks, not for sweeps.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saferedir.pictoworld.judge import Judgement
from saferedir.pictoworld.renderer import BACKGROUND_RGB, coverage, paint, render
from saferedir.pictoworld.scene import CENTRE_OF_POSITION, COLOURS, JUDGED, POSITIONS, SHAPES, STYLES, VALUES, Scene

_RADII = (12.25, 14.0, 15.5, 17.75)
_SHIFTS = (-1.2, 0.0, 1.2)
_BROKEN_RESIDUAL = 0.03  # mean squared error per channel over the object's neighbourhood


@dataclass(frozen=True)
class _Templates:
    scenes: list[Scene]
    maps: Tensor  # (N, 4096), zero mean and unit norm


def _scene(shape: str, style: str, position: str, radius: float, dx: float, dy: float) -> Scene:
    x, y = CENTRE_OF_POSITION[position]
    return Scene(shape, "red", "white", style, position, "medium", radius, x + dx, y + dy)


def _objectness(images: Tensor, ground: Tensor) -> Tensor:
    """Distance of every pixel from the background colour, (B, 4096), zero mean and unit norm."""
    flat = torch.linalg.vector_norm(images - ground[:, :, None, None], dim=1).flatten(1)
    centred = flat - flat.mean(dim=1, keepdim=True)
    unit: Tensor = centred / torch.linalg.vector_norm(centred, dim=1, keepdim=True).clamp(min=1e-6)
    return unit


@functools.cache
def _templates() -> _Templates:
    """The templates of every judge in this process; rendering them takes seconds."""
    scenes = [
        _scene(shape, style, position, radius, dx, dy)
        for shape in SHAPES
        for style in ("flat", "pointillism")
        for position in POSITIONS
        for radius in _RADII
        for dx in _SHIFTS
        for dy in _SHIFTS
    ]
    white = torch.tensor(BACKGROUND_RGB["white"]).expand(len(scenes), 3)
    return _Templates(scenes, _objectness(render(scenes), white))


class TemplateJudge:
    """Finds the renderer's scene that explains an image best.

    First the geometry by correlating "unlike the background" maps with templates, then style and colour by the
    smallest squared error among full renders of the `top` best geometries.
    """

    def __init__(self, top: int = 6) -> None:
        self.top = top
        self.templates = _templates()
        self.grounds = torch.tensor(list(BACKGROUND_RGB.values()))

    def _explain(self, image: Tensor, background: str, geometries: list[Scene]) -> tuple[Scene, float]:
        best: tuple[float, Scene] | None = None
        for geometry, alpha in zip(geometries, coverage(geometries), strict=True):  # one at a time stays in the cache
            candidates = [
                replace(geometry, colour=colour, background=background, style=style)
                for colour in COLOURS
                for style in STYLES
            ]
            rendered = paint(candidates, alpha.expand(len(candidates), -1, -1))
            weight = 0.2 + ((rendered - self.ground_image(background)).abs().amax(1, keepdim=True) > 0.05).float()
            error = ((rendered - image) ** 2 * weight).sum(dim=(1, 2, 3)) / (3 * weight.sum(dim=(1, 2, 3)))
            index = int(error.argmin())
            if best is None or float(error[index]) < best[0]:
                best = float(error[index]), candidates[index]
        assert best is not None
        return best[1], best[0]

    def ground_image(self, background: str) -> Tensor:
        """The empty background, (1, 3, 1, 1)."""
        return torch.tensor(BACKGROUND_RGB[background]).view(1, 3, 1, 1)

    @torch.no_grad()
    def judge(self, images: Tensor) -> Judgement:
        """Judge (B, 3, 64, 64) images in [0, 1]; probabilities are one-hot."""
        border = torch.cat([images[:, :, :3].flatten(2), images[:, :, -3:].flatten(2)], dim=2).median(dim=2).values
        ground_index = torch.cdist(border, self.grounds).argmin(dim=1)
        maps = _objectness(images, border)
        best = (maps @ self.templates.maps.T).topk(4 * self.top, dim=1).indices
        scenes: list[Scene] = []
        residual: list[float] = []
        for row, image in enumerate(images):
            geometries: list[Scene] = []
            for index in best[row].tolist():
                candidate = self.templates.scenes[index]
                if all(
                    (candidate.shape, candidate.cx, candidate.cy, candidate.radius) != (g.shape, g.cx, g.cy, g.radius)
                    for g in geometries
                ):
                    geometries.append(candidate)
            background = VALUES["background"][int(ground_index[row])]
            scene, error = self._explain(image, background, geometries[: self.top])
            scenes.append(scene)
            residual.append(error)
        one_hot = {
            name: torch.nn.functional.one_hot(torch.tensor([s.index(name) for s in scenes]), len(VALUES[name])).float()
            for name in JUDGED
        }
        return Judgement(one_hot, (torch.tensor(residual) > _BROKEN_RESIDUAL).float())
