"""Rows of a denoiser call: splitting and joining the halves of classifier-free guidance, as pure functions.

Used by `session`, `conditions`, `riding` and `edits`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from saferedir.errors import GuardError

#: largest share that the unconditional rows may have in a guided prediction; at guidance scales >= 1 it is not above 0
NEGATIVE_WEIGHT = 0.1


def split_rows(rows: Tensor, batch_size: int, guided: bool, layout: str) -> tuple[Tensor, Tensor | None]:
    """(cond, uncond) of rows (R, ...), each (B, ...); uncond is None and cond is `rows` itself without
    guidance.
    """
    expected = batch_size * (2 if guided else 1)
    if rows.shape[0] != expected:
        raise GuardError(
            f"the denoiser got {rows.shape[0]} rows where {expected} were expected (batch {batch_size}, "
            f"guidance "
            f"{'on' if guided else 'off'}); this way of calling the pipeline is not supported. A callback that ends guidance "
            "in the middle of a run must keep a row for every image (diffusers' cutoff callbacks keep one)."
        )
    if not guided:
        return rows, None
    first, second = rows[:batch_size], rows[batch_size:]
    return (second, first) if layout == "uncond_cond" else (first, second)


def join_rows(cond: Tensor, uncond: Tensor | None, layout: str) -> Tensor:
    """Inverse of `split_rows`."""
    if uncond is None:
        return cond
    return torch.cat([uncond, cond] if layout == "uncond_cond" else [cond, uncond])


class Layout(NamedTuple):
    """Rows of a run's denoiser calls: B images, whether one call has both halves of guidance, and in which order."""

    batch_size: int
    has_both: bool
    order: str

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """(conditional, unconditional or None) rows (B, ...) of rows (R, ...)."""
        return split_rows(rows, self.batch_size, self.has_both, self.order)

    def join(self, cond: Tensor, uncond: Tensor | None) -> Tensor:
        """Inverse of `split`."""
        return join_rows(cond, uncond if self.has_both else None, self.order)


def first_channels(values: Tensor, channels: int) -> Tensor:
    """The first `channels` of values (B, C, ...); `values` itself if there are no more."""
    return values if values.shape[1] == channels else values[:, :channels]


def changed_rows(new: Tensor, old: Tensor) -> Tensor:
    """(B, 1, ...) bool: which rows of `new` (B, ...) differ from `old` in at least one value."""
    changed = (new != old).flatten(1).any(dim=1)
    return changed.view(-1, *(1,) * (new.ndim - 1))


def check_finite(values: Tensor, what: str) -> None:
    """Raise GuardError if `values` holds NaN or infinity: a guard cannot judge such an image, nobody should
    see it.
    """
    # one finite sum proves all finite; a sum that is not may have overflowed
    if not math.isfinite(values.detach().sum(dtype=torch.float32).item()) and not bool(torch.isfinite(values).all()):
        raise GuardError(f"{what} holds NaN or infinity, so no image is returned; check dtype, scheduler and inputs.")


def negative_weight(pred: Tensor, cond: Tensor, uncond: Tensor) -> Tensor:
    """(B,) a / (|a| + |b|) of the least-squares fit pred = a uncond + b cond, each (B, C, ...); 0 where the two agree.

    Classifier-free guidance of scale w has a = 1 - w, b = w, rescaled or not.
    """
    p, c, u = (rows.double().flatten(1) for rows in (pred, cond, uncond))
    uu, cc, uc = (u * u).sum(1), (c * c).sum(1), (u * c).sum(1)
    up, cp = (u * p).sum(1), (c * p).sum(1)
    determinant = uu * cc - uc**2
    a, b = up * cc - cp * uc, cp * uu - up * uc
    is_known = determinant > 1e-6 * uu * cc
    return torch.where(is_known, a / (a.abs() + b.abs()).clamp(min=1e-30), 0.0)


def check_guidance(pred: Tensor, cond: Tensor | None, uncond: Tensor | None) -> None:
    """Raise if the negative prompt draws the image: some pipelines let its weight be positive (Wan 2.2's second scale)."""
    if cond is not None and uncond is not None and bool((negative_weight(pred, cond, uncond) > NEGATIVE_WEIGHT).any()):
        raise GuardError(
            "guidance below 1 makes the negative prompt draw the image, past the guards; use a guidance scale of 1 or more."
        )


def check_mask(mask: Tensor) -> None:
    """Raise GuardError unless a prompt mask (R, L) holds 0 and 1 only, and a 1 in every row.

    Denoisers turn a mask into a bias on attention: of other numbers, or of zeros alone, they make something else than a
    guard reads.
    """
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise GuardError("a prompt mask holds other values than 0 and 1; pass the mask that encode_prompt returns.")
    if not bool((mask != 0).any(dim=1).all()):
        raise GuardError("a prompt's mask leaves no token, so no guard can read it; pass the mask of the prompt.")
