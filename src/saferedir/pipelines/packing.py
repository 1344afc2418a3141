"""Latent packing: transformers that see latents as a sequence of 2x2 patches, and the way back to (R, C, h, w).

Pure functions; imports torch and `errors`. Used by `families` (which family packs, and where its grid is written) and by `seam`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from saferedir.errors import GuardError

#: (rows, columns) of the token grid
Grid = tuple[int, int]


class Packing(NamedTuple):
    """How a family packs: `grid` reads the token grid from the denoiser's keyword arguments, `channels` is how many token
    channels make one latent channel.
    """

    grid: Callable[[Mapping[str, Any]], Grid]
    unpack: Callable[[Tensor, Grid], Tensor]
    pack: Callable[[Tensor], Tensor]
    channels: int


def unpack_2x2(tokens: Tensor, grid: Grid) -> Tensor:
    """(R, h*w, 4C) -> (R, C, 2h, 2w)."""
    rows, columns = grid
    count, length, width = tokens.shape
    if length != rows * columns or width % 4:
        raise GuardError(
            f"{length} image tokens of width {width} do not fill a grid of {rows} x {columns}, so guards cannot see the "
            "latents in them; pipelines that give the transformer tokens of other images as well (FLUX Kontext) are unsupported."
        )
    patches = tokens.view(count, rows, columns, width // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(count, width // 4, 2 * rows, 2 * columns)


def pack_2x2(latents: Tensor) -> Tensor:
    """Inverse of `unpack_2x2`."""
    count, channels, height, width = latents.shape
    patches = latents.view(count, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(count, height // 2 * (width // 2), 4 * channels)


def grid_of_img_ids(kwargs: Mapping[str, Any]) -> Grid:
    """The grid from FLUX's `img_ids` (h*w, 3), whose columns 1 and 2 are the token's row and column."""
    ids: Tensor = kwargs["img_ids"]
    ids = ids[0] if ids.ndim == 3 else ids
    return int(ids[:, 1].max()) + 1, int(ids[:, 2].max()) + 1


#: FLUX and its relatives
FLUX_PACKING = Packing(grid_of_img_ids, unpack_2x2, pack_2x2, 4)
