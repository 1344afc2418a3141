"""Input of SafeRedir's image side: latents of images, or the frames of a video."""

from collections.abc import Callable

import torch
from torch import Tensor

ROWS_AT_ONCE = 64  # frames of videos that are scored together
LATENT_CLAMP = 6.0  # denoised estimates of early steps can be far off; trained and used with the same clamp


def still_frames(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) of images as they are; of videos (B, C, F, h, w), their frames as (B*F, C, h, w)."""
    return latents if latents.ndim == 4 else latents.transpose(1, 2).flatten(0, 1)


def highest_over_frames(
    verdict: Callable[[Tensor, Tensor], Tensor], x0: Tensor, t: Tensor, *, each: bool = False
) -> Tensor:
    """(B,) highest of the logits (rows, K) that `verdict` gives each clamped still frame of x0 at its time; t is (B,).

    `each`: (B, K), the highest over frames of each concept.
    Of videos it is given `ROWS_AT_ONCE` frames at a time at most (one of each, if B is more): prompts repeated for every frame
    of 64 videos would fill 11 GB.
    """
    groups = [x0] if x0.ndim == 4 else x0.split(max(1, ROWS_AT_ONCE // len(x0)), dim=2)
    parts = []
    for some in groups:
        frames = still_frames(some).clamp(-LATENT_CLAMP, LATENT_CLAMP)
        logits = verdict(frames, t.repeat_interleave(len(frames) // len(x0)))
        logits = logits if each else logits.amax(dim=1, keepdim=True)
        parts.append(logits.view(len(x0), -1, logits.shape[1]).amax(dim=1))
    highest = parts[0] if len(parts) == 1 else torch.stack(parts).amax(dim=0)
    return highest if each else highest[:, 0]


def chosen_frames(latents: Tensor, generator: torch.Generator) -> Tensor:
    """(B, C, h, w): images as they are, one random frame of each video (B, C, F, h, w)."""
    if latents.ndim == 4:
        return latents
    which = torch.randint(latents.shape[2], (len(latents),), generator=generator)
    return latents[torch.arange(len(latents)), :, which]
