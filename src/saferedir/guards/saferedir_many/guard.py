"""SafeRedir for many concepts in one guard: one trunk, a row each, one pass a step whatever their number.

The method is SafeRedir's (arXiv:2601.08623), `guards/saferedir`, of which this is the case K > 1: every concept has its scores,
thresholds and verdicts; the directions of those that act are joined and bounded per token, docs/methods/saferedir.md (4).

Deviations from the guard of one concept: at most `most` concepts act on an image at once, those furthest above their
thresholds; the prompt verdict stands for as long as the embeddings do; escalation ends with a longer shift, and the only anchors
are those of a policy (`with_anchors`). Of several concepts with anchors that act on one image, the first row's is led to.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from saferedir.decisions import Decision
from saferedir.errors import GuardConfigError, GuardError
from saferedir.guards.base import Guard, GuardConfig, Run, Step
from saferedir.guards.gates import Gate
from saferedir.guards.saferedir.anchors import Anchors, checked_anchors
from saferedir.guards.saferedir.assessment import (
    outside_calibration,
    weak_at,
    weak_rows_text,
    weak_verdict,
)
from saferedir.guards.saferedir.card import many_card
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.guards.saferedir.fit import (
    fits_prompts,
    load_weights,
    require_calibrated_size,
    require_fit,
    require_weights_fit,
)
from saferedir.guards.saferedir.frames import highest_over_frames
from saferedir.guards.saferedir.layers import real_tokens
from saferedir.guards.saferedir.network import (
    Redirector,
    RedirectorConfig,
    redirect,
    redirect_pooled,
)
from saferedir.guards.saferedir.rows import strongest
from saferedir.guards.saferedir.state import Source, relative_shift
from saferedir.guards.saferedir.trained_text import require_trained_settings
from saferedir.guards.saferedir_many.config import METHOD, SafeRedirManyConfig, alone
from saferedir.guards.saferedir_many.records import Readings, records_by_concept, records_by_image
from saferedir.guards.saferedir_many.state import ManyState, Redirected
from saferedir.guards.step import Conditioned
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.text_settings import TextSettings
from saferedir.utils.device import may_hold, refuse, refuse_nonfinite
from saferedir.utils.names import unknown_name_message


class SafeRedirMany(Guard[SafeRedirManyConfig]):
    """Scores every image for many concepts at once and redirects from those that it asks for or shows.

    Example:
        >>> from saferedir.guards.saferedir_many import SafeRedirMany
        >>> SafeRedirMany.method
        'saferedir_many'
    """

    method: ClassVar[str] = METHOD
    config_class: ClassVar[type[GuardConfig]] = SafeRedirManyConfig
    may_be_unresolved = True
    has_prompt_verdict = True

    def __init__(self, config: SafeRedirManyConfig, network: Redirector | None = None) -> None:
        super().__init__(config)
        self._has_weights = network is not None
        network = network or Redirector(RedirectorConfig.from_dict(config.network))
        self.network = network.eval().requires_grad_(False)
        #: of each concept that is on, its settings as a guard of its own, with the record of its calibration
        self._alone = tuple(
            alone(config, number) for number, name in enumerate(config.concepts) if name not in config.off
        )
        #: concept -> name of its decisions, of a guard that decides concept by concept; {} for one decision an image
        self._names: dict[str, str] = {}
        self._anchors: Anchors | None = None
        self._anchor_of: Tensor | None = None  # (K,) int, which of the anchors each concept has, -1 for none

    def without(self, *concepts: str) -> Self:
        """This guard with some concepts switched off; the weights are shared. GuardConfigError for an unknown name."""
        other = type(self)(replace(self.config, off=tuple(sorted({*self.config.off, *concepts}))), self.network)
        other.name, other.enabled, other.image_verifier = self.name, self.enabled, self.image_verifier
        other._has_weights = self._has_weights
        other.anchor_prompts = {name: text for name, text in self.anchor_prompts.items() if name in other._on}
        return other

    def compile(self, **options: Any) -> None:
        self.network.compile(**options)

    def with_anchors(self, anchors: str | Mapping[str, str]) -> Self:
        other = copy.copy(self)
        other.anchor_prompts = checked_anchors(anchors, self._on, self._title)
        other._anchors = other._anchor_of = None
        return other

    def take_anchors(self, embeds: PromptEmbeds) -> None:
        texts = list(dict.fromkeys(self.anchor_prompts.values()))
        numbers = [
            texts.index(self.anchor_prompts[name]) if name in self.anchor_prompts else -1
            for name in self.config.concepts
        ]
        self._anchors = Anchors.of(embeds)
        self._anchor_of = torch.tensor(numbers, device=embeds.prompt.device)

    def prompt_gates(self, embeds: PromptEmbeds) -> dict[str, Gate]:
        if not self._has_weights or not fits_prompts(self.network.config, embeds):
            return {}
        if self.config.concept in self.logged_concepts:
            return {}
        self.network.to(embeds.prompt.device)
        prompt, real = embeds.prompt, real_tokens(embeds.prompt, embeds.mask)
        with torch.autocast(prompt.device.type, enabled=False):
            scores = self._finite(self.network.prompt_logits(prompt, real, embeds.pooled), "prompt")
        return {
            self.rule_name(name): Gate(scores[:, row], self.config.prompt_thresholds[row])
            for row, name in enumerate(self.config.concepts)
            if name in self._on and name not in self.logged_concepts
        }

    def rule_name(self, concept: str) -> str:
        return self._names.get(concept, concept)

    def deciding(self, names: Mapping[str, str], logged: Collection[str] = ()) -> Self:
        """This guard with decisions of their own for some concepts, as a policy's rules want it; all others are off.

        Its decisions come concept by concept, B each in the order of `names`. The weights are shared.

        Args:
            names: concept -> name of its decisions.
            logged: of these concepts those that are scored and never act.

        Raises:
            GuardConfigError: a concept is unknown, or switched off in this guard.
        """
        for name in (*names, *logged):
            if name not in self.config.concepts or name in self.config.off or name not in names:
                raise GuardConfigError(unknown_name_message(f"concept in {self._title}", name, self._on))
        other = self.without(*(name for name in self.config.concepts if name not in names))
        other._names, other.decision_names = dict(names), tuple(names.values())
        other.logged_concepts = tuple(sorted(logged))
        return other

    @property
    def _acting_alone(self) -> list[SafeRedirConfig]:
        """Of the concepts that are on and not only logged, each one's settings as a guard of its own."""
        return [settings for settings in self._alone if settings.concept not in self.logged_concepts]

    def _warning(self, run: Run) -> str | None:
        """Why the run's guidance is outside of what was calibrated, of the first concept that acts."""
        return next((text for settings in self._acting_alone if (text := outside_calibration(settings, run))), None)

    def _weak_end(self, run: Run) -> str | None:
        """Why the run's last image verdict says little, of the first concept that acts."""
        return next((text for settings in self._acting_alone if (text := weak_at(settings, run.num_steps))), None)

    @property
    def _on(self) -> list[str]:
        return [name for name in self.config.concepts if name not in self.config.off]

    def check_text(self, text: TextSettings) -> None:
        require_trained_settings(self.config.training, text, self._title)

    @property
    def _title(self) -> str:
        return f"this SafeRedir guard of {len(self.config.concepts)} concepts"

    # --- one run

    def start(self, run: Run) -> ManyState:
        if not self._has_weights:
            raise GuardError("This SafeRedir guard has no weights; use Guard.from_pretrained or pass a network.")
        if self.anchor_prompts and self._anchors is None:
            raise GuardError("This SafeRedir guard's anchors were not encoded; attach it, which does that.")
        self.network.to(run.device)
        if (warned := self._warning(run)) is not None:
            warnings.warn(warned, stacklevel=2)
        return ManyState.begin(
            self.config,
            run,
            logged=self.logged_concepts,
            allowed=self.allowed_images(run, *(self._names.get(name, self.name) for name in self.config.concepts)),
        )

    def on_step_start(self, step: Step) -> Conditioned:
        state: ManyState = step.state
        self._score_prompt(step, state)
        acts, margin = self._acting(state)
        chosen, weight = strongest(acts.float(), margin, self.config.most)
        is_redirected = weight[:, 0] > 0
        state.redirected = state.redirected + is_redirected
        redirected_from = torch.zeros_like(acts).scatter(1, chosen, weight > 0)
        state.redirected_from = state.redirected_from + redirected_from
        state.left_out = state.left_out | (acts & ~redirected_from)
        acted = redirected_from | self._would_act(state)
        state.first_fired = torch.where(acted & (state.first_fired < 0), step.index, state.first_fired)
        if not may_hold(is_redirected):
            return step.conditioning
        kept = state.kept
        if kept is None or not kept.is_for(chosen, weight, state.level):
            kept = state.kept = self._redirected(step, state, chosen, weight)
        strength = kept.strength
        state.strengths = strength if state.strengths is None else torch.maximum(state.strengths, strength)
        return step.conditioning.with_cond(prompt=kept.prompt, pooled=kept.pooled)

    def _redirected(self, step: Step, state: ManyState, chosen: Tensor, weight: Tensor) -> Redirected:
        """The conditioning of all images moved away from the chosen concepts (B, M), by their weights (B, M)."""
        cond = step.conditioning.cond
        if any(name not in self.anchor_prompts for name in self._on if name not in self.logged_concepts):
            cond = self._moved(step, state, chosen, weight)
        if self._anchors is not None and self._anchor_of is not None:
            anchor_of = self._anchor_of.to(chosen.device)
            is_led = (anchor_of[chosen] >= 0) & (weight > 0)
            first = torch.where(is_led, chosen, len(anchor_of)).argmin(dim=1, keepdim=True)
            index = anchor_of[chosen.gather(1, first)[:, 0]].clamp(min=0)
            cond = self._anchors.in_place(cond, is_led.any(dim=1).float(), index)
        strength = relative_shift(cond.prompt.detach(), step.prompt_embeds.detach())
        return Redirected(cond.prompt, cond.pooled, strength, chosen, weight, state.level)

    def _moved(self, step: Step, state: ManyState, chosen: Tensor, weight: Tensor) -> PromptEmbeds:
        """The conditional embeddings moved by the directions of the chosen concepts."""
        e0, real, network = step.prompt_embeds, real_tokens(step.prompt_embeds, step.prompt_mask), self.network.config
        with torch.autocast(e0.device.type, enabled=False):
            if state.features is None:
                state.features = self.network.token_features(e0, real, step.pooled)
            redirection = self.network.redirection_of(state.features, chosen)
        refuse(
            ~redirection.finite & (weight[:, 0] > 0),
            lambda: GuardError(f"{self._title} made a redirection that is not finite, so no image is returned."),
        )
        scale = self.config.scale * self.config.escalation_scale ** state.level.float()
        common = (redirection, weight, scale, network.max_shift)
        prompt = redirect(e0, *common, prompt_mask=real, exempt_bos=network.exempt_bos)
        pooled = step.pooled
        if pooled is not None and redirection.pooled_delta is not None:
            pooled = redirect_pooled(pooled, *common)
        return step.conditioning.cond._replace(prompt=prompt, pooled=pooled)

    def _acting(self, state: ManyState) -> tuple[Tensor, Tensor]:
        """Which concepts act on each image, (B, K) bool, and how far each is above its thresholds, (B, K)."""
        prompt = (state.prompt - state.limits[0]).masked_fill(state.is_allowed, -torch.inf)
        image = state.image_peak - state.limits[1]
        margin = torch.maximum(prompt, image).masked_fill(state.is_logged, -torch.inf)
        acts = ((prompt >= 0) | state.image_acts) & ~state.is_logged
        nearest = torch.zeros_like(acts).scatter(1, margin.argmax(dim=1, keepdim=True), True) & margin.isfinite()
        return acts | (nearest & state.is_retried[:, None]), margin

    def _would_act(self, state: ManyState) -> Tensor:
        """(B, K) bool, which of the logged concepts would act."""
        asked = (state.prompt >= state.limits[0]) & ~state.is_allowed
        return (asked | state.image_acts) & state.is_logged

    def _score_prompt(self, step: Step, state: ManyState) -> None:
        if state.source is not None and state.source.is_unchanged(step.conditioning.cond):
            return
        e0, real = step.prompt_embeds, real_tokens(step.prompt_embeds, step.prompt_mask)
        require_fit(self.network.config, step, self.config.concept)
        for settings in self._acting_alone:
            require_calibrated_size(settings, step)
        state.source = Source(step.conditioning.cond)  # callers may write in place
        state.features = state.kept = None
        with torch.autocast(e0.device.type, enabled=False):
            state.prompt = self._finite(self.network.prompt_logits(e0, real, step.pooled), "prompt")

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        state: ManyState = step.state
        score = self.image_scores(x0, step.t)
        is_last = step.evaluation + 1 >= step.run.num_evaluations
        was_acting = self._acting(state)[0]
        high = score.detach() >= state.limits[1]
        state.image_peak = torch.maximum(state.image_peak, score.detach())
        state.streak = torch.where(high & was_acting, state.streak + 1, 0)
        lengthened = (state.streak >= self.config.patience).any(dim=1)
        state.level = torch.where(lengthened, state.level.clamp(min=1), state.level)
        state.image_acts = state.image_acts | high
        state.is_high = score.detach() >= state.limits[2] if is_last else high
        return x0

    def image_scores(self, x0: Tensor, t: Tensor) -> Tensor:
        """(B, K) logits that the denoised estimate shows each concept; of a video, in any frame."""
        with torch.autocast(x0.device.type, enabled=False):
            return self._finite(highest_over_frames(self.network.image_logits, x0, t, each=True), "image")

    def _finite(self, score: Tensor, name: str) -> Tensor:
        refuse_nonfinite(
            score, lambda: GuardError(f"a {name} score of {self._title} is not finite, so no image is returned.")
        )
        return score

    # --- records and weights

    def would_repeat(self, decision: Decision) -> bool:
        """Whether an anchor of the policy's stood in the prompt's place from step 0 on."""
        is_led = decision.concepts and all(name in self.anchor_prompts for name in decision.concepts)
        return bool(is_led) and decision.first_fired_step == 0

    def verdict(self, run: Run, state: ManyState) -> list[Decision]:
        """One record an image; of a guard that decides concept by concept one an image of each."""
        readings, num_steps = Readings.of(state, self._acting(state)[1]), run.num_steps
        common = (self.config, readings, state.image_thresholds)
        if not self._names:
            warned, weak_end = self._warning(run), self._weak_end(run)
            return records_by_image(*common, num_steps=num_steps, warned=warned, weak_end=weak_end)
        return records_by_concept(
            *common,
            names=self._names,
            logged=self.logged_concepts,
            num_steps=num_steps,
            warned={settings.concept: outside_calibration(settings, run) for settings in self._alone},
            weak_end={settings.concept: weak_at(settings, num_steps) for settings in self._alone},
        )

    def warning_text(self) -> str | None:
        weak = weak_rows_text(self._title, self._acting_alone)
        if not self.config.off or self._names:  # a policy's rules say what is on
            return weak
        off = f"{', '.join(self.config.off)} switched off in {self._title}."
        return off if weak is None else f"{off} {weak[0].upper()}{weak[1:]}"

    def weak_verdicts(self) -> dict[str, float]:
        return {name: recall for settings in self._acting_alone for name, recall in weak_verdict(settings).items()}

    def card(self) -> str:
        return many_card(self.config)

    def tensors(self) -> dict[str, Tensor]:
        return {n: t.half() if t.is_floating_point() else t for n, t in self.network.state_dict().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        require_weights_fit(self.network, tensors)
        load_weights(self.network, tensors)
        self._has_weights = True
