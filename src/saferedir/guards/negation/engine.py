"""The engine: softmax weights over a negation set and the weighted mean, in two matrix products a block of rows.

Implements docs/methods/safe_denoiser.md (3), docs/methods/spell.md (1) and (4).
Pure functions over a `References`; imports torch and `kernels`. Blocks are joined by the online softmax (running maximum, sum,
weighted sum), so that memory grows neither with the set nor, under autograd, with what a block was converted from.
Shapes: B images, M references, D = C*h*w; rows are centred (r~ = r - c). All sums are float32 or wider.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from saferedir.guards.negation.kernels import Query
from saferedir.utils.device import is_readable

#: elements of one block of rows: its float32 copy (4 MB) stays in the processor's cache for both products
BLOCK = 2**20
#: elements of differences to a part of the rows that are held at once on another device
BLOCK_ON_DEVICE = 2**26
#: rows of one block at most, however short: logits are (B, m)
MOST_ROWS = 8192
#: below this share of its radius a distance has no direction of its own
NO_DIRECTION = 1e-6


class References(Protocol):
    """What the engine needs to know of a set: the centre c (D,) and the centred rows, block after block."""

    @property
    def centre(self) -> Tensor: ...

    def blocks(self) -> Iterable[Block]: ...


class Block(NamedTuple):
    """Rows of a set: rows (m, D) centred, in any float type; norms (m,) their squared lengths; start: index of the first."""

    rows: Tensor
    norms: Tensor
    start: int


class Attention(NamedTuple):
    """mean (B, D): sum w_n r_n, the unsafe denoiser; the rest is kept as it comes: top (B, 1) the largest logit, total, squares
    (B, 1) sums of exp(l - top) and of its square (None if not asked for), offset (B,) of the query.
    """

    mean: Tensor
    top: Tensor
    total: Tensor
    squares: Tensor | None
    offset: Tensor

    @property
    def log_sum(self) -> Tensor:
        """log sum exp l_n (B,)."""
        return (self.top + self.total.log()).squeeze(1) + self.offset

    @property
    def ess(self) -> Tensor | None:
        """Effective sample size 1 / sum w_n^2 (B,)."""
        return None if self.squares is None else (self.total.square() / self.squares).squeeze(1)


class _Running(NamedTuple):
    """Softmax over the rows so far: top (B, 1) largest logit, total (B, 1) of the weights, mean (B, D) unnormalised, and
    squares (B, 1), the sum of the weights' squares, where somebody wants it.
    """

    top: Tensor
    total: Tensor
    mean: Tensor
    squares: Tensor | None


def attend(query: Query, references: References, *, with_ess: bool = True) -> Attention:
    """Weights w = softmax(l) over all references and what they average to."""
    state: _Running | None = None
    if torch.is_grad_enabled() and (query.centred.requires_grad or query.offset.requires_grad):
        for block in references.blocks():  # keep (B, D) a block for the backward pass and convert its rows again there
            running = checkpoint(_absorb, query, block, state, with_ess, use_reentrant=False, preserve_rng_state=False)
            state = _Running(*running)
    else:
        for block in _converted(references, query.centred):
            state = _absorb(query, block, state, with_ess)
    assert state is not None
    mean = torch.addcdiv(_like(references.centre, query.centred), state.mean, state.total)
    return Attention(mean, state.top, state.total, state.squares, query.offset)


def _like(values: Tensor, like: Tensor) -> Tensor:
    """`values.to(like)`, without asking torch where nothing is to be done: at batch 1 every operation counts."""
    is_same = values.dtype == like.dtype and values.device == like.device
    return values if is_same else values.to(like)


def _converted(references: References, like: Tensor) -> Iterable[Block]:
    """Blocks in the dtype and on the device of `like`; converted rows share one buffer, so use each block before the next.

    Allocating anew for every block costs more than both products: the allocator hands pages back in between.
    """
    buffer: Tensor | None = None
    for block in references.blocks():
        rows = block.rows
        if rows.dtype != like.dtype or rows.device != like.device:
            if buffer is None or len(buffer) < len(rows):
                buffer = torch.empty(rows.shape, dtype=like.dtype, device=like.device)
            rows = buffer[: len(rows)].copy_(rows)
        yield Block(rows, _like(block.norms, like), block.start)


def _absorb(query: Query, block: Block, state: _Running | None, with_ess: bool) -> _Running:
    rows = _like(block.rows, query.centred)
    logits = query.logits(query.centred @ rows.T, _like(block.norms, rows))
    top = (logits.detach() if logits.requires_grad else logits).amax(dim=1, keepdim=True)
    if state is not None:
        top = torch.maximum(state.top, top)
    weights = (logits - top).exp()
    total = weights.sum(dim=1, keepdim=True)
    squares = weights.square().sum(dim=1, keepdim=True) if with_ess else None
    mean = weights @ rows
    if state is None:
        return _Running(top, total, mean, squares)
    old = (state.top - top).exp()
    if squares is not None and state.squares is not None:
        squares = torch.addcmul(squares, state.squares, old.square())
    return _Running(top, torch.addcmul(total, state.total, old), torch.addcmul(mean, state.mean, old), squares)


def attend_all(query: Query, references: References, epsilon: float) -> tuple[Tensor, Tensor]:
    """(sum k r / S, S = sum k + epsilon) with k = exp(l), as the released code has it: S is also a nearness gate."""
    attention = attend(query, references)
    kernel_sum = attention.log_sum.exp()
    share = (kernel_sum / (kernel_sum + epsilon)).unsqueeze(1)
    return attention.mean * share, kernel_sum + epsilon


def push_out(x0: Tensor, references: References, radius: float, dynamic: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """SPELL: (sum_n relu(radius / d_n - 1)(x0 - r_n), number of shields entered) for x0 (B, D); d_n = ||x0 - r_n||.

    Products of matrices only pick candidates, whose distances are then taken exactly; where their number cannot be read without
    waiting for the device, those of all rows are. `dynamic` (B, D): the other images of
    this batch shield too, each but its own row.
    """
    push, entered = torch.zeros_like(x0), torch.zeros(len(x0), device=x0.device)
    q = x0 - references.centre.to(x0)
    square = q.detach().square().sum(dim=1, keepdim=True)
    for rows, norms, _ in _converted(references, q.detach()):
        if not is_readable(square):  # how many are near is known to the device alone
            for some in rows.split(max(1, BLOCK_ON_DEVICE // q.numel())):
                push, entered = _shielded(q, some, radius, push, entered)
            continue
        near = square - 2 * (q.detach() @ rows.T) + norms
        is_near = near <= radius**2 + 1e-3 * (square + norms)  # rounding must not hide a candidate
        (candidates,) = torch.nonzero(is_near.any(dim=0), as_tuple=True)
        for chosen in candidates.split(max(1, BLOCK // q.numel())):
            push, entered = _shielded(q, rows[chosen], radius, push, entered)
    if dynamic is not None:
        itself = torch.eye(len(x0), dtype=torch.bool, device=x0.device)
        push, entered = _shielded(x0, dynamic, radius, push, entered, itself)
    return push, entered


def _shielded(
    q: Tensor, rows: Tensor, radius: float, push: Tensor, entered: Tensor, skip: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    difference = q[:, None] - rows[None]
    square = difference.square().sum(dim=2)
    has_direction = square > (NO_DIRECTION * radius) ** 2
    distance = torch.where(has_direction, square, 1.0).sqrt()
    depth = torch.where(has_direction, (radius - distance).clamp(min=0), radius)  # relu(radius/d - 1) d
    if skip is not None:
        depth = depth.masked_fill(skip, 0.0)
    # a latent that is the reference itself has no direction: any one leads out
    weight = torch.where(has_direction, depth / distance, 0.0)
    lost = torch.where(has_direction, 0.0, depth).sum(dim=1, keepdim=True) / q.shape[1] ** 0.5
    push = push + torch.einsum("bk,bkd->bd", weight, difference) + lost
    return push, entered + (depth.detach() > 0).sum(dim=1)
