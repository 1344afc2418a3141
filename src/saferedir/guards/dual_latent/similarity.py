"""How far a denoised estimate may be blended before it loses similarity to that of the user's prompt.

Implements docs/methods/dual_latent.md (6).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def largest_level(user: Tensor, safe: Tensor, tau: float) -> Tensor:
    """(B,): the largest w with cos(a, (1 - w) a + w b) >= tau, for a = `user`, b = `safe` (B, K); infinity where any will do.

    With c = <a,b>/|a|^2, p = sqrt(|b|^2 - <a,b>^2/|a|^2), k = sqrt(1 - tau^2)/tau: w = k |a| / (p + k |a| (1 - c)).
    """
    size = user.square().sum(1).clamp(min=1e-20)
    a = size.sqrt()
    c = (user * safe).sum(1) / size
    rest = safe - c[:, None] * user  # its length is p, without the cancellation
    p_squared = rest.square().sum(1)
    is_parallel = p_squared <= 1e-12 * safe.square().sum(1)
    p = torch.where(is_parallel, 0.0, torch.where(is_parallel, 1.0, p_squared).sqrt())
    k = max(1.0 - tau**2, 0.0) ** 0.5 / tau
    divisor = p + k * a * (1 - c)
    is_free = (is_parallel & (c > 0)) | (divisor < 0) | ((divisor == 0) & (c > 0))
    divisor = torch.where(is_free | (divisor == 0), 1.0, divisor)
    return torch.where(is_free, torch.inf, k * a / divisor)


def low_pass(x0: Tensor) -> Tensor:
    """x0 (B, C, h, w) or (B, C, frames, h, w) averaged to 8 x 8, as (B, K)."""
    return F.adaptive_avg_pool2d(x0.flatten(1, -3), 8).flatten(1)
