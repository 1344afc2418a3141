"""Safe latent diffusion: guidance away from a safety concept, where the prompt points towards it.

Implements Sec. 3 of "Safe Latent Diffusion" (arXiv:2211.05105), as its code has it. Derived in
docs/methods/sld.md (1) to (7). Shapes: rows, momentum v (B, C, h, w).
Rows 0 unconditional, p prompt, S safety concept; g guidance scale; in epsilon, at every denoiser call:

  d = e_p - e_S;  mu = min(1, |s_S d|) where d < lambda, else 0;  gamma = mu (e_S - e_0) + s_m v
  v <- beta_m v + (1 - beta_m) gamma  (in warm-up too);  e = e_0 + g ((e_p - e_0) - gamma)  (after warm-up)

Other prediction types: with f = d eps / d m at fixed x_t, the rule runs on f m and its edit is divided by f, which is the same
without converting x_t (nothing is edited where f = 0: flow at pure noise). The presets were tuned for epsilon on SD 1.

Deviations: warm-up is a fraction of the run's denoiser calls, the authors' number of steps at 50 of them (`warmup_steps` for
an absolute number); "weak" has the model card's strength of 200, "weak_diffusers" diffusers' 20; in a run with
`retry_level` those images have no warm-up, from level 2 on the threshold of "max"; no concept text is shipped, it must be given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from saferedir.decisions import Decision
from saferedir.errors import GuardConfigError
from saferedir.guards.base import Guard, GuardConfig, Run, Step
from saferedir.guards.guidance import (
    PhrasesConfig,
    Tally,
    encode_phrases,
    guidance_weight,
    has_guidance,
    may_be_guided,
)
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.schedules import to_x0
from saferedir.utils.broadcast import per_sample

PRESETS: dict[str, dict[str, float]] = {
    "weak": {"warmup": 0.3, "strength": 200.0, "threshold": 0.0, "momentum": 0.0, "momentum_decay": 0.0},
    "weak_diffusers": {"warmup": 0.3, "strength": 20.0, "threshold": 0.0, "momentum": 0.0, "momentum_decay": 0.0},
    "medium": {"warmup": 0.2, "strength": 1000.0, "threshold": 0.01, "momentum": 0.3, "momentum_decay": 0.4},
    "strong": {"warmup": 0.14, "strength": 2000.0, "threshold": 0.025, "momentum": 0.5, "momentum_decay": 0.7},
    "max": {"warmup": 0.0, "strength": 5000.0, "threshold": 1.0, "momentum": 0.5, "momentum_decay": 0.7},
}


@dataclass(frozen=True, kw_only=True)
class SLDConfig(PhrasesConfig):
    """Settings of SLD; the defaults are the preset "medium". The concept text S is `phrases`, joined by commas.

    Attributes:
        strength: s_S, >= 0.
        threshold: lambda.
        momentum: s_m in [0, 1).
        momentum_decay: beta_m in [0, 1).
        warmup: share of the run's denoiser calls before anything is edited, in [0, 1].
        warmup_steps: the same as a number of denoiser calls; wins over `warmup`.
    """

    strength: float = 1000.0
    threshold: float = 0.01
    momentum: float = 0.3
    momentum_decay: float = 0.4
    warmup: float = 0.2
    warmup_steps: int | None = None

    @classmethod
    def preset(cls, name: str, **settings: Any) -> Self:
        """The configuration of a named preset; `settings` (concept at least) win over it."""
        if name not in PRESETS:
            raise GuardConfigError(f"SLD has no preset {name!r}; expected one of {', '.join(PRESETS)}.")
        return cls(**{**PRESETS[name], **settings})

    def validate(self) -> None:
        super().validate()
        self.require(bool(self.text), "phrases", "some words to steer away from")
        self.require_number("strength", at_least=0)
        self.require_number("threshold")
        self.require_number("momentum", "momentum_decay", at_least=0, below=1)
        self.require_number("warmup", at_least=0, at_most=1)
        self.require_whole("warmup_steps", at_least=0, or_none=True)


@dataclass
class SLDState:
    """State of one run. concept: S's conditioning (B, ...), None if nothing can be edited; warmup (B,), begins: the least of
    it; threshold (B,).
    """

    tally: Tally
    warmup: Tensor
    begins: int
    threshold: Tensor
    concept: PromptEmbeds | None
    velocity: Tensor | None = None  # v in epsilon, (B, C, h, w) float32


def epsilon_per_output(step: Step) -> Tensor:
    """(B, 1, ...): f = d eps / d m at fixed x_t, from eps = (x_t - alpha x0) / sigma and the prediction type's x0(m)."""
    ones, zeros = torch.ones_like(step.sigma), torch.zeros_like(step.sigma)
    x0_per_output = to_x0(step.run.prediction_type, ones, zeros, step.alpha, step.sigma)
    return -step.alpha / step.sigma * x0_per_output


class SLD(Guard[SLDConfig]):
    """The guard; one extra row in those denoiser calls that edit something or build up momentum."""

    method: ClassVar[str] = "sld"
    config_class: ClassVar[type[GuardConfig]] = SLDConfig
    replaces_guidance: ClassVar[bool] = True
    needs_text_encoder = True

    def start(self, run: Run) -> SLDState:
        config = self.config
        retry_level = run.retry_levels
        calls = round(config.warmup * run.num_evaluations) if config.warmup_steps is None else config.warmup_steps
        warmup = torch.where(retry_level > 0, 0, calls)
        threshold = torch.where(retry_level > 1, max(config.threshold, PRESETS["max"]["threshold"]), config.threshold)
        begins = 0 if any(run.retry_level) else calls
        is_idle = config.strength == 0 or begins >= run.num_evaluations
        concept = None if is_idle else encode_phrases(run, config.text, self.method)
        return SLDState(Tally(run), warmup, begins, threshold, concept)

    def extra_embeds(self, step: Step, extra: PromptEmbeds | None) -> PromptEmbeds | None:
        state: SLDState = step.state
        is_needed = self.config.momentum > 0 or state.begins <= step.evaluation
        if state.concept is None or not is_needed or not may_be_guided(step):
            return None
        return state.concept.map(lambda part: part[None])

    def on_prediction(self, step: Step) -> Tensor:
        state, config = step.state, self.config
        assert step.pred is not None and step.pred_cond is not None
        if state.concept is None or not has_guidance(step, state.tally, self.method, config.without_guidance):
            return step.pred
        if not step.pred_extra:
            return step.pred  # warm-up without momentum
        assert step.pred_uncond is not None
        cond, uncond, concept = (row.float() for row in (step.pred_cond, step.pred_uncond, step.pred_extra[0]))
        f = epsilon_per_output(step)
        delta = f * (cond - concept)
        mu = torch.where(
            delta < per_sample(state.threshold, delta), (config.strength * delta.abs()).clamp(max=1.0), 0.0
        )
        velocity = torch.zeros_like(delta) if state.velocity is None else state.velocity
        gamma = mu * f * (concept - uncond) + config.momentum * velocity
        state.velocity = config.momentum_decay * velocity + (1 - config.momentum_decay) * gamma
        if state.begins > step.evaluation:
            return step.pred
        is_active = state.warmup <= step.evaluation
        gamma_m = torch.where(f == 0, 0.0, gamma / torch.where(f == 0, 1.0, f))
        edit = torch.where(per_sample(is_active, delta), guidance_weight(step) * gamma_m, 0.0)
        state.tally.count((edit != 0).flatten(1).any(dim=1), step)
        return step.pred.float() - edit

    def verdict(self, run: Run, state: SLDState) -> list[Decision]:
        message = "Guidance was turned away from the concept where the prompt pointed to it."
        thresholds = {"threshold": self.config.threshold, "strength": self.config.strength}
        return state.tally.decisions(self.method, self.config, "edited", message, thresholds)
