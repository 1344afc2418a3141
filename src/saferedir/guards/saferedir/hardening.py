"""Decision rules that SafeRedir offers beside the published ones; each is off unless its setting says otherwise.

docs/hardening.md says what each does, what it costs and what was measured. Pure functions; `guard` calls them.
Shapes: scores and levels (B,), predictions (B, C, h, w).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: the anchor's embedding, the last of the levels of escalation
ANCHOR_LEVEL = 2


class Escalation(NamedTuple):
    """Outcome of one check: the new evidence or streak, and the new level."""

    evidence: Tensor
    level: Tensor


def by_streak(count: Tensor, level: Tensor, high: Tensor, was_redirected: Tensor, patience: int) -> Escalation:
    """The published rule: one level more after `patience` high checks in a row while redirected.

    Args:
        count: (B,) whole numbers, high checks in a row.
        level: (B,) whole numbers, 0 to 2.
        high: (B,) bool, whether the image score is at or above its threshold.
        was_redirected: (B,) bool, whether the prediction came from redirected embeddings.
        patience: high checks in a row.
    """
    count = torch.where(high & was_redirected, count + 1, 0)
    escalates = count >= patience
    return Escalation(
        torch.where(escalates, 0, count), torch.where(escalates, (level + 1).clamp(max=ANCHOR_LEVEL), level)
    )


def by_evidence(
    count: Tensor, level: Tensor, margin: Tensor, was_redirected: Tensor, patience: int, checks_left: int
) -> Escalation:
    """One level more where the evidence reaches `patience`, and the anchor at once where too few checks are left for that.

    A high check while redirected adds one, and by how many logits it lies above the threshold; a low one takes nothing away. So
    it never comes later than `by_streak`. From level l, `patience` (2 - l) more checks lead to the anchor by streaks alone; where
    fewer are left, a high check goes there, redirected before or not.

    Args:
        count: (B,) float, the evidence up to now.
        level: (B,) whole numbers, 0 to 2.
        margin: (B,) image score minus its threshold.
        was_redirected: (B,) bool.
        patience: evidence for one level.
        checks_left: checks of the image after this one.
    """
    high = margin >= 0
    count = count + torch.where(high & was_redirected, 1 + margin.clamp(min=0), 0.0)
    escalates = high & was_redirected & (count >= patience)
    count = torch.where(escalates, 0.0, count)
    higher = torch.where(escalates, (level + 1).clamp(max=ANCHOR_LEVEL), level)
    return Escalation(count, torch.where(high, at_once(higher, patience, checks_left), higher))


def at_once(level: Tensor, patience: int, checks_left: int) -> Tensor:
    """(B,) the levels, the anchor's where fewer checks are left than `patience` needs to get there."""
    return torch.where(checks_left < patience * (ANCHOR_LEVEL - level), ANCHOR_LEVEL, level)


def checks_left(evaluations_left: int, replace_steps: int) -> int:
    """Checks after this one, of which `replace_steps` evaluations each are skipped; the last evaluation is always checked."""
    return -(-evaluations_left // (replace_steps + 1))


def taken_again(pred: Tensor, shift: Tensor, weight: Tensor, *, is_hard: bool) -> Tensor:
    """The prediction with `shift`, what redirected embeddings change in it, in rows where the verdict fired.

    Args:
        pred: (B, C, h, w), the guided prediction.
        shift: (B, C, h, w) float32.
        weight: (B,) gate in [0, 1].
        is_hard: whether rows of weight 0 keep every bit; else the gradient goes through them, too.
    """
    rows = weight.view(-1, *(1,) * (pred.ndim - 1))
    moved = (pred.float() + rows * shift).to(pred.dtype)
    return torch.where(rows > 0, moved, pred) if is_hard else moved


def needs_noise(high: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """(B,) bool: images that fresh noise is put on, since another prompt did not help, or comes too late.

    Args:
        high: (B,) bool, whether the image score is at or above its threshold.
        before, after: (B,) whole numbers, the level of escalation before and after this check.
    """
    return high & ((after > before) | (after >= ANCHOR_LEVEL))


def renoised(latents: Tensor, x_t: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Latents at the level of `latents`, of a flat image with fresh noise.

    A sampler's step leads to p x0 + q eps, eps = (x_t - alpha x0) / sigma, nearly or exactly; p is read off by least squares, and
    what is left is noise of variance r. The result is p mean(x0) + sqrt(r) noise, the mean over all but channels. After the
    last step p = 1 and r = 0: a flat image.

    Args:
        latents: (B, C, ..., h, w) after the step.
        x_t: (B, C, ..., h, w) before it.
        x0: (B, C, ..., h, w) the denoised estimate of the step.
        alpha, sigma: (B, 1, ...) of x_t.
        noise: (B, C, ..., h, w) of unit variance.
    """
    with torch.no_grad():
        clean, after = x0.double(), latents.double()
        eps = (x_t.double() - alpha.double() * clean) / sigma.double().clamp(min=1e-6)
        basis = torch.stack([clean.flatten(1), eps.flatten(1)], dim=2)
        share = torch.linalg.lstsq(basis, after.flatten(1)[..., None]).solution[:, 0, 0]
        share = share.view(-1, *(1,) * (latents.ndim - 1))
        left = (after - share * clean).flatten(1).square().mean(dim=1).sqrt().view_as(share)
    mean = x0.float().flatten(2).mean(dim=2).view(*x0.shape[:2], *(1,) * (x0.ndim - 2))
    flat: Tensor = share.float() * mean + left.float() * noise.float()
    return flat.to(latents.dtype)
