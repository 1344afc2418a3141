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
from saferedir.guards.saferedir import assessment
from saferedir.guards.saferedir.assessment import image_threshold, outside_calibration, weak_at
from saferedir.guards.saferedir.card import model_card
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.guards.saferedir.faithful import FaithfulLoop, FaithfulState
from saferedir.guards.saferedir.fit import (
    load_weights,
    require_anchors_fit,
    require_calibrated_size,
    require_fit,
    require_weights_fit,
)
from saferedir.guards.saferedir.frames import highest_over_frames
from saferedir.guards.saferedir.hardening import (
    at_once,
    by_evidence,
    by_streak,
    checks_left,
    needs_noise,
    renoised,
    taken_again,
)
from saferedir.guards.saferedir.layers import real_tokens
from saferedir.guards.saferedir.manifold import PromptManifold
from saferedir.guards.saferedir.network import Redirection, Redirector, RedirectorConfig, redirect, redirect_pooled
from saferedir.guards.saferedir.redirect import match_length
from saferedir.guards.saferedir.reference import load_reference_redirector
from saferedir.guards.saferedir.state import Kept, RedirState, Source, decisions, relative_shift, row_seeds
from saferedir.guards.saferedir.trained_text import require_trained_text
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.families import FAMILIES
from saferedir.utils.device import may_hold, refuse, refuse_nonfinite

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
        self.tests_embeds = config.embeds_test != "off"
        self.needs_text = self.tests_embeds  # to know which embeddings are the caller's
        self.anchor, self.anchor_pooled = anchor, anchor_pooled  # (L, D), (P,): the anchor prompt, the last resort
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
        return other

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
        self.network.to(run.device)
        if self.faithful is not None:
            return self.faithful.start(run)
        rows, device = run.batch_size, run.device
        if self.anchor is not None:
            self.anchor = self.anchor.to(device)
        if self.anchor_pooled is not None:
            self.anchor_pooled = self.anchor_pooled.to(device)
        run_warning = outside_calibration(self.config, run)
        if run_warning is not None:
            warnings.warn(run_warning, stacklevel=2)
        retry_level = run.retry_levels
        return RedirState(
            prompt_weight=(retry_level > 0).float(),
            image_weight=torch.zeros(rows, device=device),
            safe_streak=torch.zeros(rows, dtype=torch.long, device=device),
            unsafe_streak=torch.zeros(
                rows, dtype=torch.long if self.config.escalation == "streak" else torch.float32, device=device
            ),
            level=retry_level.clamp(max=2),
            is_retried=retry_level > 0,
            is_allowed=self.allowed_images(run, self.name)[:, 0],
            redirected=torch.zeros(rows, dtype=torch.long, device=device),
            first_fired=torch.full((rows,), -1, dtype=torch.long, device=device),
            is_high=torch.zeros(rows, dtype=torch.bool, device=device),
            renoised=torch.zeros(rows, dtype=torch.long, device=device),
            image_threshold=image_threshold(self.config.image_threshold, self.config.last_threshold, run.num_steps),
            num_steps=run.num_steps,
            run_warning=run_warning,
            weak_end=weak_at(self.config, run.num_steps),
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
        weight = torch.maximum(state.prompt_weight, state.image_weight)
        if self.config.gate == "hard" and not may_hold(weight > 0):
            return step.prompt_embeds
        acts = weight.detach() > 0.5
        state.redirected = state.redirected + acts
        state.first_fired = torch.where(acts & (state.first_fired < 0), step.index, state.first_fired)
        return self._redirected(step, state, weight)

    def extra_embeds(self, step: Step, extra: PromptEmbeds | None) -> PromptEmbeds | None:
        """Redirected embeddings beside the image's, for as long as some image is not redirected; `recheck="same_step"` only."""
        state: RedirState = step.state
        acts = torch.maximum(state.prompt_weight, state.image_weight).detach() > 0.5
        if state.standing is None or not may_hold(~acts) or not self._is_checked(step, state):
            return None
        state.candidate_level = state.level
        if self.config.escalation == "evidence":
            state.candidate_level = at_once(state.level, self.config.patience, self._checks_left(step))
        original = dataclasses.replace(step, conditioning=state.standing)
        cond = self._chosen(original, state, torch.ones_like(state.image_weight), state.candidate_level)[0].cond
        return cond.map(lambda part: part[None])

    def on_prediction(self, step: Step) -> Tensor:
        """The redirected prediction in rows whose image verdict fires now; `recheck="same_step"` only."""
        pred, state = step.pred, step.state
        assert pred is not None
        if not step.pred_extra or state.candidate_level is None:
            return pred
        assert step.x0 is not None and step.pred_cond is not None
        score, threshold = self.image_score(step.x0, step.t), state.image_threshold
        acts = torch.maximum(state.prompt_weight, state.image_weight).detach() > 0.5
        weight = self._gate(score, threshold) * (~acts)
        fired = (score.detach() >= threshold) & ~acts
        is_hard = self.config.gate == "hard"
        if is_hard and not may_hold(fired):
            return pred
        state.fired_now, state.score_before = fired, score
        state.image_weight = torch.maximum(state.image_weight, weight)
        state.level = torch.where(fired, state.candidate_level, state.level)
        state.redirected = state.redirected + fired
        state.first_fired = torch.where(fired & (state.first_fired < 0), step.index, state.first_fired)
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
        score = state.image_score = self.image_score(x0, step.t)
        shown = score
        if state.fired_now is not None and state.score_before is not None:  # the record holds what fired
            shown = state.image_score = torch.where(state.fired_now, state.score_before, score)
        state.image_scores.append(shown.detach())
        high = score.detach() >= state.image_threshold
        state.is_high = self._is_unresolved(score.detach()) if is_last else high
        was_redirected = torch.maximum(state.prompt_weight, state.image_weight).detach() > 0.5
        state.image_weight = torch.maximum(state.image_weight, self._gate(score, state.image_threshold))
        if self.config.escalation == "streak":
            outcome = by_streak(state.unsafe_streak, state.level, high, was_redirected, self.config.patience)
        else:
            margin = score.detach() - state.image_threshold
            left = self._checks_left(step)
            outcome = by_evidence(state.unsafe_streak, state.level, margin, was_redirected, self.config.patience, left)
        before = state.level
        state.unsafe_streak, state.level = outcome
        if self.config.answer == "renoise":
            rows = state.is_high if is_last else needs_noise(high, before, state.level)
            threshold = self._last_threshold if is_last else state.image_threshold
            state.renoised_now = self._gate(score, threshold) * rows
            state.renoised = state.renoised + rows
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

    def _is_unresolved(self, last_score: Tensor) -> Tensor:
        """(B,) bool, whether the last estimate of a run still shows the concept."""
        return last_score >= self._last_threshold

    @property
    def _last_threshold(self) -> float:
        return self.config.image_threshold if self.config.last_threshold is None else self.config.last_threshold

    def gates(self, state: RedirState | FaithfulState) -> dict[str, Gate]:
        """ "prompt" and "image", whichever verdict has been given, and "embeds", the distance of the caller's over its bound.

        That of the last evaluation has the threshold of `unresolved`. None in faithful mode.
        """
        if not isinstance(state, RedirState):
            return {}
        scores = {"prompt": state.score, "image": state.image_score, "embeds": state.embeds_distance}
        image = self._last_threshold if state.is_last else state.image_threshold
        limits = {"prompt": self.config.prompt_threshold, "image": image, "embeds": 1.0}
        return {name: Gate(score, limits[name]) for name, score in scores.items() if score is not None}

    def differentiable(self) -> Self:
        """With straight-through gates: sigmoid's derivative at the threshold, see `SafeRedirConfig.gate`."""
        if self.config.mode == "faithful" or self.config.gate != "hard":
            return self
        other = copy.copy(self)
        other.config = dataclasses.replace(self.config, gate="straight_through")
        return other

    # ------------------------------------------------------------------ scores

    def prompt_score(self, prompt_embeds: Tensor, mask: Tensor | None = None, pooled: Tensor | None = None) -> Tensor:
        """(B,) logit that the prompt asks for any of the concepts; the highest over concepts."""
        with torch.autocast(prompt_embeds.device.type, enabled=False):  # thresholds were calibrated in full precision
            logits: Tensor = self.network.prompt_logits(prompt_embeds, mask, pooled)
        return self._finite(logits.amax(dim=1), "prompt")

    def image_score(self, x0: Tensor, t: Tensor) -> Tensor:
        """(B,) logit that the denoised estimate shows any of the concepts; of a video, in any frame."""
        with torch.autocast(x0.device.type, enabled=False):
            return self._finite(highest_over_frames(self.network.image_logits, x0, t), "image")

    def _finite(self, score: Tensor, name: str) -> Tensor:
        refuse_nonfinite(
            score,
            lambda: GuardError(
                f"SafeRedir's {name} score for {self.config.concept!r} is not finite, so no image is returned; check the "
                f"{'prompt embeddings' if name == 'prompt' else 'latents'} and the guard's weights."
            ),
        )
        return score

    def _gate(self, score: Tensor, threshold: float) -> Tensor:
        hard = (score >= threshold).to(score.dtype)
        if self.config.gate == "hard":
            return hard
        soft = torch.sigmoid(self.config.gate_sharpness * (score - threshold))
        return soft if self.config.gate == "soft" else hard + (soft - soft.detach())

    def _check_prompt(self, step: Step, state: RedirState) -> None:
        if state.source is None or not state.source.is_unchanged(step.conditioning.cond):
            require_fit(self.network.config, step, self.config.concept)
            require_calibrated_size(self.config, step)
            state.embeds_distance = self._tested_embeds(step)
            e0, real = step.prompt_embeds, real_tokens(step.prompt_embeds, step.prompt_mask)
            state.source, state.redirection, state.kept = Source(step.conditioning.cond), None, {}
            state.score = self.prompt_score(e0, real, step.pooled) if self.config.use_prompt else None
            state.countdown = 0  # other embeddings than before are checked at once
        if state.score is None:
            return
        if state.countdown > 0:
            state.countdown -= 1
            return
        state.countdown = self.config.replace_steps
        score, tau = state.score, self.config.prompt_threshold
        state.prompt_scores.append(score.detach())
        weight = torch.where(state.is_allowed, 0.0, self._gate(score, tau))
        below = score.detach() < tau - self.config.hysteresis
        state.safe_streak = torch.where(below, state.safe_streak + 1, 0)
        given_up = (state.safe_streak >= self.config.patience) & ~state.is_retried
        kept = torch.where(given_up, torch.zeros_like(weight), state.prompt_weight)
        state.prompt_weight = torch.maximum(weight, kept)

    def _tested_embeds(self, step: Step) -> Tensor | None:
        """(B,) distance of the caller's embeddings over the bound, 0 for those of a text; `embeds_test="refuse"` only.

        GuardError above 1. Whoever differentiates through the guard gets the distance to keep below 1 in place of the error.
        """
        if self.config.embeds_test == "off" or self.manifold is None:
            return None
        texts = step.prompts or (None,) * len(step.prompt_embeds)
        rows = [row for row, text in enumerate(texts) if text is None]
        given, bound = self.manifold.distance(step.prompt_embeds[rows]), self.manifold.bound
        distance = given.detach()
        is_far = ~(distance <= bound)
        if self.config.gate != "hard" and torch.is_grad_enabled():
            ratio = torch.zeros(len(texts), device=given.device)
            return ratio.index_put(
                (torch.tensor(rows, dtype=torch.long, device=given.device),), given / bound.to(given)
            )

        def error() -> GuardError:
            index = int(is_far.nonzero()[0])
            return GuardError(
                f"the prompt embeddings given for image {rows[index]} are none that the text encoder makes (distance "
                f"{float(distance[index]):.3g}, at most {float(bound):.3g} expected), so this SafeRedir guard for "
                f"{self.config.concept!r} generates nothing; give the prompt as text."
            )

        refuse(is_far, error)
        return None

    def refusal_text(self) -> str | None:
        if self.config.embeds_test == "off" or self.manifold is not None:
            return None
        return (
            f"this SafeRedir guard for {self.config.concept!r} has embeds_test={self.config.embeds_test!r} and no statistics of "
            "the text encoder to test with; make a folder that has them with `saferedir guards manifold GUARD --prompts FILE "
            "--out DIR`, or set embeds_test to 'off'."
        )

    # ------------------------------------------------------------------ embeddings

    def _redirected(self, step: Step, state: RedirState, weight: Tensor) -> Conditioning:
        answer, strength = self._chosen(step, state, weight, state.level)
        state.strengths = strength if state.strengths is None else torch.maximum(state.strengths, strength)
        return answer

    def _chosen(self, step: Step, state: RedirState, weight: Tensor, level: Tensor) -> tuple[Conditioning, Tensor]:
        """(redirected conditioning, (B, L) how far its tokens are moved), of each image at its level.

        With hard gates and without gradients each level's is made once for the embeddings of the run, and rows are chosen of it.
        """
        is_hard = bool(self.config.gate == "hard")
        if not is_hard or torch.is_grad_enabled() or self.config.redirect_uncond:
            answer = self._shifted(step, state, weight, level)
            return answer, relative_shift(answer.cond.prompt.detach(), step.prompt_embeds.detach())
        self._require_finite(self._redirection(step, state), weight, state)
        acts, e0, pooled = weight > 0, step.prompt_embeds, step.pooled
        highest = 2 if self.anchor is not None or self.anchor_pooled is not None else 1
        chosen: Kept | None = None
        for rung in range(highest + 1):
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
        answer = step.conditioning.with_cond(prompt=prompt, pooled=pooled)
        if self.config.redirect_uncond and step.negative_prompt_embeds is not None:
            answer = answer.with_uncond(prompt=step.negative_prompt_embeds + (prompt - e0))
        return answer

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

    # ------------------------------------------------------------------ records, weights

    def verdict(self, run: Run, state: RedirState | FaithfulState) -> list[Decision]:
        if isinstance(state, FaithfulState):
            assert self.faithful is not None
            return self.faithful.verdict(run, state)
        return decisions(self.config, state)

    def warning_text(self) -> str | None:
        return assessment.warning_text(self.config)

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
