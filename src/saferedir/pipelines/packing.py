"""Latent packing: transformers that see latents as a sequence of patches or channels last, and the way back.

Unpacked latents are (R, C, h, w), of videos (R, C, F, h, w).

Pure functions. Used by `families` (which family packs, and where its grid is written) and by `seam`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferedir.errors import GuardError
from saferedir.utils.device import read_together

#: (rows, columns) of the token grid, of videos (frames, rows, columns)
Grid = tuple[int, ...]


class Packing(NamedTuple):
    """How a family packs latents into a sequence of tokens (R, N, C'), or into frames with channels last (R, F, h, w, C').

    The first tokens of the sequence, as many as the grid has, are the latents', and their first channels. What else a pipeline
    puts there stays as it is: tokens of reference images behind them (FLUX Kontext), channels of a control image, a mask or a
    masked image (FLUX Control, FLUX Fill, Kandinsky 5).

    Attributes:
        grid: reads the grid of the latents' tokens from the denoiser's keyword arguments.
        unpack: latents of a sequence and its grid; further tokens are left out, further channels come along.
        pack: inverse of `unpack` for a sequence of latents alone.
        channels: how many token channels make one latent channel.
        ndim: axes of packed latents, which are the last of them the channels.
        is_behind_given: whether the latents' tokens, or frames, are the last ones instead, behind those of a first frame that is
            given, which the scheduler never gets (videos from an image).
        is_for_scheduler: whether the scheduler gets latents packed, too; LTX-Video's from an image are not.
    """

    grid: Callable[[Mapping[str, Any]], Grid]
    unpack: Callable[[Tensor, Grid], Tensor]
    pack: Callable[[Tensor], Tensor]
    channels: int
    ndim: int = 3
    is_behind_given: bool = False
    is_for_scheduler: bool = True

    def into(self, packed: Tensor, latents: Tensor) -> Tensor:
        """`packed` as the denoiser is given it, with `latents` in the place of its own; what is no latent stays."""
        new = self.pack(latents)
        if new.shape == packed.shape:
            return new
        where = [slice(size) for size in new.shape]
        if self.is_behind_given:
            where[1] = slice(packed.shape[1] - new.shape[1], None)
        whole = packed.clone()
        whole[tuple(where)] = new.to(whole)
        return whole


def unpack_2x2(tokens: Tensor, grid: Grid) -> Tensor:
    """(R, h*w + M, 4C) -> (R, C, 2h, 2w) of the first h*w tokens; the M behind them are of other images."""
    rows, columns = grid
    count, length, width = tokens.shape
    if length < rows * columns or width % 4:
        raise GuardError(
            f"{length} image tokens of width {width} do not fill a grid of {rows} x {columns}, so guards cannot see the "
            "latents in them; this way of calling the transformer is not supported."
        )
    patches = tokens[:, : rows * columns].reshape(count, rows, columns, width // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(count, width // 4, 2 * rows, 2 * columns)


def pack_2x2(latents: Tensor) -> Tensor:
    """Inverse of `unpack_2x2`."""
    count, channels, height, width = latents.shape
    patches = latents.view(count, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(count, height // 2 * (width // 2), 4 * channels)


def grid_of_img_ids(kwargs: Mapping[str, Any]) -> Grid:
    """The grid from FLUX's `img_ids` (h*w + M, 3): columns 1 and 2 are a token's row and column, column 0 tells images apart."""
    ids: Tensor = kwargs["img_ids"]
    return grid_of_ids(ids[0] if ids.ndim == 3 else ids)


def grid_of_ids(ids: Tensor) -> Grid:
    """The grid of the first image in ids (N, 3 or more): number of the image, row, column; rows and columns may begin anywhere.

    Raises GuardError where its tokens are not the first of the sequence, row by row.
    """
    (ids,) = read_together(ids.detach())  # once a run, so that nothing below waits for the device
    ids = ids.long()  # half precision cannot count tokens
    is_latent = ids[:, 0] == ids[0, 0]
    places = ids[is_latent, 1:3] - ids[0, 1:3]
    rows, columns = int(places[:, 0].max()) + 1, int(places[:, 1].max()) + 1
    count = rows * columns
    expected = torch.arange(count)
    if not (
        len(places) == count
        and bool(is_latent[:count].all())
        and torch.equal(places[:, 0] * columns + places[:, 1], expected)
    ):
        raise GuardError(
            f"the ids of the image tokens do not begin with a grid of {rows} x {columns}, row by row, so guards cannot see the "
            "latents in them; this way of calling the transformer is not supported."
        )
    return rows, columns


def grid_of_img_shapes(kwargs: Mapping[str, Any]) -> Grid:
    """The grid from Qwen-Image's `img_shapes`: for each image a list of (frames, rows, columns), the latents' own first."""
    shapes = kwargs["img_shapes"][0]
    _, rows, columns = shapes[0] if isinstance(shapes, list) else shapes
    return int(rows), int(columns)


def grid_of_position_ids(kwargs: Mapping[str, Any]) -> Grid:
    """The grid from Krea 2's `position_ids` (L + h*w, 3): those of the prompt's L tokens come first."""
    return grid_of_ids(kwargs["position_ids"][kwargs["encoder_hidden_states"].shape[1] :])


def unpack_1x1(tokens: Tensor, grid: Grid) -> Tensor:
    """(R, h*w + M, C) -> (R, C, h, w) of the first h*w tokens; the M behind them are of other images."""
    rows, columns = grid
    if tokens.shape[1] < rows * columns:
        raise GuardError(
            f"{tokens.shape[1]} image tokens do not fill a grid of {rows} x {columns}, so guards cannot see the latents in them; "
            "this way of calling the transformer is not supported."
        )
    return tokens[:, : rows * columns].transpose(1, 2).reshape(tokens.shape[0], -1, rows, columns)


def pack_1x1(latents: Tensor) -> Tensor:
    """Inverse of `unpack_1x1`."""
    return latents.flatten(2).transpose(1, 2)


def grid_of_frames(kwargs: Mapping[str, Any]) -> Grid:
    """The grid of latents (R, F, h, w, C): their own height and width."""
    _, _, rows, columns, _ = kwargs["hidden_states"].shape
    return int(rows), int(columns)


def unpack_channels_last(frames: Tensor, grid: Grid) -> Tensor:
    """(R, F, h, w, C) -> (R, C, F, h, w), a copy: pipelines go on to write into what they gave."""
    return frames.movedim(-1, 1).clone(memory_format=torch.contiguous_format)


def pack_channels_last(latents: Tensor) -> Tensor:
    """Inverse of `unpack_channels_last`."""
    return latents.movedim(1, -1).contiguous()


def unpack_image_channels_last(frames: Tensor, grid: Grid) -> Tensor:
    """(R, 1, h, w, C) -> (R, C, h, w), a copy."""
    if frames.shape[1] != 1:
        raise GuardError(
            f"{frames.shape[1]} frames of latents where images have one; this way of calling the transformer is not supported."
        )
    return unpack_channels_last(frames, grid)[:, :, 0]


def pack_image_channels_last(latents: Tensor) -> Tensor:
    """Inverse of `unpack_image_channels_last`."""
    return pack_channels_last(latents[:, :, None])


def grid_of_video_frames(kwargs: Mapping[str, Any]) -> Grid:
    """The grid of latents (R, F, h, w, C): their own frames, height and width."""
    return int(kwargs["hidden_states"].shape[1]), *grid_of_frames(kwargs)


def unpack_frames_after_first(frames: Tensor, grid: Grid) -> Tensor:
    """(R, F, h, w, C) as the denoiser gets it, or (R, F - 1, h, w, C) as the scheduler does -> (R, C, F - 1, h, w), a copy."""
    if grid[0] < 2:
        raise GuardError("a video of one frame that is given has no latents to guard; ask for more frames.")
    return unpack_channels_last(frames[:, 1:] if frames.shape[1] == grid[0] else frames, grid)


def grid_of_video(kwargs: Mapping[str, Any]) -> Grid:
    """The grid from LTX-Video's `num_frames`, `height` and `width`, which count latents."""
    return int(kwargs["num_frames"]), int(kwargs["height"]), int(kwargs["width"])


def unpack_video(tokens: Tensor, grid: Grid) -> Tensor:
    """(R, F*h*w, C) -> (R, C, F, h, w)."""
    frames, rows, columns = grid
    if tokens.shape[1] != frames * rows * columns:
        raise GuardError(
            f"{tokens.shape[1]} tokens do not fill a grid of {frames} x {rows} x {columns}, so guards cannot see the latents in "
            "them; this way of calling the transformer is not supported."
        )
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, frames, rows, columns)


def unpack_after_first_frame(tokens: Tensor, grid: Grid) -> Tensor:
    """(R, F*h*w, C) -> (R, C, F - 1, h, w): the first frame is given, and the scheduler never gets it."""
    if grid[0] < 2:
        raise GuardError("a video of one frame that is given has no latents to guard; ask for more frames.")
    return unpack_video(tokens, grid)[:, :, 1:]


#: FLUX and its relatives
FLUX_PACKING = Packing(grid_of_img_ids, unpack_2x2, pack_2x2, 4)

#: Qwen-Image: packed as FLUX, the grid in an argument of its own
QWEN_PACKING = FLUX_PACKING._replace(grid=grid_of_img_shapes)

#: Krea 2: packed as FLUX, one set of ids for prompt and latents
KREA_PACKING = FLUX_PACKING._replace(grid=grid_of_position_ids)

#: FLUX.2, whose latents are patches already
FLUX2_PACKING = Packing(grid_of_img_ids, unpack_1x1, pack_1x1, 1)

#: Kandinsky 5: images are videos of one frame
KANDINSKY_IMAGE_PACKING = Packing(grid_of_frames, unpack_image_channels_last, pack_image_channels_last, 1, ndim=5)

#: Kandinsky 5's videos
KANDINSKY_VIDEO_PACKING = Packing(grid_of_frames, unpack_channels_last, pack_channels_last, 1, ndim=5)

#: ... from an image
KANDINSKY_IMAGE_VIDEO_PACKING = KANDINSKY_VIDEO_PACKING._replace(
    grid=grid_of_video_frames, unpack=unpack_frames_after_first, is_behind_given=True
)

#: LTX-Video, whose tokens are single latents
LTX_PACKING = Packing(grid_of_video, unpack_video, pack_1x1, 1)

#: ... from an image
LTX_IMAGE_PACKING = LTX_PACKING._replace(unpack=unpack_after_first_frame, is_behind_given=True, is_for_scheduler=False)
