"""SAFREE: project the tokens that ask for a concept out of its subspace, in the first steps of the sampling.

Implements "SAFREE: training-free and adaptive guard" (arXiv:2410.12761), as its code has it: docs/methods/safree.md (1) to
(8). The mathematics is in math.py, what a text is and does in tokens.py. Shapes: prompt embeddings (B, L, D); of one text encoder
token states T (L, d) and bases V (d, r) of phrases and prompt.

  tokens i whose masking moves the prompt away from the phrases are triggers;  T_i <- (I - P_C) P_I T_i there, steps 0..t';
  the joined phrases stand in place of the negative prompt;  with `lra` the low frequencies of skip features are damped.

The default departs from the authors' code so (`mode="faithful"`: as theirs, Stable Diffusion 1 and 2 only): bases by SVD with a
cut-off of 1e-3 for the inverse Gram matrix; masked copies of long prompts keep their closing token; t' = 0 filters nothing
instead of step 0; t' counts steps of 50 whatever their number. Ours, where there is nothing of theirs: several text encoders are
filtered each in the space of its own tokens and with its own t'; of T5 the mean over tokens is the pooled state, and its
unknown token masks; FLUX's pooled CLIP vector loses P_C in the steps that filter. In SDXL and Stable Diffusion 3 the pooled
projections stay as they are. LRA never runs in their code; here it does if asked, multiplying magnitudes.

A text that the seam does not know (embeddings handed over) is filtered in all its tokens and steps, by I - P_C alone. In a
run with `retry_level` those images are filtered in all steps, from level 2 on in all tokens. Projectors are constants to
gradients: the text they come from is discrete.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from saferedir.decisions import Decision
from saferedir.errors import GuardError, UnsupportedPipelineError
from saferedir.guards.base import Conditioning, Guard, GuardConfig, Run, SkipFeatures, Step
from saferedir.guards.guidance import Tally, encode_phrases
from saferedir.guards.safree.config import SafreeConfig
from saferedir.guards.safree.math import away, damped, is_filtered
from saferedir.guards.safree.tokens import Segment, analyse, concept_basis, concept_states, make_segment, masked_copies
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.text_encoders import TextEncoder
from saferedir.utils.device import may_hold, refuse, to_host

logger = logging.getLogger(__name__)


@dataclass
class SafreeState:
    """State of one run: C of each text encoder, the negative rows, and what is set when the prompts are known, V of P_C first."""

    tally: Tally
    concepts: list[tuple[TextEncoder, Tensor]]
    negative: PromptEmbeds | None
    bases: list[Tensor] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    unfiltered: Tensor | None = None  # prompt embeddings of this call before the filter
    now: Tensor | None = None  # (B,) bool, images filtered in this call
    may_filter: bool = True  # False where no prompt of the run has a token to filter, which is known without a device


class Safree(Guard[SafreeConfig]):
    """The guard."""

    method: ClassVar[str] = "safree"
    config_class: ClassVar[type[GuardConfig]] = SafreeConfig
    replaces_guidance: ClassVar[bool] = True
    needs_text = True

    def uses(self, point: str) -> bool:
        return super().uses(point) and (self.config.lra != "off" or point not in ("extra_embeds", "on_skip_features"))

    def start(self, run: Run) -> SafreeState:
        text_encoders, texts = run.text_encoders, self.config.texts
        if not any(text_encoder.tokens is not None for text_encoder in text_encoders):
            raise UnsupportedPipelineError(
                f"SAFREE needs CLIP or T5 text encoders; this {run.family} pipeline has none we can mask."
            )
        is_sd = len(text_encoders) == 1 and text_encoders[0].facts.kind == "clip"
        if self.config.mode == "faithful" and not is_sd:
            raise UnsupportedPipelineError(
                f"SAFREE's mode 'faithful' is for one CLIP text encoder, not for {run.family}; use 'default'."
            )
        concepts = []
        for text_encoder in text_encoders:
            concepts.append((text_encoder, concept_states(text_encoder, texts)))
        negative = encode_phrases(run, ", ".join(texts), self.method) if self.config.negative else None
        return SafreeState(Tally(run), concepts, negative)

    def on_prompt(self, step: Step) -> Tensor | Conditioning:
        state: SafreeState = step.state
        self._check_prompts(step, [text_encoder for text_encoder, _ in state.concepts])
        texts = dict.fromkeys(text for text in step.prompts if text is not None)
        masked = [
            [
                masked_copies(text_encoder, text, self.config)
                for text in (texts if text_encoder.tokens is not None else ())
            ]
            for text_encoder, _ in state.concepts
        ]
        pooled = [
            [phrases, *(copies.pooled for copies in of_encoder)]
            for (_, phrases), of_encoder in zip(state.concepts, masked, strict=True)
        ]
        host = iter(to_host(*(states for of_encoder in pooled for states in of_encoder)))  # bases need their ranks
        state.bases, state.segments = [], []
        state.may_filter = None in (step.prompts or (None,)) or any(level > 1 for level in step.run.retry_level)
        for (text_encoder, _), of_encoder in zip(state.concepts, masked, strict=True):
            concept = concept_basis(next(host), self.config)
            logger.debug(
                "%d phrases span %d dimensions in %s",
                len(self.config.texts), concept.shape[1], text_encoder.facts.encoder,
            )  # fmt: skip
            analysed = [analyse(copies._replace(pooled=next(host)), concept, self.config) for copies in of_encoder]
            state.may_filter = state.may_filter or any(bool(each.is_trigger.any()) for each in analysed)
            known = {text: analysis.to(step.run.device) for text, analysis in zip(texts, analysed, strict=False)}
            basis = concept.to(step.run.device)
            state.bases.append(basis)
            if text_encoder.tokens is not None:
                state.segments.append(make_segment(step, text_encoder, basis, known, self.config))
        if state.negative is None:
            return step.prompt_embeds
        return step.conditioning._replace(uncond=state.negative)

    def on_step_start(self, step: Step) -> Tensor | Conditioning:
        state: SafreeState = step.state
        state.unfiltered = prompt = step.prompt_embeds
        state.now = torch.zeros_like(state.tally.calls, dtype=torch.bool)
        for text_encoder, tokens, new, last, _ in state.segments if state.may_filter else ():
            is_now = is_filtered(step.index, step.num_steps, last, self.config.mode == "faithful") & tokens.any(dim=1)
            if not may_hold(is_now):
                continue
            assert text_encoder.tokens is not None and text_encoder.channels is not None
            region = (slice(None), text_encoder.tokens, text_encoder.channels)
            rows = (is_now[:, None] & tokens)[..., None]
            prompt = prompt.clone()
            prompt[region] = torch.where(rows, new.to(prompt), prompt[region])
            state.now = state.now | is_now
        state.tally.count(state.now, step)
        if prompt is step.prompt_embeds:
            return prompt
        pooled = step.pooled
        for (text_encoder, _), concept in zip(state.concepts, state.bases, strict=True):
            if text_encoder.tokens is None and step.pooled is not None:
                pooled = torch.where(
                    state.now[:, None], away(step.pooled.float(), concept).to(step.pooled), step.pooled
                )
        return step.conditioning.with_cond(prompt=prompt, pooled=pooled)

    def extra_embeds(self, step: Step, extra: PromptEmbeds | None) -> PromptEmbeds | None:
        state: SafreeState = step.state
        assert state.unfiltered is not None and state.now is not None
        return PromptEmbeds(state.unfiltered[None]) if state.may_filter and may_hold(state.now) else None

    def on_skip_features(self, step: Step, skip: SkipFeatures) -> Tensor:
        factors = self.config.lra_factors
        if not skip.extra or skip.stage >= len(factors):
            return skip.cond
        rows = step.state.now[:, None, None, None]
        return torch.where(rows, damped(skip.cond, skip.extra[0], factors[skip.stage]), skip.cond)

    def verdict(self, run: Run, state: SafreeState) -> list[Decision]:
        fired = "Tokens were projected out of the phrases' subspace."
        has_negative = state.negative is not None and run.guided
        idle = f"No token was filtered{'; the phrases replaced the negative prompt only' if has_negative else ''}."
        state.tally.was_guided = True  # and where it is not, the filter needs no guidance
        thresholds = {} if self.config.margin is None else {"margin": self.config.margin}
        (read,) = state.tally.read(torch.stack([segment.score for segment in state.segments]))
        scores = read.amax(dim=0).tolist()
        decisions = state.tally.decisions(self.method, self.config, "redirected", fired, thresholds)
        return [
            replace(decision, prompt_score=score, message=decision.message or idle)
            for decision, score in zip(decisions, scores, strict=True)
        ]

    def _check_prompts(self, step: Step, text_encoders: Sequence[TextEncoder]) -> None:
        """Raise over a text that must be known, and over parts of the embeddings that no text encoder reaches."""
        if self.config.unknown_text == "raise" and None in step.prompts:
            raise GuardError(
                f"SAFREE does not know the prompt of image {step.prompts.index(None)}, so no image is returned; call with "
                "`prompt` alone instead of embeddings or prompt_2, or set unknown_text='filter_all'."
            )
        left = (step.prompt_embeds != 0).any(dim=0)
        for text_encoder in text_encoders:
            if text_encoder.tokens is not None:
                left[text_encoder.tokens, text_encoder.channels] = False
        refuse(
            left,
            lambda: GuardError(
                "SAFREE cannot filter all of these prompt embeddings, because a text encoder is missing or their length is "
                "unusual, so no image is returned; load all text encoders, or call with `prompt`."
            ),
        )
