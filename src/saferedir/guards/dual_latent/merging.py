"""Merging two latents into one: the operators of dual latent R2 as pure functions, docs/methods/dual_latent.md (9) to (11).

Symbols: z latents (B, C, h, w) with z = alpha x0 + sigma eps at one level; u the user's stream, s the safe one; w (B,) the
level of safety. That form covers variance-preserving latents, k-space (alpha = 1) and flow (alpha = 1 - sigma).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: smallest divisor of "renorm": opposite noises would make it 0
FLOOR = 0.1
#: below this angle "slerp" is linear
SMALL_ANGLE = 1e-3


class Stream(NamedTuple):
    """One stream at the level where it is merged: latents z, and the last denoised estimate x0 on its way there."""

    z: Tensor
    x0: Tensor


def merge(operator: str, user: Stream, safe: Stream, w: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Merged latents (B, C, h, w) in float32; at sigma = 0 "renorm" has no noise to keep and is "linear"."""
    u, s = (Stream(*(part.float() for part in stream)) for stream in (user, safe))
    w = w.view(-1, *(1,) * (u.z.ndim - 1)).float()
    linear = (1 - w) * u.z + w * s.z
    if operator == "linear":
        return linear
    if operator == "slerp":
        return slerp(u.z, s.z, w)
    noisy = torch.where(sigma > 0, sigma, 1.0)
    eps = renormed((u.z - alpha * u.x0) / noisy, (s.z - alpha * s.x0) / noisy, w)
    return torch.where(sigma > 0, alpha * ((1 - w) * u.x0 + w * s.x0) + sigma * eps, linear)


def renormed(user: Tensor, safe: Tensor, w: Tensor) -> Tensor:
    """((1-w) e_u + w e_s) / sqrt((1-w)^2 + w^2 + 2 w (1-w) rho): noise of unit variance, rho the cosine of the two, per sample.

    Noises (B, ...), w (B, 1, ...).
    """
    return ((1 - w) * user + w * safe) / ((1 - w) ** 2 + w**2 + 2 * w * (1 - w) * cosine(user, safe)).clamp(
        min=FLOOR**2
    ).sqrt()


def slerp(user: Tensor, safe: Tensor, w: Tensor) -> Tensor:
    """sin((1-w) a)/sin(a) z_u + sin(w a)/sin(a) z_s, a the angle between the two of a sample; linear where it is small or pi."""
    angle = torch.arccos(cosine(user, safe).clamp(-1 + 1e-7, 1 - 1e-7))
    is_small = (angle < SMALL_ANGLE) | (angle > torch.pi - SMALL_ANGLE)
    angle = torch.where(is_small, 1.0, angle)
    turned = (torch.sin((1 - w) * angle) * user + torch.sin(w * angle) * safe) / torch.sin(angle)
    return torch.where(is_small, (1 - w) * user + w * safe, turned)


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """(B, 1, ...) cosine of two samples (B, ...)."""
    similarity = torch.nn.functional.cosine_similarity(first.flatten(1), second.flatten(1), dim=1, eps=1e-12)
    return similarity.view(-1, *(1,) * (first.ndim - 1))
