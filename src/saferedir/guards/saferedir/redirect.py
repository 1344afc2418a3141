"""From a redirection to new prompt embeddings: pure, differentiable, row by row.

Implements the shift of SafeRedir (arXiv:2601.08623) as `default` wants it, docs/methods/saferedir.md (3) to (5):
normalised first, then masked and
scaled, on the conditional embeddings only, joined over the active concepts and bounded per token.

Shapes: e0 (B, L, D) original embeddings, active (B, K) weights in [0, 1], K concepts; see `Redirection`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from saferedir.guards.saferedir.reference import finite_rows

SMALLEST_DELTA = 1e-6


@dataclass(frozen=True)
class Redirection:
    """Where each concept's head wants the embeddings to go; `redirect` turns it into new ones."""

    delta: Tensor  # (B, K, L, D), raw: only its direction counts
    mask: Tensor  # (B, K, L) in [0, 1], 0 on padding
    alpha: Tensor  # (B, K, L, 1) in (0, alpha_max)
    pooled_delta: Tensor | None = None  # (B, K, P)
    pooled_alpha: Tensor | None = None  # (B, K, 1)

    @property
    def finite(self) -> Tensor:
        """(B,) bool, False where NaN or infinity makes `redirect` do nothing: fail closed there."""
        parts = (self.delta, self.mask, self.alpha, self.pooled_delta, self.pooled_alpha)
        return finite_rows(*(part for part in parts if part is not None))


def redirect(
    e0: Tensor,
    redirection: Redirection,
    active: Tensor,
    scale: float | Tensor = 1.0,
    max_shift: float = 1.5,
    prompt_mask: Tensor | None = None,
    exempt_bos: bool = True,
) -> Tensor:
    """e' = e0 + clip(s * |e0| * join_k(active_k * m_k * alpha_k * u_k)), u = delta / max(|delta|, 1e-6).

    active may be bool, or soft and differentiable; scale is s, a number or (B,); the clip keeps a token's
    shift within `max_shift` (rho) times |e0_i|; join is a sum in which shifts of one direction count once.
    Left bit-identical: rows with no active concept, padding by `prompt_mask`, tokens of mask 0, the first real
    token (BOS) if `exempt_bos`, and every sample that is not `redirection.finite`.
    """
    if active.shape != redirection.mask.shape[:2]:
        raise ValueError(
            f"active has shape {tuple(active.shape)}, expected {tuple(redirection.mask.shape[:2])} (B, K)."
        )
    weight = redirection.mask
    movable = _movable(e0, prompt_mask, exempt_bos)
    if movable is not None:
        weight = weight * movable[:, None]
    strength = weight[..., None] * redirection.alpha
    return _moved(e0, redirection.delta, strength, active, scale, max_shift, redirection.finite)


def redirect_pooled(
    pooled: Tensor,
    redirection: Redirection,
    active: Tensor,
    scale: float | Tensor = 1.0,
    max_shift: float = 1.5,
) -> Tensor:
    """Redirect the pooled embedding (B, P): p' = p + clip(s * |p| * join_k(active_k * alpha_k * u_k))."""
    delta, alpha = redirection.pooled_delta, redirection.pooled_alpha
    if delta is None or alpha is None:
        raise ValueError("This redirection has no pooled part: its redirector was built with pooled_dim=0.")
    finite = redirection.finite
    return _moved(pooled[:, None], delta[:, :, None], alpha[:, :, None], active, scale, max_shift, finite)[:, 0]


def match_length(anchor: Tensor, length: int) -> Tensor:
    """An anchor (L', D) cut, or its last token repeated, to `length` tokens: prompts can be given other lengths."""
    return (
        anchor[:length] if len(anchor) >= length else torch.cat([anchor, anchor[-1:].expand(length - len(anchor), -1)])
    )


def _movable(e0: Tensor, prompt_mask: Tensor | None, exempt_bos: bool) -> Tensor | None:
    """(B, L) bool: tokens that may move, or None for all."""
    if prompt_mask is None and not exempt_bos:
        return None
    real = torch.ones(e0.shape[:2], dtype=torch.bool, device=e0.device) if prompt_mask is None else prompt_mask.bool()
    return real & (real.cumsum(dim=1) > 1) if exempt_bos else real


def _together(shifts: Tensor) -> Tensor:
    """Shifts (B, K, L, D) of K concepts -> (B, L, D): a sum in which those of one direction come to the longest of them.

    Each is divided by how many go its way: one for itself, and of each other the positive part of their product over the square
    of the longer one. Siblings that lead to one anchor would otherwise lead far beyond it. Short ones beside a long one must not
    shorten it: the whole is lengthened, at most K times, to the longest of them or to their sum, if that is shorter.
    """
    count = shifts.shape[1]
    if count == 1:
        return shifts[:, 0]
    # no matrix product: torch.autocast would make it in half precision, where the bounds below are 0
    products = torch.stack([(shifts * shifts[:, k, None]).sum(dim=-1) for k in range(count)], dim=-1).transpose(1, 2)
    squares = products.diagonal(dim1=-2, dim2=-1)
    longer = torch.maximum(squares[..., None], squares[..., None, :]).clamp(min=SMALLEST_DELTA**2)
    alike = (products.clamp(min=0) / longer).sum(dim=-1) - squares / squares.clamp(min=SMALLEST_DELTA**2)
    joined = (shifts / (1 + alike.clamp(min=0)).transpose(1, 2)[..., None]).sum(dim=1)
    longest = torch.linalg.vector_norm(shifts, dim=-1, keepdim=True).amax(dim=1)
    least = torch.minimum(longest, torch.linalg.vector_norm(shifts.sum(dim=1), dim=-1, keepdim=True))
    length = torch.linalg.vector_norm(joined, dim=-1, keepdim=True).clamp(min=SMALLEST_DELTA)
    lengthened: Tensor = joined * (least / length).clamp(1, count)
    return lengthened


def _moved(
    e0: Tensor,
    delta: Tensor,
    strength: Tensor,
    active: Tensor,
    scale: float | Tensor,
    max_shift: float,
    finite: Tensor,
) -> Tensor:
    """e0 (B, L, D), delta (B, K, L, D), strength (B, K, L, 1), active (B, K), finite (B,)."""
    work = torch.promote_types(e0.dtype, torch.promote_types(delta.dtype, torch.float32))
    e = e0.to(work)
    keep = finite[:, None, None, None]
    delta = torch.where(keep, delta.to(work), 0.0)
    strength = torch.where(keep, strength.to(work), 0.0)
    direction = delta / torch.linalg.vector_norm(delta, dim=-1, keepdim=True).clamp(min=SMALLEST_DELTA)  # u
    if isinstance(scale, Tensor):
        scale = scale.to(work).reshape(-1, 1, 1)
    gate = active.to(work)[:, :, None, None]

    norms = torch.linalg.vector_norm(e, dim=-1, keepdim=True)
    norms = torch.where(torch.isfinite(norms), norms, 0.0)
    shift = scale * norms * _together(gate * strength * direction)
    length, limit = torch.linalg.vector_norm(shift, dim=-1, keepdim=True), max_shift * norms
    too_long = length > limit
    shift = torch.where(too_long, shift * (limit / torch.where(too_long, length, 1.0)), shift)

    # Subtracting +0.0 keeps every bit of e0, signed zeros too, and 0.0 - shift is +0.0 for either zero. A
    # torch.where would also do, but cut the gradient of a straight-through gate that is closed.
    return (e - (0.0 - shift)).to(e0.dtype)
