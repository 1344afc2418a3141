"""Which poster an image gives back: the nearest stored render by pixel distance, if it is near enough.

Near enough means within half the distance from the poster to its nearest near variant: such an image is nearer to the poster
than to any of its variants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from saferedir.pictoworld.judge import to_tensor
from saferedir.pictoworld.world2.posters import NEAR_VARIANTS, POSTERS, VARIANTS
from saferedir.pictoworld.world2.renderer import render_posters


def rms_distances(images: Tensor, others: Tensor) -> Tensor:
    """(N, M) root mean square pixel distances between (N, 3, H, W) and (M, 3, H, W) images in [0, 1]."""
    pixels = images[0].numel()
    distances: Tensor = torch.cdist(images.flatten(1), others.flatten(1)) / pixels**0.5
    return distances


@cache
def _stored() -> Tensor:
    """Renders of all posters and variants, (24 * 9, 3, 64, 64): each poster followed by its variants."""
    return torch.cat([render_posters((POSTERS[title], *NEAR_VARIANTS[title])) for title in POSTERS])


@cache
def variant_distances() -> Mapping[str, tuple[float, ...]]:
    """Title -> RMS distances of the poster's eight near variants, ascending: what the thresholds are taken from."""
    stored = _stored().view(len(POSTERS), 1 + VARIANTS, 3, 64, 64)
    return {
        title: tuple(sorted(rms_distances(images[:1], images[1:])[0].tolist()))
        for title, images in zip(POSTERS, stored, strict=True)
    }


def threshold(title: str) -> float:
    """The largest RMS distance at which an image gives the poster back."""
    return variant_distances()[title][0] / 2


class PosterJudge:
    """Compares images with every stored poster and near variant."""

    def nearest(self, images: Sequence[Image.Image] | Tensor | np.ndarray) -> list[tuple[str, int, float]]:
        """Per image: title, variant (0 for the poster) and RMS distance of the nearest stored render."""
        distance, index = rms_distances(to_tensor(images), _stored()).min(dim=1)
        titles = list(POSTERS)
        return [
            (titles[i // (1 + VARIANTS)], i % (1 + VARIANTS), d)
            for i, d in zip(index.tolist(), distance.tolist(), strict=True)
        ]

    def given_back(self, images: Sequence[Image.Image] | Tensor | np.ndarray, title: str, variant: int = 0) -> Tensor:
        """(B,) bool: the nearest stored render is that poster (or that near variant of it), and it is near enough."""
        limit = threshold(title)
        flags = [
            (name, number) == (title, variant) and distance <= limit for name, number, distance in self.nearest(images)
        ]
        return torch.tensor(flags, dtype=torch.bool)
