"""What the image side of SafeRedir looks at: latents of images, or the frames of a video. Imports torch only."""

from collections.abc import Callable

import torch
from torch import Tensor

LATENT_CLAMP = 6.0  # denoised estimates of early steps can be far off; trained and used with the same clamp


def still_frames(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) of images as they are; of videos (B, C, F, h, w), their frames as (B*F, C, h, w)."""
    return latents if latents.ndim == 4 else latents.transpose(1, 2).flatten(0, 1)


def highest_over_frames(verdict: Callable[[Tensor, Tensor], Tensor], x0: Tensor, t: Tensor) -> Tensor:
    """(B,) highest of the logits (rows, K) that `verdict` gives each clamped still frame of x0 at its time; t is (B,)."""
    frames = still_frames(x0).clamp(-LATENT_CLAMP, LATENT_CLAMP)
    logits = verdict(frames, t.repeat_interleave(len(frames) // len(x0)))
    return logits.amax(dim=1).view(len(x0), -1).amax(dim=1)


def chosen_frames(latents: Tensor, generator: torch.Generator) -> Tensor:
    """(B, C, h, w): images as they are, one random frame of each video (B, C, F, h, w)."""
    if latents.ndim == 4:
        return latents
    which = torch.randint(latents.shape[2], (len(latents),), generator=generator)
    return latents[torch.arange(len(latents)), :, which]
