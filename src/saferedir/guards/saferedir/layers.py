"""Layers of the generalised redirector: masked attention, pooling over tokens, the latent encoder.

Tokens are (B, L, W), a key-padding mask is (B, L) bool with True for real tokens, None for all real. Padding gets
exactly no weight, so that appended padding cannot change a real token.
"""

import math

import torch
from torch import Tensor, nn


def masked_mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """(B, L, W) -> (B, W), the mean over real tokens; zeros where there is none."""
    if mask is None:
        return tokens.mean(dim=1)
    weights = mask.to(tokens.dtype)[..., None]
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def real_tokens(embeds: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B, L) bool of embeds (B, L, D): tokens that say something. Padding is masked, or is all zeros (Wan)."""
    real = embeds.detach().any(dim=-1)
    return real if mask is None else real & mask.bool()


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over real tokens: (B, H, Q, d), (B, H, L, d) -> (B, H, Q, d)."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask is None:
        return torch.softmax(scores, dim=-1) @ value
    real = mask[:, None, None, :]
    weights = torch.softmax(scores.masked_fill(~real, torch.finfo(scores.dtype).min), dim=-1)
    return (weights * real) @ value


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """(B, L, H*d) -> (B, H, L, d)."""
    split: Tensor = tokens.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)


def merge_heads(tokens: Tensor) -> Tensor:
    """(B, H, L, d) -> (B, L, H*d)."""
    return tokens.transpose(1, 2).flatten(-2)


class CrossAttention(nn.Module):
    """One query per sample from a vector (B, J), keys and values from tokens (B, L, D): (B, width)."""

    def __init__(self, query_dim: int, token_dim: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(query_dim, width)
        self.key = nn.Linear(token_dim, width)
        self.value = nn.Linear(token_dim, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, vector: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        value = self.value(tokens)
        parts = (self.query(vector)[:, None], self.key(tokens), value)
        query, keys, values = (split_heads(x, self.heads) for x in parts)
        attended = attend(query, keys, values, mask)
        return self.norm(merge_heads(attended)[:, 0] + masked_mean(value, mask))  # type: ignore[no-any-return]


class AttentionPool(nn.Module):
    """Learned questions, each asked in every head: (B, L, D) -> (B, queries * width)."""

    def __init__(self, token_dim: int, width: int, heads: int, queries: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries = nn.Parameter(torch.randn(heads, queries, width // heads))
        self.key = nn.Linear(token_dim, width)
        self.value = nn.Linear(token_dim, width)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        key, value = (split_heads(layer(tokens), self.heads) for layer in (self.key, self.value))
        query = self.queries.expand(tokens.shape[0], -1, -1, -1)
        return merge_heads(attend(query, key, value, mask)).flatten(1)


class TransformerLayer(nn.Module):
    """Pre-norm self-attention and MLP over tokens (B, L, W)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        qkv = self.qkv(self.norm_attention(tokens)).chunk(3, dim=-1)
        query, key, value = (split_heads(x, self.heads) for x in qkv)
        mixed = attend(query, key, value, mask)
        tokens = tokens + self.out(merge_heads(mixed))
        return tokens + self.mlp(tokens)  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """conv-norm-SiLU twice plus a 1x1 skip; GroupNorm, so that a row never depends on its neighbours."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        groups = math.gcd(8, c_out)
        self.body = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride, padding=1), nn.GroupNorm(groups, c_out), nn.SiLU(),
            nn.Conv2d(c_out, c_out, 3, padding=1), nn.GroupNorm(groups, c_out),
        )  # fmt: skip
        self.skip = nn.Conv2d(c_in, c_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(self.body(x) + self.skip(x))


class LatentEncoder(nn.Module):
    """Latents (B, C, h, w), any h and w -> (B, out_dim), from the mean and the maximum over positions.

    The reference pools by the mean alone; the maximum keeps a small object in a large latent visible.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], strides: tuple[int, ...], out_dim: int) -> None:
        super().__init__()
        sizes = (channels, *widths)
        self.blocks = nn.Sequential(*(ResidualBlock(*io) for io in zip(sizes[:-1], sizes[1:], strides, strict=True)))
        self.out = nn.Sequential(nn.Linear(2 * widths[-1], out_dim), nn.SiLU())

    def forward(self, latent: Tensor) -> Tensor:
        features = self.blocks(latent)
        pooled = torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=-1)
        return self.out(pooled)  # type: ignore[no-any-return]
