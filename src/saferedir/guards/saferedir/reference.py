"""The SafeRedir redirector as its authors released it, and a strict loader for its checkpoints.

Implements the network and the shift of "SafeRedir: Prompt Embedding Redirection for Robust Unlearning in Image
Generation Models" (arXiv:2601.08623), as the released inference code computes them: docs/methods/saferedir.md (16)
to (18). The network of our own default is in `network.py`.

Shapes: latents x_t (B, C, h, w), prompt embeddings e (2B, T, D) in CFG layout [negative; positive], t (B,).
Deviations: sizes are read from the state dict; rows are independent (the original hook is batch 1); a
zero or non-finite direction gives a zero shift; `prompt_dropout` is left out (its default is 0, and it would
act in eval mode).
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from saferedir.guards.saferedir.reference_state import (
    MASK_HEADS,
    ReferenceSizes,
    StateDictError,
    check_against,
    check_values,
    infer_sizes,
    read_state_dict,
)

__all__ = [
    "RedirectorOutput",
    "ReferenceRedirector",
    "ReferenceSizes",
    "StateDictError",
    "apply_reference_shift",
    "load_reference_redirector",
    "reference_shift",
    "widen_token_proj",
]

CLASSES = 2  # 0 safe, 1 unsafe


class RedirectorOutput(NamedTuple):
    """Class 1 is unsafe; delta is raw, after gate and mask; mask and alpha lie in (0, 1)."""

    logits: Tensor  # (B, 2)
    delta: Tensor  # (B, T, D)
    mask: Tensor  # (B, T)
    alpha: Tensor  # (B, T, 1)


def sinusoid(values: Tensor, dim: int) -> Tensor:
    """(N,) -> (N, dim): sine half first, frequencies exp(-ln(10^4) k / (dim/2)), k = 0 .. dim/2 - 1."""
    half = dim // 2
    k = torch.arange(half, device=values.device, dtype=values.dtype)
    angles = values[:, None] * torch.exp(-math.log(10_000.0) * k / half)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def batch_timestep(timestep: Tensor | float, batch: int, device: torch.device) -> Tensor:
    """A float, 0-d, (1,) or (B,) timestep as a floating (B,) tensor: float32 unless float64 was given."""
    t = torch.as_tensor(timestep, device=device).reshape(-1)
    if t.numel() not in (1, batch):
        raise ValueError(f"timestep has {t.numel()} entries, expected 1 or the batch size {batch}.")
    return t.to(torch.float64 if t.dtype == torch.float64 else torch.float32).expand(batch)


class ResidualBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(),
            nn.Conv2d(c_out, c_out, 3, padding=1), nn.BatchNorm2d(c_out),
        )  # fmt: skip
        self.downsample = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + self.downsample(x))


class CrossAttentionHead(nn.Module):
    """One full-width head: j (B, J) asks, e (B, T, D) answers, (B, D) comes out."""

    def __init__(self, joint_dim: int, prompt_dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(joint_dim, prompt_dim)
        self.key = nn.Linear(prompt_dim, prompt_dim)
        self.value = nn.Linear(prompt_dim, prompt_dim)
        self.norm = nn.LayerNorm(prompt_dim)

    def forward(self, joint: Tensor, embeds: Tensor) -> Tensor:
        query, key, value = self.query(joint), self.key(embeds), self.value(embeds)
        weights = torch.softmax(torch.einsum("bd,btd->bt", query, key) / math.sqrt(query.shape[-1]), dim=-1)
        return self.norm(torch.einsum("bt,btd->bd", weights, value) + value.mean(dim=1))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    def __init__(self, joint_dim: int, prompt_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(CrossAttentionHead(joint_dim, prompt_dim) for _ in range(heads))
        self.fuse = nn.Sequential(nn.Linear(heads * prompt_dim, prompt_dim), nn.LayerNorm(prompt_dim))

    def forward(self, joint: Tensor, embeds: Tensor) -> Tensor:
        return self.fuse(torch.cat([head(joint, embeds) for head in self.heads], dim=-1))  # type: ignore[no-any-return]


class DeltaHead(nn.Module):
    def __init__(self, prompt_dim: int, rank: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.down = nn.Linear(prompt_dim, rank, bias=False)
        self.up = nn.Linear(rank, prompt_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x)) * self.scale  # type: ignore[no-any-return]


class MaskPredictor(nn.Module):
    """e (B, T, D) -> m (B, T) in (0, 1)."""

    def __init__(self, prompt_dim: int, hidden: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(prompt_dim, MASK_HEADS, batch_first=True)
        self.predictor = nn.Sequential(
            nn.Linear(prompt_dim, hidden), nn.ReLU(), nn.LayerNorm(hidden), nn.Linear(hidden, 1)
        )

    def forward(self, embeds: Tensor) -> Tensor:
        mixed, _ = self.attn(embeds, embeds, embeds, need_weights=False)
        return torch.sigmoid(self.predictor(mixed)).squeeze(-1)


class AlphaPredictor(nn.Module):
    """e (B, T, D) -> alpha (B, T, 1) in (0, 1)."""

    def __init__(self, prompt_dim: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(prompt_dim, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, embeds: Tensor) -> Tensor:
        return torch.sigmoid(self.net(embeds))


class ReferenceRedirector(nn.Module):
    """Latent-aware classifier and delta generator with the state-dict names of the published checkpoint."""

    def __init__(self, sizes: ReferenceSizes | None = None) -> None:
        super().__init__()
        self.sizes = s = sizes or ReferenceSizes()
        dim, joint = s.prompt_dim, s.joint_dim
        channels = (s.latent_channels, *s.latent_widths)
        self.pos_embed = nn.Parameter(torch.randn(1, s.seq_len, dim))
        self.latent_encoder = nn.Sequential(
            *(ResidualBlock(a, b) for a, b in pairwise(channels)),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(channels[-1], s.latent_dim), nn.ReLU(), nn.Dropout(0.2),
        )  # fmt: skip
        self.t_encoder = nn.Sequential(nn.Linear(s.sinusoid_dim, s.t_dim), nn.SiLU(), nn.LayerNorm(s.t_dim))
        self.cross_attn = CrossAttention(joint, dim, s.cross_heads)
        self.classifier = nn.Sequential(
            nn.Linear(joint + 2 * dim, s.classifier_hidden), nn.ReLU(), nn.Dropout(0.2),
            nn.Linear(s.classifier_hidden, CLASSES),
        )  # fmt: skip
        token_in = joint + (3 if s.token_specific else 1) * dim
        self.token_proj = nn.Sequential(nn.Linear(token_in, s.token_hidden), nn.ReLU(), nn.Linear(s.token_hidden, dim))
        self.delta_head = DeltaHead(dim, s.rank)
        self.gate_linear = nn.Linear(dim, 1)
        self.mask_predictor = MaskPredictor(dim, s.mask_hidden)
        self.alpha_predictor = AlphaPredictor(dim, s.alpha_hidden)

    def forward(
        self,
        latent: Tensor,
        prompt_embeds: Tensor,
        timestep: Tensor | float,
        ground_truth_mask: Tensor | None = None,
    ) -> RedirectorOutput:
        """latent (B, C, h, w); prompt_embeds see `conditional_half`; ground_truth_mask (B, T) replaces m."""
        latent, prompt_embeds = latent.to(self.pos_embed.dtype), prompt_embeds.to(self.pos_embed.dtype)
        embeds = conditional_half(prompt_embeds, latent.shape[0]).contiguous()
        if embeds.shape != (latent.shape[0], self.sizes.seq_len, self.sizes.prompt_dim):
            expected = (latent.shape[0], self.sizes.seq_len, self.sizes.prompt_dim)
            raise ValueError(
                f"prompt_embeds has shape {tuple(prompt_embeds.shape)}, expected a conditional part of {expected}."
            )
        t = batch_timestep(timestep, latent.shape[0], latent.device)
        time = sinusoid(t, self.sizes.sinusoid_dim).to(embeds.dtype)
        joint = torch.cat([self.latent_encoder(latent), self.t_encoder(time)], dim=-1)  # j
        context = self.cross_attn(joint, embeds)  # c
        logits = self.classifier(torch.cat([joint, embeds.mean(dim=1), context], dim=-1))

        columns = torch.cat([joint, context], dim=-1)[:, None].expand(-1, embeds.shape[1], -1)
        if self.sizes.token_specific:
            columns = torch.cat([columns, embeds, self.pos_embed.expand_as(embeds)], dim=-1)
        gate = torch.sigmoid(self.gate_linear(embeds + self.pos_embed))
        mask = self.mask_predictor(embeds)
        applied = mask if ground_truth_mask is None else ground_truth_mask.to(mask.dtype)
        delta = self.delta_head(self.token_proj(columns)) * gate * applied[..., None]
        return RedirectorOutput(logits, delta, mask, self.alpha_predictor(embeds))


def load_reference_redirector(source: Mapping[str, Tensor] | str | PathLike[str]) -> ReferenceRedirector:
    """The redirector of a state dict, a `.safetensors` or a `.pt`/`.pth` file: float32, on CPU, eval mode.

    Sizes come from the shapes; a name, shape or value that does not fit raises `StateDictError`.
    """
    state = source if isinstance(source, Mapping) else read_state_dict(Path(source))
    check_values(state)
    sizes = infer_sizes(state)
    with torch.device("meta"):
        redirector = ReferenceRedirector(sizes)
    check_against(state, redirector.state_dict())
    redirector = redirector.to_empty(device="cpu")
    redirector.load_state_dict(state)
    return redirector.eval()


def conditional_half(prompt_embeds: Tensor, batch: int) -> Tensor:
    """(B, 2, T, D) -> index 1 of axis 1; (2B, T, D) -> the last B rows; anything else unchanged."""
    if prompt_embeds.ndim == 4:
        return prompt_embeds[:, 1]
    if prompt_embeds.ndim == 3 and prompt_embeds.shape[0] == 2 * batch:
        return prompt_embeds[batch:]
    return prompt_embeds


def widen_token_proj(reference: ReferenceRedirector) -> ReferenceRedirector:
    """A copy whose token_proj also reads e_i and pos_i through zero columns: same outputs, to fine-tune."""
    sizes = ReferenceSizes(**{**vars(reference.sizes), "token_specific": True})  # nosec B105
    state = dict(reference.state_dict())
    weight = state["token_proj.0.weight"]
    extra = weight.new_zeros(weight.shape[0], sizes.joint_dim + 3 * sizes.prompt_dim - weight.shape[1])
    state["token_proj.0.weight"] = torch.cat([weight, extra], dim=1)
    widened = ReferenceRedirector(sizes).to(weight.device, weight.dtype)
    widened.load_state_dict(state)
    return widened.train(reference.training)


def finite_rows(*tensors: Tensor) -> Tensor:
    """(B, ...) tensors -> (B,) bool: True where every entry of the row is finite in all of them."""
    rows = [torch.isfinite(x).reshape(x.shape[0], -1).all(dim=1) for x in tensors]
    return torch.stack(rows).all(dim=0)


def reference_shift(delta: Tensor, alpha: Tensor, e0: Tensor, mask: Tensor | None = None) -> Tensor:
    """Shift = alpha * |e0| * delta/|delta| per token, times m if `mask` is given (`mask_again`); shape of e0.

    delta (B, T, D), alpha (B, T, 1), mask (B, T), e0 (2B, T, D) in CFG layout or (B, T, D). The direction of
    a sample serves both of its halves. |delta| = 0 gives a zero token, NaN or infinity in delta, alpha or
    mask a zero sample.
    """
    batch, rows = delta.shape[0], e0.shape[0]
    if rows not in (batch, 2 * batch):
        raise ValueError(f"e0 has {rows} rows, expected {batch} or {2 * batch} for a delta of {batch} samples.")
    work = torch.promote_types(delta.dtype, torch.float32)
    strength = (alpha if mask is None else alpha * mask[..., None]).to(work)
    finite = finite_rows(delta, strength)[:, None, None]
    delta = torch.where(finite, delta.to(work), 0.0)
    strength = torch.where(finite, strength, 0.0)
    length = torch.linalg.vector_norm(delta, dim=-1, keepdim=True)
    step = strength * delta / torch.where(length > 0, length, 1.0)
    norms = torch.linalg.vector_norm(e0.to(work), dim=-1, keepdim=True)
    shift: Tensor = step.repeat(rows // batch, 1, 1) * norms
    return shift.to(e0.dtype)


def apply_reference_shift(e0: Tensor, shift: Tensor, scale: float | Tensor = 1.25) -> Tensor:
    """e = e0 + s * Shift, always from the original embedding e0, never cumulative."""
    return e0 + scale * shift
