"""SafeRedir: redirect the prompt embeddings of a trajectory that heads for the concept.

Implements "SafeRedir: Prompt Embedding Redirection for Robust Unlearning in Image Generation Models" (arXiv:2601.08623):
docs/methods/saferedir.md (1), (2), (6) and (7).
Shapes: prompt embeddings (B, L, D), latents and x0 (B, C, h, w); all state has one row per image.
Deviations of `default` from the released loop: two verdicts a step, on the raw prompt before the call and on the guided
denoised estimate after it; conditional rows only; the prompt verdict can be given up, the image verdict is sticky and
escalates; step 0 is protected. The released loop itself is in faithful.py, which this class runs in `faithful` mode.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from saferedir.decisions import Decision
from saferedir.errors import GuardConfigError, GuardError
from saferedir.guards.base import Conditioning, Guard, GuardConfig, Run, Step, TextSettings
from saferedir.guards.gates import Gate
from saferedir.guards.guidance import guidance_weight
from saferedir.guards.saferedir import assessment, embeds_test, verdicts
from saferedir.guards.saferedir.anchors import Anchors, checked_anchors
from saferedir.guards.saferedir.assessment import image_threshold, outside_calibration, weak_at
from saferedir.guards.saferedir.card import model_card
from saferedir.guards.saferedir.choice import Choice
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.guards.saferedir.faithful import FaithfulLoop, FaithfulState
from saferedir.guards.saferedir.fit import (
    fits_prompts,
    load_weights,
    require_anchors_fit,
    require_calibrated_size,
    require_fit,
    require_weights_fit,
)
from saferedir.guards.saferedir.hardening import (
    ANCHOR_LEVEL,
    at_once,
    checks_left,
    renoised,
    taken_again,
)
from saferedir.guards.saferedir.layers import real_tokens
from saferedir.guards.saferedir.manifold import PromptManifold
from saferedir.guards.saferedir.network import Redirector, RedirectorConfig
from saferedir.guards.saferedir.reference import load_reference_redirector
from saferedir.guards.saferedir.state import RedirState, Source, decisions, row_seeds
from saferedir.guards.saferedir.trained_text import require_trained_text
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.families import FAMILIES
from saferedir.utils.device import may_hold

#: of the noise that `answer="renoise"` puts on, with the latents of each image
NOISE_SEED = 0
ANCHOR = "anchor_prompt_embeds"
ANCHOR_POOLED = "anchor_pooled_embeds"


class SafeRedir(Guard[SafeRedirConfig]):
    """The guard; `network` is a `Redirector` (default) or a `ReferenceRedirector` (faithful)."""

    method: ClassVar[str] = "saferedir"
    config_class: ClassVar[type[GuardConfig]] = SafeRedirConfig

    def __init__(
        self,
        config: SafeRedirConfig,
        network: nn.Module | None = None,
        anchor: Tensor | None = None,
        anchor_pooled: Tensor | None = None,
        manifold: PromptManifold | None = None,
    ) -> None:
        super().__init__(config)
        self.may_be_unresolved = config.use_image and config.mode == "default"
        self.has_prompt_verdict = config.use_prompt and self.may_be_unresolved
        self.latents_test, self.latents_false_positives = config.latents_test, config.latents_false_positives
        self.latents_fresh_share = config.latents_fresh_share
        self.tests_embeds = config.embeds_test != "off"
        self.needs_text = self.tests_embeds  # to know which embeddings are the caller's
        self.works_without_texts = config.embeds_test == "refuse"  # all are the caller's, and all are tested
        self.anchor, self.anchor_pooled = anchor, anchor_pooled  # (L, D), (P,): the anchor prompt, the last resort
        self._anchors: Anchors | None = None  # of a policy, in the place of all directions
        self.manifold = manifold
        self.network: Any = network
        self._has_weights = network is not None
        self.faithful: FaithfulLoop | None = None
        if config.mode == "default" and network is None:
            self.network = Redirector(RedirectorConfig.from_dict(config.network))
        if self.network is not None:
            self._adopt(self.network)
        if config.mode == "default" and len(self.network.config.concepts) != 1:
            raise GuardConfigError(
                f"A SafeRedir guard serves one concept, but its network has {len(self.network.config.concepts)}; "
                "attach one guard for each concept instead."
            )
        if config.mode == "default":
            require_anchors_fit(self.network.config, {ANCHOR: anchor, ANCHOR_POOLED: anchor_pooled})

    def _adopt(self, network: nn.Module) -> None:
        self.network = network.eval().requires_grad_(False)
        if self.config.mode == "faithful":
            self.faithful = FaithfulLoop(self.network, self.config)

    def with_settings(self, **changes: Any) -> Self:
        """This guard under other settings, such as recheck="same_step"; all that it holds beside them is shared.

        Raises:
            GuardConfigError: an unknown setting, or a value out of range.
        """
        known = {entry.name for entry in dataclasses.fields(self.config)}
        if unknown := sorted(set(changes) - known):
            raise GuardConfigError(f"SafeRedir has no setting {unknown[0]!r}; known: {', '.join(sorted(known))}.")
        config = dataclasses.replace(self.config, **changes)
        other = type(self)(config, self.network, self.anchor, self.anchor_pooled, self.manifold)
        other.name, other.enabled, other._has_weights = self.name, self.enabled, self._has_weights
        other.image_verifier = self.image_verifier
        return other.with_anchors(self.anchor_prompts) if self.anchor_prompts else other

    def compile(self, **options: Any) -> None:
        if self.network is not None:
            self.network.compile(**options)

    def with_anchors(self, anchors: str | Mapping[str, str]) -> Self:
        if self.config.mode == "faithful":
            raise GuardConfigError(
                f"the SafeRedir guard for {self.config.concept!r} runs the released loop (mode='faithful'), which has no anchor; "
                "leave out anchor."
            )
        other = copy.copy(self)
        title = f"this SafeRedir guard for {self.config.concept!r}"
        other.anchor_prompts = checked_anchors(anchors, [self.config.concept], title)
        other._anchors = None
        return other

    def take_anchors(self, embeds: PromptEmbeds) -> None:
        self._anchors = Anchors.of(embeds)

    def prompt_gates(self, embeds: PromptEmbeds) -> dict[str, Gate]:
        if not (self.has_prompt_verdict and self._has_weights) or not fits_prompts(self.network.config, embeds):
            return {}
        if self.config.concept in self.logged_concepts:
            return {}
        self.network.to(embeds.prompt.device)
        score = self.prompt_score(embeds.prompt, real_tokens(embeds.prompt, embeds.mask), embeds.pooled)
        return {self.rule_name(self.config.concept): Gate(score, self.config.prompt_threshold)}

    def rule_name(self, concept: str) -> str:
        return self.name or concept

    def uses(self, point: str) -> bool:
        if point in ("extra_embeds", "on_prediction") and self.config.recheck == "next_step":
            return False
        if point == "on_step_end" and self.config.answer == "redirect":
            return False
        return super().uses(point)

    # ------------------------------------------------------------------ one run

    def check_text(self, text: TextSettings) -> None:
        require_trained_text(self.config, text)

    def start(self, run: Run) -> RedirState | FaithfulState:
        if self.network is None or not self._has_weights:
            raise GuardError("This SafeRedir guard has no weights; use Guard.from_pretrained or pass a network.")
        if self.config.redirect_uncond and FAMILIES[run.family].is_sequential:
            raise GuardError(
                f"redirect_uncond needs both halves of guidance in one denoiser call, but {run.family} makes two; leave it off."
            )
        embeds_test.require_known_halves(self.config, run)
        if self.anchor_prompts and self._anchors is None:
            raise GuardError("This SafeRedir guard's anchors were not encoded; attach it, which does that.")
        self.network.to(run.device)
        if self.faithful is not None:
            return self.faithful.start(run)
        if self.anchor is not None:
            self.anchor = self.anchor.to(run.device)
        if self.anchor_pooled is not None:
            self.anchor_pooled = self.anchor_pooled.to(run.device)
        if self.manifold is not None:
            self.manifold = self.manifold.to(run.device)
        run_warning = outside_calibration(self.config, run)
        if run_warning is not None:
            warnings.warn(run_warning, stacklevel=2)
        return RedirState.begun(
            self.config,
            run,
            self.allowed_images(run, self.name)[:, 0],
            image_threshold=image_threshold(self.config.image_threshold, self.config.last_threshold, run.num_steps),
            run_warning=run_warning,
            weak_end=weak_at(self.config, run.num_steps),
            lowest_level=ANCHOR_LEVEL if self.anchor_prompts else 0,
        )

    def on_step_start(self, step: Step) -> Tensor | Conditioning:
        if self.faithful is not None:
            return self.faithful.embeds(step)
        state: RedirState = step.state
        state.standing, state.fired_now, state.candidate_level = step.conditioning, None, None
        state.renoised_now = None
        if self.config.answer == "renoise" and not state.row_seeds:
            state.row_seeds = row_seeds(step.x_t)
        self._check_prompt(step, state)
        weight = state.weight
        if self.config.gate == "hard" and not may_hold(weight > 0):
            return step.prompt_embeds
        state.note_redirected(weight.detach() > 0.5, step.index)
        answer, strength = self._choice.conditioning(step, state, weight, state.level)
        state.strengths = strength if state.strengths is None else torch.maximum(state.strengths, strength)
        return answer

    def _check_prompt(self, step: Step, state: RedirState) -> None:
        """Score the conditioning once as long as it stays the same, and decide by it at every step."""
        is_new = state.source is None or not state.source.is_unchanged(step.conditioning.cond)
        if self.tests_embeds and (is_new or self._has_new_negative(step, state)):
            state.distances = embeds_test.tested_distances(self.config, self.manifold, step)
            uncond = step.conditioning.uncond
            state.negative_source = None if uncond is None else Source(uncond)
        if is_new:
            require_fit(self.network.config, step, self.config.concept)
            require_calibrated_size(self.config, step)
            e0, real = step.prompt_embeds, real_tokens(step.prompt_embeds, step.prompt_mask)
            state.source, state.redirection, state.kept = Source(step.conditioning.cond), None, {}
            state.score = self.prompt_score(e0, real, step.pooled) if self.config.use_prompt else None
            state.countdown = 0  # other embeddings than before are checked at once
        verdicts.decide_prompt(self.config, state)

    def _has_new_negative(self, step: Step, state: RedirState) -> bool:
        uncond = step.conditioning.uncond
        return uncond is not None and (state.negative_source is None or not state.negative_source.is_unchanged(uncond))

    def extra_embeds(self, step: Step, extra: PromptEmbeds | None) -> PromptEmbeds | None:
        """Redirected embeddings beside the image's, for as long as some image is not redirected; `recheck="same_step"` only."""
        state: RedirState = step.state
        acts = state.weight.detach() > 0.5
        if state.standing is None or not may_hold(~acts) or not self._is_checked(step, state):
            return None
        state.candidate_level = state.level
        if self.config.escalation == "evidence":
            state.candidate_level = at_once(state.level, self.config.patience, self._checks_left(step))
        original = dataclasses.replace(step, conditioning=state.standing)
        weight = torch.ones_like(state.image_weight)
        redirected, _ = self._choice.conditioning(original, state, weight, state.candidate_level)
        return redirected.cond.map(lambda part: part[None])

    def on_prediction(self, step: Step) -> Tensor:
        """The redirected prediction in rows whose image verdict fires now; `recheck="same_step"` only."""
        pred, state = step.pred, step.state
        assert pred is not None
        if not step.pred_extra or state.candidate_level is None:
            return pred
        assert step.x0 is not None and step.pred_cond is not None
        score, threshold = self.image_score(step.x0, step.t), state.image_threshold
        acts = state.weight.detach() > 0.5
        weight = verdicts.gate(self.config, score, threshold) * (~acts)
        fired = (score.detach() >= threshold) & ~acts
        is_hard = self.config.gate == "hard"
        if is_hard and not may_hold(fired):
            return pred
        state.fired_now, state.score_before = fired, score
        state.image_weight = torch.maximum(state.image_weight, weight)
        state.level = torch.where(fired, state.candidate_level, state.level)
        state.note_redirected(fired, step.index)
        shift = guidance_weight(step) * (step.pred_extra[0].float() - step.pred_cond.float())
        return taken_again(pred, shift, weight, is_hard=is_hard)

    def _is_checked(self, step: Step, state: RedirState) -> bool:
        """Whether the image verdict is taken in this evaluation; the last one decides `unresolved`, so it always is."""
        return state.image_countdown <= 0 or step.evaluation + 1 >= step.run.num_evaluations

    def _checks_left(self, step: Step) -> int:
        return checks_left(step.run.num_evaluations - step.evaluation - 1, self.config.replace_steps)

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        if self.faithful is not None:
            self.faithful.decide(step)
            return x0
        if not self.config.use_image:
            return x0
        state: RedirState = step.state
        is_last = state.is_last = step.evaluation + 1 >= step.run.num_evaluations
        if state.image_countdown > 0 and not is_last:  # the last estimate decides `unresolved`, so it is always scored
            state.image_countdown -= 1
            return x0
        state.image_countdown = self.config.replace_steps
        verdicts.decide_image(self.config, state, self.image_score(x0, step.t), self._checks_left(step))
        return x0

    def on_step_end(self, step: Step, latents: Tensor) -> Tensor:
        """Fresh noise where another prompt does not help; `answer="renoise"` only."""
        state: RedirState = step.state
        weight = state.renoised_now
        if weight is None or not may_hold(weight > 0):
            return latents
        assert step.x0 is not None
        rows = weight.view(-1, *(1,) * (latents.ndim - 1))
        noise = state.fresh_noise(step.x_t, NOISE_SEED, step.evaluation)
        fresh = renoised(latents, step.x_t, step.x0, step.alpha, step.sigma, noise)
        mixed = (rows * fresh.float() + (1 - rows) * latents.float()).to(latents.dtype)
        return torch.where(rows > 0, mixed, latents)

    def gates(self, state: RedirState | FaithfulState) -> dict[str, Gate]:
        """ "prompt" and "image", whichever verdict has been given; distances of the caller's embeddings over their bound.

        Those are "embeds" and, under guidance, "negative_embeds".
        That of the last evaluation has the threshold of `unresolved`. None in faithful mode.
        """
        if not isinstance(state, RedirState):
            return {}
        return verdicts.gates(self.config, state)

    def differentiable(self) -> Self:
        """With straight-through gates: sigmoid's derivative at the threshold, see `SafeRedirConfig.gate`."""
        if self.config.mode == "faithful" or self.config.gate != "hard":
            return self
        other = copy.copy(self)
        other.config = dataclasses.replace(self.config, gate="straight_through")
        return other

    # ------------------------------------------------------------------ scores and embeddings

    @property
    def _choice(self) -> Choice:
        return Choice(self.config, self.network, self.anchor, self.anchor_pooled, self._anchors)

    def prompt_score(self, prompt_embeds: Tensor, mask: Tensor | None = None, pooled: Tensor | None = None) -> Tensor:
        """(B,) logit that the prompt asks for any of the concepts; the highest over concepts."""
        return verdicts.prompt_score(self.network, self.config.concept, prompt_embeds, mask, pooled)

    def image_score(self, x0: Tensor, t: Tensor) -> Tensor:
        """(B,) logit that the denoised estimate shows any of the concepts; of a video, in any frame."""
        return verdicts.image_score(self.network, self.config.concept, x0, t)

    def refusal_text(self) -> str | None:
        return embeds_test.refusal_text(self.config, self.manifold)

    # ------------------------------------------------------------------ records, weights

    def verdict(self, run: Run, state: RedirState | FaithfulState) -> list[Decision]:
        if isinstance(state, FaithfulState):
            assert self.faithful is not None
            return self.faithful.verdict(run, state)
        return decisions(self.config, state)

    def would_repeat(self, decision: Decision) -> bool:
        """Whether the anchor, of the policy or the last resort, stood in the prompt's place from step 0 on."""
        level = ANCHOR_LEVEL if self.anchor_prompts else decision.attempts - 1
        return self.config.mode == "default" and decision.first_fired_step == 0 and level >= ANCHOR_LEVEL

    def warning_text(self) -> str | None:
        return assessment.warning_text(self.config)

    def weak_verdicts(self) -> dict[str, float]:
        return assessment.weak_verdict(self.config)

    def card(self) -> str:
        return model_card(self.config)

    def tensors(self) -> dict[str, Tensor]:
        small = self.config.mode == "default"
        weights = {n: t.half() if small and t.is_floating_point() else t for n, t in self.network.state_dict().items()}
        anchors = {ANCHOR: self.anchor, ANCHOR_POOLED: self.anchor_pooled}  # as they are: float16 may not hold them
        if self.manifold is not None:
            anchors |= self.manifold.tensors()
        return {**weights, **{name: value for name, value in anchors.items() if value is not None}}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        weights = dict(tensors)
        anchor = weights.pop(ANCHOR, None)
        pooled = weights.pop(ANCHOR_POOLED, None)
        self.manifold = PromptManifold.taken_from(weights)
        self.anchor = None if anchor is None else anchor.float()
        self.anchor_pooled = None if pooled is None else pooled.float()
        if self.config.mode == "faithful":
            self._adopt(load_reference_redirector(weights))
            self._has_weights = True
            return
        require_weights_fit(self.network, weights)
        require_anchors_fit(self.network.config, {ANCHOR: self.anchor, ANCHOR_POOLED: self.anchor_pooled})
        load_weights(self.network, weights, others=tensors.values())
        self._has_weights = True
