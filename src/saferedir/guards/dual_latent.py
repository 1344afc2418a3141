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
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from saferedir.decisions import Decision
from saferedir.encoding import Encoded
from saferedir.errors import GuardConfigError, GuardError
from saferedir.guard import Guard, GuardConfig, Run, Step
from saferedir.guards.guidance import Tally, guidance_weight, of_length, per_sample
from saferedir.schedules import to_x0

#: safety level -> (w, tau)
LEVELS = {"off": (0.0, 0.0), "low": (0.25, 0.2), "medium": (0.5, 0.1), "high": (0.75, 0.1), "max": (1.0, 0.0)}
PROVIDERS = ("phrase", "interpolate", "anchor", "learned")
TAU_MODES = ("steps", "noise", "similarity")
PHASE_ORDERS = ("context_first", "dual_first")
SAFE_PROMPT, SAFE_POOLED = "safe_prompt_embeds", "safe_pooled_embeds"


@dataclass(frozen=True, kw_only=True)
class DualLatentConfig(GuardConfig):
    """Settings of the dual latent reconstructions; the defaults are the level "medium".

    Attributes:
        mode: "default"; "faithful" is refused, for there is no published procedure.
        w: level of safety in [0, 1], or one for each image of the run.
        tau: share tau_gc in [0, 1] kept for the global context; in `tau_mode` "similarity" a floor in (0, 1].
        tau_mode: "steps" (share of the steps), "noise" (share of sigma / (alpha + sigma)), or "similarity": w is lowered
            until the low-pass denoised estimate has at least cosine tau with that of the user's prompt; no phases then.
        phase_order: "context_first", or "dual_first" for the dual phase at the noisy end.
        w_extrapolate: allow w up to 1.5, beyond the safe row; experimental.
        provider: the safe row's conditioning: "phrase" E(safe_phrase), "interpolate" (1 - a) e_u + a E(safe_phrase),
            "anchor" e_u + E(anchor) - E(concept), token by token, or "learned", tensors in the guard's weights.
        safe_phrase: words for a wanted picture; amount: a in [0, 1]; anchor: what to draw in the concept's stead.
    """

    mode: str = "default"
    w: float | tuple[float, ...] = 0.5
    tau: float = 0.1
    tau_mode: str = "steps"
    phase_order: str = "context_first"
    w_extrapolate: bool = False
    provider: str = "interpolate"
    safe_phrase: str = "a harmless everyday scene"
    amount: float = 0.5
    anchor: str = ""

    @classmethod
    def preset(cls, level: str, **settings: Any) -> Self:
        """The configuration of a named safety level; `settings` (concept at least) win over it."""
        if level not in LEVELS:
            raise GuardConfigError(f"dual latent has no safety level {level!r}; expected one of {', '.join(LEVELS)}.")
        return cls(**{**dict(zip(("w", "tau"), LEVELS[level], strict=True)), **settings})

    def validate(self) -> None:
        if self.mode == "faithful":
            raise GuardConfigError(
                "mode='faithful' does not exist: the paper's equations are unpublished and R1 and R2 are reconstructions "
                "(specification of dual latent, section 9); use mode='default'."
            )
        self.require(self.mode == "default", "mode", "'default'")
        top = 1.5 if self.w_extrapolate else 1.0
        self.require(all(0 <= w <= top for w in self.levels), "w", f"in [0, {top:g}]")
        self.require(0 <= self.tau <= 1, "tau", "in [0, 1]")
        self.require(self.tau > 0 or self.tau_mode != "similarity", "tau", "above 0 in tau_mode 'similarity'")
        self.require(self.tau_mode in TAU_MODES, "tau_mode", f"one of {', '.join(TAU_MODES)}")
        self.require(self.phase_order in PHASE_ORDERS, "phase_order", f"one of {', '.join(PHASE_ORDERS)}")
        self.require(self.provider in PROVIDERS, "provider", f"one of {', '.join(PROVIDERS)}")
        self.require(0 <= self.amount <= 1, "amount", "in [0, 1]")
        self.require(bool(self.safe_phrase), "safe_phrase", "some words")
        self.require(bool(self.anchor) or self.provider != "anchor", "anchor", "some words for provider 'anchor'")

    @property
    def levels(self) -> tuple[float, ...]:
        """w as one or more numbers."""
        return self.w if isinstance(self.w, tuple) else (self.w,)


@dataclass
class DualLatentState:
    """Of one run; every tensor has B rows."""

    tally: Tally
    w: Tensor
    insisted: Tensor
    texts: Encoded | None  # what the provider needs encoded, (E, ...)
    now: Tensor  # w of this call, 0 in the context phase
    used: list[Tensor] = field(default_factory=list)


def largest_level(user: Tensor, safe: Tensor, tau: float) -> Tensor:
    """(B,): the largest w with cos(a, (1 - w) a + w b) >= tau, for a = `user`, b = `safe` (B, K); infinity where any will do.

    With c = <a,b>/|a|^2, p = sqrt(|b|^2 - <a,b>^2/|a|^2), k = sqrt(1 - tau^2)/tau: w = k |a| / (p + k |a| (1 - c)).
    """
    size = user.square().sum(1).clamp(min=1e-20)
    a = size.sqrt()
    c = (user * safe).sum(1) / size
    rest = safe - c[:, None] * user  # its length is p, without the cancellation
    p_squared = rest.square().sum(1)
    is_parallel = p_squared <= 1e-12 * safe.square().sum(1)
    p = torch.where(is_parallel, 0.0, torch.where(is_parallel, 1.0, p_squared).sqrt())
    k = max(1.0 - tau**2, 0.0) ** 0.5 / tau
    divisor = p + k * a * (1 - c)
    is_free = (is_parallel & (c > 0)) | (divisor < 0) | ((divisor == 0) & (c > 0))
    divisor = torch.where(is_free | (divisor == 0), 1.0, divisor)
    return torch.where(is_free, torch.inf, k * a / divisor)


def low_pass(x0: Tensor) -> Tensor:
    """x0 (B, C, h, w) or (B, C, frames, h, w) averaged to 8 x 8, as (B, K)."""
    return F.adaptive_avg_pool2d(x0.flatten(1, -3), 8).flatten(1)


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
        """(B,) bool or a single one: whether this call is in the dual phase."""
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
            found = found._replace(mask=torch.ones_like(step.prompt_mask[:1]))
        elif config.provider == "phrase":
            found = texts
        else:
            texts, a = self._fitting(texts, e), config.amount
            first, last = texts.rows(slice(0, 1)), texts.rows(slice(-1, None))

            def mixed(own: Tensor, one: Tensor, other: Tensor) -> Tensor:
                return (1 - a) * own + a * one if config.provider == "interpolate" else own + (one - other)

            found = Encoded(mixed(e, first.prompt, last.prompt))
            if pooled is not None and first.pooled is not None and last.pooled is not None:
                found = found._replace(pooled=mixed(pooled, first.pooled, last.pooled))
            if texts.mask is not None:
                found = found._replace(mask=step.prompt_mask | texts.mask.bool().any(dim=0))
        return found.map(lambda part: part.expand(step.run.batch_size, *part.shape[1:])[None])

    def _fitting(self, texts: Encoded, prompt: Tensor) -> Encoded:
        found = of_length(texts, prompt.shape[1])
        if found is None or found.prompt.shape[2] != prompt.shape[2]:
            raise GuardError(
                f"the safe texts of guard {self.method!r} give embeddings {tuple(texts.prompt.shape[1:])} where this call has "
                f"{tuple(prompt.shape[1:])}, so they cannot be mixed; use shorter texts, a longer prompt or provider 'phrase'."
            )
        return found

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
