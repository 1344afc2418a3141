"""Dual latent R1: blend the guidance of the user's prompt with that of a safe one, at a level of safety.

Implements reconstruction R1 of "Safety without semantic disruptions" (arXiv:2411.13982). The equations of the paper are unknown:
this is ours, fits the known facts, and its numbers are not the paper's. Rows 0 unconditional, u the user's prompt, s a
safe one; g guidance scale; level w in [0, 1], share tau of the run under the user's prompt alone. Shapes (B, C, h, w):

  context phase m = m_0 + g (m_u - m_0);      dual phase m = m_0 + g ((1 - w) m_u + w m_s - m_0)

Without guidance m = (1 - w) m_u + w m_s. Prediction types need no conversion (the weights sum to 1). One extra row, in the
dual phase only and nowhere if w = 0. Cost 1 + (1 - tau)/2 of the run under guidance.

Deviations from our specification: the provider "context_text" (safe words before the prompt) is not there, because a guard does
not see the prompt's text, and "interpolate" is the default; w is a number, or one per image, not a function of the step; no
prompt gate; `guidance_rescale` and the like come before the blend. In a run with `insist` the dual phase of those images
is the whole run and 1 - w is halved at each level.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from saferedir.decisions import Decision
from saferedir.encoding import Encoded
from saferedir.errors import GuardConfigError, GuardError
from saferedir.guard import Guard, GuardConfig, Run, Step
from saferedir.guards.dual_latent.config import DualLatentConfig
from saferedir.guards.dual_latent.similarity import largest_level, low_pass
from saferedir.guards.guidance import Tally, guidance_weight, of_length, per_sample
from saferedir.schedules import to_x0

SAFE_PROMPT, SAFE_POOLED = "safe_prompt_embeds", "safe_pooled_embeds"


@dataclass
class DualLatentState:
    """Of one run; every tensor has B rows."""

    tally: Tally
    w: Tensor
    insisted: Tensor
    texts: Encoded | None  # what the provider needs encoded, (E, ...)
    now: Tensor  # w of this call, 0 in the context phase
    used: list[Tensor] = field(default_factory=list)


class DualLatentR1(Guard[DualLatentConfig]):
    """The guard. safe_prompt_embeds (L, D), safe_pooled_embeds (P,): the weights of the provider "learned"."""

    method: ClassVar[str] = "dual_latent_r1"
    config_class: ClassVar[type[GuardConfig]] = DualLatentConfig
    replaces_guidance: ClassVar[bool] = True

    def __init__(
        self, config: DualLatentConfig, safe_prompt_embeds: Tensor | None = None, safe_pooled_embeds: Tensor | None = None
    ) -> None:
        super().__init__(config)
        self.safe_prompt_embeds, self.safe_pooled_embeds = safe_prompt_embeds, safe_pooled_embeds

    def start(self, run: Run) -> DualLatentState:
        levels, rows = self.config.levels, run.batch_size
        if len(levels) not in (1, rows):
            raise GuardError(f"guard {self.method!r} has {len(levels)} levels w for {rows} images; give one, or {rows}.")
        if self.config.provider == "learned" and self.safe_prompt_embeds is None:
            raise GuardError(f"guard {self.method!r} has no weights; pass safe_prompt_embeds, or use another provider.")
        w = torch.tensor(levels, device=run.device).expand(rows)
        insist = torch.tensor(run.insist or (0,) * rows, device=run.device)
        w = torch.where(insist > 0, torch.maximum(w, 1 - (1 - w) * 0.5**insist), w)
        providers = {"learned": [], "anchor": [self.config.anchor, self.config.concept]}
        wanted = providers.get(self.config.provider, [self.config.safe_phrase])
        texts = run.encode(wanted) if wanted and bool((w > 0).any()) else None
        return DualLatentState(Tally(run), w, insist > 0, texts, torch.zeros_like(w))

    def extra_embeds(self, step: Step, extra: Encoded | None) -> Encoded | None:
        state: DualLatentState = step.state
        state.now = torch.where(self._is_dual(step) | state.insisted, state.w, 0.0)
        return self._safe(step, state.texts) if bool((state.now > 0).any()) else None

    def on_prediction(self, step: Step) -> Tensor:
        state: DualLatentState = step.state
        assert step.pred is not None and step.pred_cond is not None
        if not step.pred_extra:
            return step.pred
        shift = guidance_weight(step) * (step.pred_extra[0].float() - step.pred_cond.float())
        w = state.now
        if self.config.tau_mode == "similarity":
            w = torch.where(state.insisted, w, torch.minimum(w, self._ceiling(step, shift)))
        state.used.append(w.detach())
        state.tally.count(w.detach() > 0, step)
        return step.pred.float() + per_sample(w, shift) * shift

    def _is_dual(self, step: Step) -> Tensor:
        """(B,) bool: whether this call is in the dual phase."""
        tau, is_first = self.config.tau, self.config.phase_order == "dual_first"
        if self.config.tau_mode == "similarity":
            return torch.ones_like(step.t, dtype=torch.bool)
        if self.config.tau_mode == "noise":
            u = (step.sigma / (step.alpha + step.sigma)).flatten()
            return u > tau if is_first else u <= 1 - tau
        context = round(tau * step.num_steps)
        is_dual = step.index < step.num_steps - context if is_first else step.index >= context
        return torch.full_like(step.t, is_dual, dtype=torch.bool)

    def _safe(self, step: Step, texts: Encoded | None) -> Encoded:
        """Conditioning of the safe row, (1, B, ...)."""
        e, pooled, config = step.prompt_embeds, step.pooled, self.config
        if texts is None:
            assert self.safe_prompt_embeds is not None
            if pooled is not None and self.safe_pooled_embeds is None:
                raise GuardError(f"guard {self.method!r} has no {SAFE_POOLED}, which this family of pipelines needs.")
            found = Encoded(self.safe_prompt_embeds[None].to(e), None)
            if pooled is not None and self.safe_pooled_embeds is not None:
                found = found._replace(pooled=self.safe_pooled_embeds[None].to(pooled))
            found = found._replace(mask=torch.ones(found.prompt.shape[:2], dtype=torch.bool, device=e.device))
        elif config.provider == "phrase":
            found = texts
        else:
            own, texts = self._alike(Encoded(e, pooled, None if texts.mask is None else step.prompt_mask), texts)
            e, a = own.prompt, config.amount
            first, last = texts.rows(slice(0, 1)), texts.rows(slice(-1, None))

            def mixed(own: Tensor, one: Tensor, other: Tensor) -> Tensor:
                return (1 - a) * own + a * one if config.provider == "interpolate" else own + (one - other)

            found = Encoded(mixed(e, first.prompt, last.prompt))
            if pooled is not None and first.pooled is not None and last.pooled is not None:
                found = found._replace(pooled=mixed(pooled, first.pooled, last.pooled))
            if texts.mask is not None and own.mask is not None:
                found = found._replace(mask=own.mask | texts.mask.bool().any(dim=0))
        return found.map(lambda part: part.expand(step.run.batch_size, *part.shape[1:])[None])

    def _alike(self, own: Encoded, texts: Encoded) -> tuple[Encoded, Encoded]:
        """Both as long as the longer, and zero where masked: what stands there depends on an image's neighbours."""
        length = max(own.prompt.shape[1], texts.prompt.shape[1])
        longer = of_length(own, length), of_length(texts, length)
        if longer[0] is None or longer[1] is None or own.prompt.shape[2] != texts.prompt.shape[2]:
            raise GuardError(
                f"the safe texts of guard {self.method!r} give embeddings {tuple(texts.prompt.shape[1:])} where this call has "
                f"{tuple(own.prompt.shape[1:])}, so they cannot be mixed; use provider 'phrase'."
            )
        own, texts = (_unmasked(part) for part in (longer[0], longer[1]))
        return own, texts

    def _ceiling(self, step: Step, shift: Tensor) -> Tensor:
        """(B,): the largest w whose denoised estimate is similar enough to that of the user's prompt."""
        assert step.x0 is not None and step.pred is not None
        safe = to_x0(step.run.prediction_type, step.pred.float() + shift, step.x_t.float(), step.alpha, step.sigma)
        return largest_level(low_pass(step.x0), low_pass(safe), self.config.tau)

    def verdict(self, run: Run, state: DualLatentState) -> list[Decision]:
        message = "Guidance was blended with that of a safe prompt."
        if self.config.tau_mode == "similarity" and state.used:
            w = torch.stack(state.used)
            message = f"{message} Levels used in this run: mean {float(w.mean()):.3g}, highest {float(w.max()):.3g}."
        thresholds = {"tau": self.config.tau}
        return state.tally.decisions(self.method, self.config, "edited", message, thresholds)

    def tensors(self) -> dict[str, Tensor]:
        found = {SAFE_PROMPT: self.safe_prompt_embeds, SAFE_POOLED: self.safe_pooled_embeds}
        return {name: value for name, value in found.items() if value is not None}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        unknown = sorted(set(tensors) - {SAFE_PROMPT, SAFE_POOLED})
        if unknown:
            raise GuardConfigError(f"guard {self.method!r} has no weights called {', '.join(unknown)}.")
        prompt, pooled = tensors.get(SAFE_PROMPT), tensors.get(SAFE_POOLED)
        if (prompt is not None and prompt.ndim != 2) or (pooled is not None and pooled.ndim != 1):
            raise GuardConfigError(f"guard {self.method!r} needs {SAFE_PROMPT} (L, D) and {SAFE_POOLED} (P,).")
        self.safe_prompt_embeds, self.safe_pooled_embeds = prompt, pooled


def _unmasked(found: Encoded) -> Encoded:
    return found if found.mask is None else found._replace(prompt=found.prompt * found.mask[..., None].to(found.prompt))
