"""Heads of many concepts, each a row of one matrix: a thousand cost what one costs.

A concept's scores, mask and scale are one row each on features that all concepts share, its direction a map of low rank. Scores
are asked of all concepts at once, directions of the few that act.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from saferedir.guards.saferedir.redirector_config import RedirectorConfig

#: rows are kept in blocks of so many, so that one more concept in a block changes no bit of the others' scores
BLOCK = 64


class Rows(nn.Module):
    """K linear maps of one vector to a number each: `nn.Linear` whose matrix has whole blocks of rows."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        full = nn.Linear(width, -(-count // BLOCK) * BLOCK)
        self.weight, self.bias = full.weight, full.bias

    def forward(self, features: Tensor) -> Tensor:
        """(..., W) -> (..., K)."""
        return linear(features, self.weight, self.bias)[..., : self.count]


class LowRank(nn.Module):
    """K maps of a vector to a direction, each of rank r: (..., W) -> silu(A_k x + a_k), then B_k and b_k."""

    def __init__(self, width: int, rank: int, out: int, count: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(count, rank, width).uniform_(-1, 1) / width**0.5)
        self.down_bias = nn.Parameter(torch.zeros(count, rank))
        self.up = nn.Parameter(torch.empty(count, out, rank).uniform_(-1, 1) / rank**0.5)
        self.up_bias = nn.Parameter(torch.zeros(count, out))

    def forward(self, features: Tensor, chosen: Tensor | None = None) -> Tensor:
        """(B, N, W), concepts (B, M) of each image or None for all -> (B, M or K, N, D)."""
        if chosen is None:
            hidden = torch.einsum("bnw,krw->bknr", features, self.down) + self.down_bias[None, :, None]
            return torch.einsum("bknr,kdr->bknd", silu(hidden), self.up) + self.up_bias[None, :, None]
        down, down_bias, up, up_bias = (part[chosen] for part in (self.down, self.down_bias, self.up, self.up_bias))
        hidden = torch.einsum("bnw,bmrw->bmnr", features, down) + down_bias[:, :, None]
        return torch.einsum("bmnr,bmdr->bmnd", silu(hidden), up) + up_bias[:, :, None]


class ConceptRows(nn.Module):
    """All that belongs to K concepts, on features of the shared trunk."""

    def __init__(self, config: RedirectorConfig, token_dim: int, width: int) -> None:
        super().__init__()
        count, pooled = len(config.concepts), config.pooled_dim
        self.alpha_max = config.alpha_max
        self.prompt_score = Rows(config.hidden, count)
        self.image_score = Rows(config.hidden, count)
        self.joint_score = Rows(config.hidden, count) if config.has_joint else None
        self.mask, self.alpha = Rows(width, count), Rows(width, count)
        self.delta = LowRank(token_dim, config.rank, config.prompt_dim, count)
        self.pooled_delta = LowRank(width + pooled, config.rank, pooled, count) if pooled else None
        self.pooled_alpha = Rows(width + pooled, count) if pooled else None

    def token_parts(self, tokens: Tensor, mixed: Tensor, chosen: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """tokens (B, L or 1, D + W), mixed (B, L, W) -> delta (B, M, L or 1, D), mask (B, M, L), alpha (B, M, L, 1)."""
        mask, alpha = (_of(rows(mixed).movedim(-1, 1), chosen) for rows in (self.mask, self.alpha))
        return self.delta(tokens, chosen), torch.sigmoid(mask), torch.sigmoid(alpha)[..., None] * self.alpha_max

    def pooled_parts(self, summary: Tensor, chosen: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, W + P) -> delta (B, M, P), alpha (B, M, 1) of the pooled embedding."""
        if self.pooled_delta is None or self.pooled_alpha is None:
            raise ValueError("These rows have no pooled part: their redirector was built with pooled_dim=0.")
        alpha = torch.sigmoid(_of(self.pooled_alpha(summary), chosen)) * self.alpha_max
        return self.pooled_delta(summary[:, None], chosen)[:, :, 0], alpha[..., None]


def _of(values: Tensor, chosen: Tensor | None) -> Tensor:
    """(B, K, ...) -> (B, M, ...), of the chosen concepts (B, M) of each image."""
    if chosen is None:
        return values
    index = chosen.reshape(*chosen.shape, *(1,) * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
    return values.gather(1, index)


def strongest(weight: Tensor, score: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The at most `most` concepts of each image that act, those with the highest scores; nothing waits for the device.

    Args:
        weight: (B, K), above 0 where a concept acts.
        score: (B, K), what to prefer by.
        most: how many to take.

    Returns:
        Indices (B, M) of the concepts and their weights (B, M), 0 where fewer act.
    """
    rank = torch.where(weight > 0, score, -torch.inf)
    chosen = rank.topk(min(most, rank.shape[1]), dim=1).indices
    return chosen, weight.gather(1, chosen)


def with_concept(state: dict[str, Tensor], count: int, seed: int = 0) -> dict[str, Tensor]:
    """Weights of `count` concepts' rows -> those of one more, whose row is new; the others' values are the same bits.

    Args:
        state: state dict of a `Redirector` with row heads.
        count: its number of concepts.
        seed: of the new row's start.
    """
    generator = torch.Generator().manual_seed(seed)

    def start(name: str, like: Tensor) -> Tensor:
        if name.endswith("bias"):
            return torch.zeros_like(like)
        row: Tensor = (torch.rand(like.shape, generator=generator) * 2 - 1).to(like) / like.shape[-1] ** 0.5
        return row

    return _with_row(state, count, start)


def with_rows_of(state: dict[str, Tensor], count: int, other: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """As `with_concept`, the new row being that of a concept of another redirector on the same trunk.

    Args:
        other: the other's state dict.
        number: the concept's place in it.
    """
    return _with_row(state, count, lambda name, _: other[name][number : number + 1])


def _with_row(state: dict[str, Tensor], count: int, row_of: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
    """`row_of`: a parameter's name, and a row like the new one -> the new one."""
    grown = dict(state)
    for name, value in state.items():
        if not name.startswith("heads."):
            continue
        row = row_of(name, value[:1])
        if name.endswith((".weight", ".bias")):  # whole blocks: the row is there already, or a block is added
            rows = (
                value
                if count < len(value)
                else torch.cat([value, torch.zeros_like(value[:1]).repeat(BLOCK, *(1,) * (value.ndim - 1))])
            )
            rows = rows.clone()
            rows[count] = row[0]
            grown[name] = rows
        else:
            grown[name] = torch.cat([value, row])
    return grown
