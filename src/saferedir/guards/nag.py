"""Normalised attention guidance: away from the concept's phrases in the features of attention, with or without guidance.

Implements "Normalized Attention Guidance" (arXiv:2505.21179), Sec. 3, with the concept's phrases as the negative prompt: the
one negative guidance that one- to eight-step, guidance-free models have. Derived in docs/methods/nag.md (1) to (4).
Shapes: attention to the prompt, before the output projection, z (B, N, D); p prompt, n phrases, at the same image tokens.

  (1) z' = z_p + (s - 1) (z_p - z_n);   (2) r = |z'|_1 / |z_p|_1 for each token;
  (3) z'' = min(r, tau) / r z';         (4) z = a z'' + (1 - a) z_p

The phrases ride as one extra row for each image, whose image tokens are those of the image's own row: the seam gives both rows
the answer in every layer. Families in which the prompt reaches the image some other way are refused when it is attached.

Deviations: pooled embeddings of the extra row are those of the image's own prompt; in runs with classifier-free guidance only
the prompts' rows are guided; images with a `retry_level` are guided with a = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from saferedir.decisions import Decision
from saferedir.guards.base import AttentionFeatures, Guard, GuardConfig, Run, Step
from saferedir.guards.guidance import Tally, WordsConfig, encode_phrases
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.utils.broadcast import per_sample


@dataclass(frozen=True, kw_only=True)
class NAGConfig(WordsConfig):
    """Settings of normalised attention guidance.

    Attributes:
        scale: s >= 1; 1 changes nothing.
        tau: largest growth of a token's L1 norm, >= 1.
        alpha: a in [0, 1], share of the guided features.
    """

    scale: float = 5.0
    tau: float = 2.5
    alpha: float = 0.5

    def validate(self) -> None:
        super().validate()
        self.require(bool(self.text), "phrases", "some words to steer away from")
        self.require_number("scale", "tau", at_least=1)
        self.require_number("alpha", at_least=0, at_most=1)


@dataclass
class NAGState:
    """State of one run: the phrases' conditioning (B, ...) and the share a of each image (B,)."""

    tally: Tally
    phrases: PromptEmbeds
    alpha: Tensor


def guided_features(cond: Tensor, away: Tensor, scale: float, tau: float, alpha: Tensor) -> Tensor:
    """(1) to (4): features (B, N, D) guided away from `away`, in the dtype of `cond`.

    Args:
        cond: z_p, (B, N, D).
        away: z_n, (B, N, D).
        scale: s.
        tau: largest growth of a token's L1 norm.
        alpha: a, (B,).
    """
    z_p, z_n = cond.float(), away.float()
    guided = z_p + (scale - 1) * (z_p - z_n)
    before, after = (z.abs().sum(dim=-1, keepdim=True) for z in (z_p, guided))
    limited = torch.minimum(after, tau * before) / after.clamp(min=1e-12)
    a = per_sample(alpha, z_p)
    return (a * limited * guided + (1 - a) * z_p).to(cond.dtype)


class NAG(Guard[NAGConfig]):
    """The guard; one extra row an image in every denoiser call of the prompts. It acts on every image."""

    method: ClassVar[str] = "nag"
    config_class: ClassVar[type[GuardConfig]] = NAGConfig
    always_acts: ClassVar[bool] = True
    needs_text_encoder = True

    def start(self, run: Run) -> NAGState:
        alpha = torch.where(run.retry_levels > 0, 1.0, self.config.alpha)
        return NAGState(Tally(run), encode_phrases(run, self.config.text, self.method), alpha)

    def extra_embeds(self, step: Step, extra: PromptEmbeds | None) -> PromptEmbeds:
        phrases = step.state.phrases
        return PromptEmbeds(phrases.prompt[None], None, None if phrases.mask is None else phrases.mask[None])

    def on_attention(self, step: Step, attention: AttentionFeatures) -> Tensor:
        config = self.config
        return guided_features(attention.cond, attention.extra[0], config.scale, config.tau, step.state.alpha)

    def on_prediction(self, step: Step) -> Tensor:
        assert step.pred is not None
        state: NAGState = step.state
        state.tally.count(torch.ones_like(state.tally.calls, dtype=torch.bool), step)
        return step.pred

    def verdict(self, run: Run, state: NAGState) -> list[Decision]:
        message = "Attention was guided away from the guard's phrases."
        return state.tally.decisions(self.method, self.config, "edited", message, {"scale": self.config.scale})
