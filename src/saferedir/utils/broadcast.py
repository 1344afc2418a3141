"""per_sample: one number an image, shaped to multiply latents with."""

from __future__ import annotations

from torch import Tensor


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, ...) on the device of `like` (B, ...), to be broadcast against it."""
    return values.view(-1, *(1,) * (like.ndim - 1)).to(like.device)
