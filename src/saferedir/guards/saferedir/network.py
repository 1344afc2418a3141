"""The redirector of this project's `default` SafeRedir: any prompt length, any sizes, several concepts.

Generalises the network of "SafeRedir: Prompt Embedding Redirection for Robust Unlearning in Image Generation Models"
(arXiv:2601.08623). docs/methods/saferedir.md (1) to (5). `guard.py` runs it, `training/saferedir` trains it.

Shapes: prompt embeddings e (B, L, D), conditional rows only; prompt_mask (B, L) bool, True for real tokens;
pooled (B, P); latent = denoised estimate x0 (B, C, h, w); timestep (B,) in [0, 1000]; K concepts, L tokens.
Deviations from the paper's released network, all on purpose: three verdicts (prompt, image, joint) instead of
one, with K independent scores instead of two classes; the image side reads x0, not x_t; the direction comes
from the prompt alone and is token-specific; it is normalised before mask and scale, so that both act;
GroupNorm; no gate, no learned scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saferedir.guards.saferedir.layers import (
    AttentionPool,
    CrossAttention,
    LatentEncoder,
    TransformerLayer,
    masked_mean,
)
from saferedir.guards.saferedir.redirect import Redirection, redirect, redirect_pooled
from saferedir.guards.saferedir.redirector_config import RedirectorConfig
from saferedir.guards.saferedir.reference import batch_timestep, sinusoid
from saferedir.guards.saferedir.rows import ConceptRows

__all__ = [
    "Redirection",
    "Redirector",
    "RedirectorConfig",
    "RedirectorPrediction",
    "TokenFeatures",
    "redirect",
    "redirect_pooled",
    "without_joint",
]

POOL_QUERIES = 4
#: what guards and training ask for by itself, each compiled by `Redirector.compile`
PIECES = ("prompt_logits", "image_logits", "redirection", "token_features", "redirection_of")


@dataclass(frozen=True)
class RedirectorPrediction:
    """All a redirector says; logits are (B, K), independent per concept, > 0 leans to unsafe; joint None where it has none."""

    prompt_logits: Tensor
    image_logits: Tensor
    joint_logits: Tensor | None
    redirection: Redirection


class TokenFeatures(NamedTuple):
    """What all concepts' directions, masks and scales are made from.

    Attributes:
        both: (B, L or 1, D + W) tokens, and what a layer made of them.
        mixed: (B, L, W) the latter.
        mask: (B, L) bool, True for real tokens; None where all are.
        summary: (B, W + P) for the pooled embedding; None without one.
    """

    both: Tensor
    mixed: Tensor
    mask: Tensor | None
    summary: Tensor | None


class ConceptHead(nn.Module):
    """All that belongs to one concept, on features of the shared trunk: scores, direction, mask, scale."""

    def __init__(self, config: RedirectorConfig, token_dim: int, width: int) -> None:
        super().__init__()
        hidden, pooled = config.hidden, config.pooled_dim
        self.alpha_max = config.alpha_max
        self.prompt_score = nn.Linear(hidden, 1)
        self.image_score = nn.Linear(hidden, 1)
        self.joint_score = nn.Linear(hidden, 1)
        self.delta = nn.Sequential(
            nn.Linear(token_dim, config.rank), nn.SiLU(), nn.Linear(config.rank, config.prompt_dim)
        )
        self.mask = nn.Sequential(nn.Linear(width, width // 2), nn.SiLU(), nn.Linear(width // 2, 1))
        self.alpha = nn.Sequential(nn.Linear(width, width // 2), nn.SiLU(), nn.Linear(width // 2, 1))
        self.pooled = (
            nn.Sequential(nn.Linear(width + pooled, hidden), nn.SiLU(), nn.Linear(hidden, pooled + 1))
            if pooled
            else None
        )

    def token_parts(self, tokens: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """tokens (B, L or 1, D + W), mixed (B, L, W) -> delta (B, L or 1, D), mask (B, L), alpha (B, L, 1)."""
        alpha = torch.sigmoid(self.alpha(mixed)) * self.alpha_max
        return self.delta(tokens), torch.sigmoid(self.mask(mixed)).squeeze(-1), alpha

    def pooled_parts(self, summary: Tensor) -> tuple[Tensor, Tensor]:
        """(B, W + P) -> delta (B, P), alpha (B, 1) of the pooled embedding."""
        if self.pooled is None:
            raise ValueError("This head has no pooled part: its redirector was built with pooled_dim=0.")
        both: Tensor = self.pooled(summary)
        return both[:, :-1], torch.sigmoid(both[:, -1:]) * self.alpha_max


class Redirector(nn.Module):
    """Shared trunk, and a `ConceptHead` or a row of `ConceptRows` per concept. Every piece can be asked for by itself."""

    def __init__(self, config: RedirectorConfig) -> None:
        super().__init__()
        self.config = config
        dim, width, hidden, pooled = config.prompt_dim, config.width, config.hidden, config.pooled_dim
        joint = hidden + config.t_dim
        self.token_norm = nn.LayerNorm(dim)
        self.pooled_norm = nn.LayerNorm(pooled) if pooled else None

        self.prompt_pool = AttentionPool(dim, width, config.heads, POOL_QUERIES)
        self.prompt_trunk = _mlp(POOL_QUERIES * width + dim + pooled, hidden)

        self.latent_encoder = LatentEncoder(config.latent_channels, config.latent_widths, config.latent_strides, hidden)
        self.t_encoder = nn.Sequential(nn.Linear(2 * config.t_dim, config.t_dim), nn.SiLU(), nn.LayerNorm(config.t_dim))
        self.image_trunk = _mlp(joint, hidden)

        has_context = config.has_joint or config.latent_aware_delta
        self.cross_attention = CrossAttention(joint, dim, width, config.heads) if has_context else None
        self.joint_trunk = _mlp(joint + width + dim + pooled, hidden) if config.has_joint else None

        extra = joint + width if config.latent_aware_delta else 0
        self.token_in = nn.Linear(dim + extra, width)
        self.token_mixer = TransformerLayer(width, config.heads)
        self.token_out = nn.LayerNorm(width)
        self.heads: ConceptRows | nn.ModuleList = (
            ConceptRows(config, dim + width, width)
            if config.row_heads
            else nn.ModuleList(ConceptHead(config, dim + width, width) for _ in config.concepts)
        )

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the network in place, as `nn.Module.compile` does, and each of its pieces; a copy is not compiled.

        What the pieces return is copied out of the graphs' memory, which CUDA graphs write over: guards keep it for a run.

        Args:
            args: of `torch.compile`.
            kwargs: of `torch.compile`, such as `mode` and `fullgraph`.
        """
        super().compile(*args, **kwargs)
        for name in PIECES:
            piece = torch.compile(MethodType(getattr(type(self), name), self), *args, **kwargs)
            setattr(self, name, _copying(piece))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in (*PIECES, "_compiled_call_impl")}

    def prompt_logits(
        self, prompt_embeds: Tensor, prompt_mask: Tensor | None = None, pooled: Tensor | None = None
    ) -> Tensor:
        """(B, K) logits from the text alone."""
        return self._prompt_logits(*self._text(prompt_embeds, prompt_mask, pooled))

    def image_logits(self, latent: Tensor, timestep: Tensor | float) -> Tensor:
        """(B, K) logits from the denoised estimate and the time alone, whatever the prompt says."""
        return self._image_logits(self.joint_feature(latent, timestep))

    def joint_logits(
        self,
        latent: Tensor,
        timestep: Tensor | float,
        prompt_embeds: Tensor,
        prompt_mask: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> Tensor:
        """(B, K) logits from everything: j, the cross-attention feature c, the mean of e and pooled."""
        text = self._text(prompt_embeds, prompt_mask, pooled)
        return self._joint_logits(self.joint_feature(latent, timestep), *text)

    def image_and_joint_logits(
        self,
        latent: Tensor,
        timestep: Tensor | float,
        prompt_embeds: Tensor,
        prompt_mask: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`image_logits` and `joint_logits`, the latent encoded once."""
        joint = self.joint_feature(latent, timestep)
        return self._image_logits(joint), self._joint_logits(joint, *self._text(prompt_embeds, prompt_mask, pooled))

    def redirection(
        self,
        prompt_embeds: Tensor,
        prompt_mask: Tensor | None = None,
        pooled: Tensor | None = None,
        latent: Tensor | None = None,
        timestep: Tensor | float | None = None,
        chosen: Tensor | None = None,
    ) -> Redirection:
        """Directions, masks and scales; latent and timestep are read only with `latent_aware_delta`.

        `chosen`: indices (B, M) of the concepts wanted of each image, with `row_heads` only; None for all K.
        """
        if chosen is not None and not self.config.row_heads:
            raise ValueError(
                "This redirector has a head for each concept, so chosen must be None; build it with row_heads."
            )
        joint = None
        if self.config.latent_aware_delta:
            if latent is None or timestep is None:
                raise ValueError("This redirector has latent_aware_delta=True: redirection needs latent and timestep.")
            joint = self.joint_feature(latent, timestep)
        return self._redirection(joint, *self._text(prompt_embeds, prompt_mask, pooled), chosen)

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor | float,
        prompt_embeds: Tensor,
        prompt_mask: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> RedirectorPrediction:
        """All verdicts and the redirection, the latent encoded once."""
        joint = self.joint_feature(latent, timestep)
        text = self._text(prompt_embeds, prompt_mask, pooled)
        return RedirectorPrediction(
            prompt_logits=self._prompt_logits(*text),
            image_logits=self._image_logits(joint),
            joint_logits=self._joint_logits(joint, *text) if self.config.has_joint else None,
            redirection=self._redirection(joint, *text),
        )

    def joint_feature(self, latent: Tensor, timestep: Tensor | float) -> Tensor:
        """j (B, hidden + t_dim): the encoded latent and the encoded time."""
        channels = self.config.latent_channels
        if latent.ndim != 4 or latent.shape[1] != channels:
            raise ValueError(f"latent has shape {tuple(latent.shape)}, expected (B, {channels}, h, w).")
        dtype = self.token_norm.weight.dtype
        t = batch_timestep(timestep, latent.shape[0], latent.device)
        time = self.t_encoder(sinusoid(t, 2 * self.config.t_dim).to(dtype))
        return torch.cat([self.latent_encoder(latent.to(dtype)), time], dim=-1)

    def _text(
        self, prompt_embeds: Tensor, prompt_mask: Tensor | None, pooled: Tensor | None
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Checked and normalised text inputs; pooled as a list of nothing or one (B, P)."""
        dim, dtype = self.config.prompt_dim, self.token_norm.weight.dtype
        if prompt_embeds.ndim != 3 or prompt_embeds.shape[-1] != dim:
            raise ValueError(f"prompt_embeds has shape {tuple(prompt_embeds.shape)}, expected (B, L, {dim}).")
        if prompt_mask is not None and prompt_mask.shape != prompt_embeds.shape[:2]:
            raise ValueError(
                f"prompt_mask has shape {tuple(prompt_mask.shape)},"
                f" expected {tuple(prompt_embeds.shape[:2])} as prompt_embeds has."
            )
        mask = None if prompt_mask is None else prompt_mask.bool()
        embeds = prompt_embeds.to(dtype)
        if mask is not None:  # padding has no weight anywhere, but no weight times NaN would be NaN
            embeds = embeds.masked_fill(~mask[..., None], 0.0)
        tokens = self.token_norm(embeds)
        if self.pooled_norm is None:
            return tokens, mask, []
        if pooled is None or pooled.shape != (prompt_embeds.shape[0], self.config.pooled_dim):
            shape = None if pooled is None else tuple(pooled.shape)
            raise ValueError(f"pooled is {shape}, expected ({prompt_embeds.shape[0]}, {self.config.pooled_dim}).")
        return tokens, mask, [self.pooled_norm(pooled.to(dtype))]

    def _scores(self, name: str, features: Tensor) -> Tensor:
        if isinstance(self.heads, ConceptRows):
            scores: Tensor = getattr(self.heads, name)(features)
            return scores
        return torch.cat([getattr(head, name)(features) for head in self._concept_heads()], dim=-1)

    def _prompt_logits(self, tokens: Tensor, mask: Tensor | None, pooled: list[Tensor]) -> Tensor:
        features = [self.prompt_pool(tokens, mask), masked_mean(tokens, mask), *pooled]
        return self._scores("prompt_score", self.prompt_trunk(torch.cat(features, dim=-1)))

    def _image_logits(self, joint: Tensor) -> Tensor:
        return self._scores("image_score", self.image_trunk(joint))

    def _joint_logits(self, joint: Tensor, tokens: Tensor, mask: Tensor | None, pooled: list[Tensor]) -> Tensor:
        if self.cross_attention is None or self.joint_trunk is None:
            raise ValueError("This redirector has no joint verdict: it was built with has_joint=False.")
        context = self.cross_attention(joint, tokens, mask)
        features = torch.cat([joint, context, masked_mean(tokens, mask), *pooled], dim=-1)
        return self._scores("joint_score", self.joint_trunk(features))

    def token_features(
        self, prompt_embeds: Tensor, prompt_mask: Tensor | None = None, pooled: Tensor | None = None
    ) -> TokenFeatures:
        """What `redirection` makes of an embedding before it comes to single concepts, to be kept for as long as it stands."""
        if self.config.latent_aware_delta:
            raise ValueError("This redirector has latent_aware_delta=True: its features change with the latent.")
        return self._token_features(None, *self._text(prompt_embeds, prompt_mask, pooled))

    def redirection_of(self, features: TokenFeatures, chosen: Tensor | None = None) -> Redirection:
        """As `redirection`, of features that are there already."""
        both, mixed, mask, summary = features
        if isinstance(self.heads, ConceptRows):
            delta, token_mask, alpha = self.heads.token_parts(both, mixed, chosen)
        else:
            parts = [head.token_parts(both, mixed) for head in self._concept_heads()]
            delta, token_mask, alpha = (torch.stack(part, dim=1) for part in zip(*parts, strict=True))
        delta = delta.expand(-1, -1, mixed.shape[1], -1)
        if mask is not None:
            token_mask = token_mask * mask[:, None]
        if summary is None:
            return Redirection(delta, token_mask, alpha)
        if isinstance(self.heads, ConceptRows):
            return Redirection(delta, token_mask, alpha, *self.heads.pooled_parts(summary, chosen))
        pooled_parts = [head.pooled_parts(summary) for head in self._concept_heads()]
        pooled_delta, pooled_alpha = (torch.stack(part, dim=1) for part in zip(*pooled_parts, strict=True))
        return Redirection(delta, token_mask, alpha, pooled_delta, pooled_alpha)

    def _redirection(
        self,
        joint: Tensor | None,
        tokens: Tensor,
        mask: Tensor | None,
        pooled: list[Tensor],
        chosen: Tensor | None = None,
    ) -> Redirection:
        return self.redirection_of(self._token_features(joint, tokens, mask, pooled), chosen)

    def _token_features(
        self, joint: Tensor | None, tokens: Tensor, mask: Tensor | None, pooled: list[Tensor]
    ) -> TokenFeatures:
        length = tokens.shape[1]
        inputs = tokens
        if self.config.latent_aware_delta and joint is not None and self.cross_attention is not None:
            context = torch.cat([joint, self.cross_attention(joint, tokens, mask)], dim=-1)
            inputs = torch.cat([tokens, context[:, None].expand(-1, length, -1)], dim=-1)
        work = torch.promote_types(tokens.dtype, torch.float32)
        indices = torch.arange(length, device=tokens.device, dtype=work)
        positions = sinusoid(indices, self.config.width).to(tokens.dtype)
        mixed = self.token_out(self.token_mixer(self.token_in(inputs) + positions, mask))

        both = torch.cat([tokens, mixed], dim=-1)  # a direction depends on its e_i and on what the layer made of it
        if not self.config.token_specific:
            both = masked_mean(both, mask)[:, None]
        summary = torch.cat([masked_mean(mixed, mask), *pooled], dim=-1) if pooled else None
        return TokenFeatures(both, mixed, mask, summary)

    def _concept_heads(self) -> list[ConceptHead]:
        heads = [] if isinstance(self.heads, ConceptRows) else list(self.heads)
        return [head for head in heads if isinstance(head, ConceptHead)]


def _copying(piece: Callable[..., Any]) -> Callable[..., Any]:
    """A function that returns copies of what `piece` returns: a tensor, or a record of some."""

    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.clone()
        if isinstance(value, Redirection):
            return replace(value, **{entry.name: copied(getattr(value, entry.name)) for entry in fields(value)})
        return value if value is None else type(value)(*map(copied, value))

    def call(*args: Any, **kwargs: Any) -> Any:
        return copied(piece(*args, **kwargs))

    return call


def without_joint(network: Redirector) -> Redirector:
    """The same redirector without its joint verdict, which no guard reads; all other scores and directions stay the same bits."""
    with torch.random.fork_rng():
        slim = Redirector(replace(network.config, has_joint=False))
    state, wanted = network.state_dict(), slim.state_dict()
    slim.load_state_dict({name: state[name] for name in wanted})
    return slim.to(network.token_norm.weight.device, network.token_norm.weight.dtype).train(network.training)


def _mlp(in_dim: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(in_dim), nn.Linear(in_dim, hidden), nn.SiLU())
