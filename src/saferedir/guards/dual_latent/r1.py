"""Dual latent R1: blend the guidance of the user's prompt with that of a safe one, at a level of safety.

Implements reconstruction R1 of "Safety without semantic disruptions" (arXiv:2411.13982). The equations of the paper are unknown:
this is ours, fits the known facts, and its numbers are not the paper's. Rows 0 unconditional, u the user's prompt, s a
safe one; g guidance scale; level w in [0, 1], share tau of the run under the user's prompt alone. Shapes (B, C, h, w):

  context phase m = m_0 + g (m_u - m_0);      dual phase m = m_0 + g ((1 - w) m_u + w m_s - m_0)

Without guidance m = (1 - w) m_u + w m_s. Prediction types need no conversion (the weights sum to 1). One extra row, in the
dual phase only and nowhere if w = 0. Cost 1 + (1 - tau)/2 of the run under guidance.

Equations, derived: docs/methods/dual_latent.md (2) to (6).

Choices: the default provider is "interpolate", because "context_text" (safe words before the prompt)
needs to know the prompt's text; w is a number, or one per image, not a function of the step; no prompt gate; a prompt cut by
the text encoder is not warned about; `guidance_rescale` and the like come before the blend. In a run with `retry_level`
the dual phase of those images is the whole run and 1 - w is halved at each level.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from saferedir.decisions import Decision
from saferedir.guards.base import GuardConfig, Run, Step
from saferedir.guards.dual_latent.base import DualLatent, Levels
from saferedir.guards.dual_latent.config import DualLatentConfig
from saferedir.guards.dual_latent.similarity import largest_level, low_pass
from saferedir.guards.guidance import guidance_weight
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.schedules import to_x0
from saferedir.utils.broadcast import per_sample
from saferedir.utils.device import to_host


@dataclass
class DualLatentState:
    """State of one run; every tensor has B rows."""

    levels: Levels
    now: Tensor  # w of this call, 0 in the context phase
    used: list[Tensor] = field(default_factory=list)


class DualLatentR1(DualLatent[DualLatentConfig]):
    """The guard. safe_prompt_embeds (L, D), safe_pooled_embeds (P,): the weights of the provider "learned"."""

    method: ClassVar[str] = "dual_latent_r1"
    config_class: ClassVar[type[GuardConfig]] = DualLatentConfig

    def start(self, run: Run) -> DualLatentState:
        levels = self.levels(run)
        return DualLatentState(levels, torch.zeros_like(levels.w))

    def extra_embeds(self, step: Step, extra: PromptEmbeds | None) -> PromptEmbeds | None:
        state: DualLatentState = step.state
        levels = state.levels
        is_dual = self.is_dual(step)
        state.now = levels.w if is_dual else torch.where(levels.is_retried, levels.w, 0.0)
        has_any = bool((levels.known_w > 0)[levels.known_is_retried | is_dual].any())
        return self.safe_row(step, levels.texts) if has_any else None

    def on_prediction(self, step: Step) -> Tensor:
        state: DualLatentState = step.state
        assert step.pred is not None and step.pred_cond is not None
        if not step.pred_extra:
            return step.pred
        shift = guidance_weight(step) * (step.pred_extra[0].float() - step.pred_cond.float())
        w = state.now
        if self.config.tau_mode == "similarity":
            w = torch.where(state.levels.is_retried, w, torch.minimum(w, self._ceiling(step, shift)))
        state.used.append(w.detach())
        state.levels.tally.count(w.detach() > 0, step)
        return step.pred.float() + per_sample(w, shift) * shift

    def _ceiling(self, step: Step, shift: Tensor) -> Tensor:
        """(B,): the largest w whose denoised estimate is similar enough to that of the user's prompt."""
        assert step.x0 is not None and step.pred is not None
        safe = to_x0(step.run.prediction_type, step.pred.float() + shift, step.x_t.float(), step.alpha, step.sigma)
        return largest_level(low_pass(step.x0), low_pass(safe), self.config.tau)

    def verdict(self, run: Run, state: DualLatentState) -> list[Decision]:
        message = "Guidance was blended with that of a safe prompt."
        if self.config.tau_mode == "similarity" and state.used:
            (w,) = to_host(torch.stack(state.used))
            message = f"{message} Levels used in this run: mean {float(w.mean()):.3g}, highest {float(w.max()):.3g}."
        return state.levels.tally.decisions(self.method, self.config, "edited", message, {"tau": self.config.tau})
