"""What the image side of SafeRedir looks at: latents of images, or the frames of a video. Imports torch only."""

from torch import Tensor

LATENT_CLAMP = 6.0  # denoised estimates of early steps can be far off; trained and used with the same clamp


def still_frames(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) of images as they are; of videos (B, C, F, h, w), their frames as (B*F, C, h, w)."""
    return latents if latents.ndim == 4 else latents.transpose(1, 2).flatten(0, 1)
