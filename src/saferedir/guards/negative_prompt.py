"""Negative prompt: the concept's phrases in place of the unconditional prompt.

Implements the negative prompt of diffusers ("standard") and the three-row form used by TraSCE ("subtract"):
docs/methods/negative_prompt.md (1) to (4).
Shapes: predictions (B, C, h, w); phrases n, prompt p, unconditional 0, guidance scale g.

  standard: m = m_n + g (m_p - m_n), no extra row (one where they are longer than the prompt, on Lumina);
  subtract: m = m_0 + g (m_p - m_n), one extra row.

A guard gets embeddings, not the text of the call's own negative prompt, so `standard` cannot join the two: it replaces the
user's negative prompt, and every decision says so. `subtract` keeps it as row 0. Without guidance both can do nothing; see
`without_guidance`. With p = n `standard` still generates the concept, `subtract` gives m_0.

Deviations: long phrase lists warn and are not split into averaged chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from saferedir.decisions import Decision
from saferedir.guards.base import Conditioning, Guard, GuardConfig, Run, Step
from saferedir.guards.guidance import (
    PhrasesConfig,
    Tally,
    encode_phrases,
    guidance_weight,
    has_guidance,
    may_be_guided,
    of_length,
)
from saferedir.pipelines.conditioning import PromptEmbeds

VARIANTS = ("standard", "subtract")
MESSAGES = {
    "standard": "The guard's phrases stood in place of the call's negative prompt.",
    "subtract": "Guidance pointed away from the guard's phrases; the call's negative prompt was kept.",
}


@dataclass(frozen=True, kw_only=True)
class NegativePromptConfig(PhrasesConfig):
    """Settings of a negative prompt.

    Attributes:
        variant: "standard" or "subtract".
    """

    variant: str = "standard"

    def validate(self) -> None:
        super().validate()
        self.require_choice("variant", VARIANTS)


@dataclass
class NegativePromptState:
    """State of one run: the phrases' conditioning, (B, ...) or None for no phrases, and who was edited."""

    tally: Tally
    phrases: PromptEmbeds | None
    is_in_place: bool = False  # the phrases are row 0 of the pipeline's own guidance


class NegativePrompt(Guard[NegativePromptConfig]):
    """The guard. It acts on every image of a run with guidance."""

    method: ClassVar[str] = "negative_prompt"
    config_class: ClassVar[type[GuardConfig]] = NegativePromptConfig
    always_acts: ClassVar[bool] = True
    replaces_guidance: ClassVar[bool] = True

    def __init__(self, config: NegativePromptConfig) -> None:
        super().__init__(config)
        self.needs_text_encoder = bool(config.text)

    def start(self, run: Run) -> NegativePromptState:
        text = self.config.text
        return NegativePromptState(Tally(run), encode_phrases(run, text, self.method) if text else None)

    def on_prompt(self, step: Step) -> Tensor | Conditioning:
        phrases = step.state.phrases
        if phrases is None or self.config.variant != "standard":
            return step.prompt_embeds
        phrases = of_length(phrases, step.prompt_embeds.shape[1])
        if phrases is None:
            return step.prompt_embeds  # they are added as extra rows instead
        step.state.is_in_place = True
        return step.conditioning._replace(uncond=phrases)

    def extra_embeds(self, step: Step, extra: PromptEmbeds | None) -> PromptEmbeds | None:
        state: NegativePromptState = step.state
        if state.phrases is None or state.is_in_place or not may_be_guided(step):
            return None
        return state.phrases.map(lambda part: part[None])

    def on_prediction(self, step: Step) -> Tensor:
        state: NegativePromptState = step.state
        assert step.pred is not None
        if state.phrases is None or not has_guidance(step, state.tally, self.method, self.config.without_guidance):
            return step.pred
        state.tally.count(torch.ones_like(state.tally.calls, dtype=torch.bool), step)
        if state.is_in_place:
            return step.pred  # the pipeline's own guidance made it, from rows n and p
        assert step.pred_uncond is not None
        away = step.pred_uncond.float() - step.pred_extra[0].float()
        g = guidance_weight(step)
        return step.pred.float() + (g if self.config.variant == "subtract" else g - 1) * away

    def verdict(self, run: Run, state: NegativePromptState) -> list[Decision]:
        action = "redirected" if self.config.variant == "standard" else "edited"
        return state.tally.decisions(self.method, self.config, action, MESSAGES[self.config.variant])
