"""Latents of a caller with a share of fresh noise in them. Pure functions of tensors; used by `seam.given_latents` and attacks.

For x ~ N(0, I) and e ~ N(0, I) apart from it, sqrt(1 - s) x + sqrt(s) e ~ N(0, I): honest noise stays honest noise, and what was
optimised in x keeps a share 1 - s of its energy.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def replace_share(latents: Tensor, noise: Tensor, share: float) -> Tensor:
    """sqrt(1 - share) latents + sqrt(share) noise, in float32 and back in the dtype of `latents`; differentiable.

    Args:
        latents: (B, ...).
        noise: the same shape.
        share: of the energy, in [0, 1].
    """
    mixed: Tensor = (1 - share) ** 0.5 * latents.float() + share**0.5 * noise.to(latents.device).float()
    return mixed.to(latents.dtype)


@torch.no_grad()
def digest_noise(latents: Tensor) -> Tensor:
    """Standard normal noise (B, ...), float32 on the CPU, each row from a generator that is seeded by the SHA-256 of its values.

    The same values give the same noise, whatever the batch, the device or the dtype that holds them; another last bit gives
    noise that has nothing to do with it. The digest has no key: whoever knows this function can compute the noise, and try
    many latents. A generator on the CPU keeps 32 bits of its seed, so that 2^32 tries reach any noise that a seed gives.
    """
    rows = latents.detach().cpu().float().contiguous()
    return torch.stack([_noise(row) for row in rows])


def _noise(row: Tensor) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(row.numpy().tobytes()).digest()[:8], "big")
    return torch.randn(row.shape, generator=torch.Generator().manual_seed(seed))
