"""Which embeddings each image gets: its prompt's, redirected ones, stronger ones, or the anchor's.

docs/methods/saferedir.md (6). `guard` decides who is redirected and at which level; this makes the conditioning of it.
Shapes: prompt embeddings (B, L, D), pooled ones (B, P), weights and levels (B,).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferedir.errors import GuardError
from saferedir.guards.base import Conditioning, Step
from saferedir.guards.saferedir.anchors import Anchors
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.guards.saferedir.hardening import ANCHOR_LEVEL
from saferedir.guards.saferedir.layers import real_tokens
from saferedir.guards.saferedir.network import Redirection, RedirectorConfig, redirect, redirect_pooled
from saferedir.guards.saferedir.redirect import match_length
from saferedir.guards.saferedir.state import Kept, RedirState, relative_shift
from saferedir.utils.device import may_hold, refuse


class Choice(NamedTuple):
    """What a guard redirects with.

    Attributes:
        config: the guard's settings.
        network: its `Redirector`.
        anchor: (L, D), embeddings of the anchor prompt, the last level; None where there are none.
        anchor_pooled: (P,), its pooled embedding; None where there is none.
        anchors: what a policy redirects to in place of all that, from the first; the first of them counts.
    """

    config: SafeRedirConfig
    network: Any
    anchor: Tensor | None
    anchor_pooled: Tensor | None
    anchors: Anchors | None = None

    def conditioning(self, step: Step, state: RedirState, weight: Tensor, level: Tensor) -> tuple[Conditioning, Tensor]:
        """(redirected conditioning, (B, L) how far its tokens are moved), of each image at its level.

        With hard gates and without gradients each level's is made once for the embeddings of the run, and rows are chosen of it.
        """
        is_hard = bool(self.config.gate == "hard")
        if not is_hard or torch.is_grad_enabled() or self.config.redirect_uncond:
            answer = self._shifted(step, state, weight, level)
            return answer, relative_shift(answer.cond.prompt.detach(), step.prompt_embeds.detach())
        if self.anchors is None:
            self._require_finite(self._redirection(step, state), weight, state)
        acts, e0, pooled = weight > 0, step.prompt_embeds, step.pooled
        has_anchor = any(part is not None for part in (self.anchor, self.anchor_pooled, self.anchors))
        highest = ANCHOR_LEVEL if has_anchor else 1
        chosen: Kept | None = None
        for rung in range(state.lowest_level, highest + 1):
            rows = acts & (level >= rung)  # an image at a level above 0 is redirected
            if not may_hold(rows):
                break
            kept = self._kept(step, state, rung)
            chosen = kept.onto(chosen or Kept(e0, pooled, torch.zeros_like(kept.strength)), rows)
        if chosen is None:
            return step.conditioning, torch.zeros(e0.shape[:2], device=e0.device)
        return step.conditioning.with_cond(prompt=chosen.prompt, pooled=chosen.pooled), chosen.strength

    def _kept(self, step: Step, state: RedirState, level: int) -> Kept:
        """All images redirected at one level."""
        if level not in state.kept:
            levels = torch.full_like(state.level, level)
            answer = self._shifted(step, state, torch.ones_like(state.prompt_weight), levels, is_checked=True).cond
            strength = relative_shift(answer.prompt, step.prompt_embeds)
            state.kept[level] = Kept(answer.prompt, answer.pooled, strength)
        return state.kept[level]

    def _redirection(self, step: Step, state: RedirState) -> Redirection:
        """Of the embeddings of the run; made once."""
        if state.redirection is None:
            e0, real = step.prompt_embeds, real_tokens(step.prompt_embeds, step.prompt_mask)
            with torch.autocast(e0.device.type, enabled=False):
                state.redirection = self.network.redirection(e0, real, step.pooled)
        redirection: Redirection = state.redirection
        return redirection

    def _shifted(
        self, step: Step, state: RedirState, weight: Tensor, level: Tensor, *, is_checked: bool = False
    ) -> Conditioning:
        if self.anchors is not None:
            cond = self.anchors.in_place(step.conditioning.cond, weight, is_hard=self.config.gate == "hard")
            return self._with_uncond(step, step.conditioning._replace(cond=cond))
        e0, real = step.prompt_embeds, real_tokens(step.prompt_embeds, step.prompt_mask)
        redirection = self._redirection(step, state)
        if not is_checked:
            self._require_finite(redirection, weight, state)
        network: RedirectorConfig = self.network.config
        scale = self.config.scale * torch.where(level > 0, self.config.escalation_scale, 1.0)
        active = weight[:, None].expand(-1, redirection.mask.shape[1])
        common = (redirection, active, scale, network.max_shift)
        prompt = redirect(e0, *common, prompt_mask=real, exempt_bos=network.exempt_bos)
        replaced = level > 1
        if self.anchor is not None and may_hold(replaced):
            swapped = replaced.view(-1, 1, 1) & step.prompt_mask.bool()[..., None]
            prompt = torch.where(swapped, match_length(self.anchor, e0.shape[1]).to(e0), prompt)
        pooled = step.pooled
        if pooled is not None and redirection.pooled_delta is not None:
            pooled = redirect_pooled(pooled, *common)
            if self.anchor_pooled is not None:
                pooled = torch.where(replaced.view(-1, 1), self.anchor_pooled.to(pooled), pooled)
        return self._with_uncond(step, step.conditioning.with_cond(prompt=prompt, pooled=pooled))

    def _with_uncond(self, step: Step, answer: Conditioning) -> Conditioning:
        """The negative prompt moved as the prompt was; `redirect_uncond` only."""
        if not self.config.redirect_uncond or step.negative_prompt_embeds is None:
            return answer
        return answer.with_uncond(prompt=step.negative_prompt_embeds + (answer.cond.prompt - step.prompt_embeds))

    def _require_finite(self, redirection: Redirection, weight: Tensor, state: RedirState) -> None:
        lost = ~redirection.finite & (weight.detach() > 0)
        if not self.config.fail_closed:
            state.left_alone = lost if state.left_alone is None else state.left_alone | lost
            return
        refuse(
            lost,
            lambda: GuardError(
                f"SafeRedir's redirection for {self.config.concept!r} is not finite for image(s) "
                f"{lost.nonzero().flatten().tolist()}, so no image is returned; check the prompt embeddings and the guard's "
                "weights."
            ),
        )
