"""SafeRedir for many concepts in one guard: one trunk, a row each, one pass a step whatever their number.

The method is SafeRedir's (arXiv:2601.08623), `guards/saferedir`, of which this is the case K > 1: every concept has its scores,
thresholds and verdicts; the directions of those that act are added up and bounded per token, docs/methods/saferedir.md (4).

Deviations from the guard of one concept: at most `most` concepts act on an image at once, those furthest above their
thresholds; the prompt verdict stands for as long as the embeddings do; escalation ends with a longer shift, and the only anchors
are those of a policy (`with_anchors`). Of several concepts with anchors that act on one image, the first row's is led to.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from saferedir.decisions import Decision, logged_only
from saferedir.errors import GuardConfigError, GuardError
from saferedir.guards.base import Guard, GuardConfig, Run, Step
from saferedir.guards.gates import Gate
from saferedir.guards.saferedir.anchors import Anchors, checked_anchors
from saferedir.guards.saferedir.assessment import (
    image_threshold,
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
    TokenFeatures,
    redirect,
    redirect_pooled,
)
from saferedir.guards.saferedir.rows import strongest
from saferedir.guards.saferedir.state import LATE, Source, relative_shift
from saferedir.guards.saferedir.trained_text import require_trained_settings
from saferedir.guards.step import Conditioned
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.text_settings import TextSettings
from saferedir.utils.checks import is_number
from saferedir.utils.device import is_readable, may_hold, refuse, refuse_nonfinite, to_host
from saferedir.utils.names import unknown_name_message

METHOD = "saferedir_many"

_LEFT_OUT = "Others acted in the place of {}, further above their thresholds; block this image."


@dataclass(frozen=True, kw_only=True)
class SafeRedirManyConfig(GuardConfig):
    """Settings of a SafeRedir guard of many concepts.

    Attributes:
        network: sizes of the redirector, `RedirectorConfig.to_dict()`, with `row_heads` and the concepts' names.
        prompt_thresholds: one a concept, in the network's order: the prompt is redirected at score (logit) >= this value.
        image_thresholds: the same for the verdict on the denoised estimate.
        last_thresholds: from this score of the last denoised estimate on the image is `unresolved`; () for `image_thresholds`.
        off: concepts that are switched off; the others' decisions do not change by a bit.
        most: concepts that may act on one image at once, >= 1.
        scale: s, multiplier of the shift, >= 0.
        patience: image checks in a row at or above the threshold, while redirected, before the shift is lengthened.
        escalation_scale: factor on `scale` then, >= 1.
        calibration: concept -> how its thresholds were chosen and what they do.
    """

    network: dict[str, Any] = field(default_factory=dict)
    prompt_thresholds: tuple[float, ...] = ()
    image_thresholds: tuple[float, ...] = ()
    last_thresholds: tuple[float, ...] = ()
    off: tuple[str, ...] = ()
    most: int = 4
    scale: float = 1.0
    patience: int = 3
    escalation_scale: float = 1.5
    calibration: dict[str, Any] = field(default_factory=dict)

    def validate(self) -> None:
        self.require(
            isinstance(self.network, dict) and bool(self.network.get("row_heads")), "network", "one with row_heads"
        )
        count = len(self.concepts)
        for name in ("prompt_thresholds", "image_thresholds", "last_thresholds"):
            values = getattr(self, name)
            fits = len(values) == count or (name == "last_thresholds" and not values)
            self.require(fits and all(map(is_number, values)), name, f"{count} numbers, one a concept")
        unknown = [name for name in self.off if name not in self.concepts]
        self.require(not unknown, "off", f"some of {', '.join(self.concepts)}")
        self.require_whole("most", "patience", at_least=1)
        self.require_number("scale", at_least=0)
        self.require_number("escalation_scale", at_least=1)

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of the concepts, in the order of the rows."""
        return tuple(self.network.get("concepts", ()))


class Redirected(NamedTuple):
    """Redirected conditioning of B images, and what it was made by.

    Attributes:
        prompt: (B, L, D); pooled: (B, P), None where there is none.
        strength: (B, L), how far each token was moved.
        chosen: (B, M) the concepts, weight: (B, M) their weights, level: (B,) how often the shift is lengthened.
    """

    prompt: Tensor
    pooled: Tensor | None
    strength: Tensor
    chosen: Tensor
    weight: Tensor
    level: Tensor

    def is_for(self, chosen: Tensor, weight: Tensor, level: Tensor) -> bool:
        """Whether the same concepts act in the same way; False where reading that would wait for a device."""
        pairs = ((self.chosen, chosen), (self.weight, weight), (self.level, level))
        return is_readable(weight) and all(torch.equal(mine, given) for mine, given in pairs)


@dataclass
class ManyState:
    """What the guard remembers during one pipeline call; B images, K concepts."""

    limits: Tensor  # (3, K), thresholds of prompt, image and last score; infinity for concepts that are off
    image_thresholds: tuple[float, ...]  # of the run, off or not
    image_acts: Tensor  # (B, K) bool, whose image verdict has fired; it stays
    streak: Tensor  # (B, K) int, high image checks in a row while redirected
    level: Tensor  # (B,) int, how often the shift is lengthened
    redirected: Tensor  # (B,) int, denoiser calls with another embedding
    redirected_from: Tensor  # (B, K) int, those in which each concept was among what acted
    first_fired: Tensor  # (B, K) int, the step each concept acted in first, -1 for never
    is_high: Tensor  # (B, K) bool, whether the last image check was at or above the threshold
    is_retried: Tensor  # (B,) bool, redirected from step 0
    prompt: Tensor  # (B, K) prompt scores of the embeddings of the run
    image_peak: Tensor  # (B, K) highest image score
    left_out: Tensor  # (B, K) bool, which concepts asked to act in a step in which `most` others did
    is_logged: Tensor  # (K,) bool, which concepts are scored and never act
    is_allowed: Tensor  # (B, K) bool, whose prompt verdict is passed over
    source: Source | None = None  # what `prompt`, `features` and `kept` were made from
    features: TokenFeatures | None = None  # of the embeddings of the run, made when something acts
    kept: Redirected | None = None  # the latest redirection
    strengths: Tensor | None = None  # (B, L)


def alone(config: SafeRedirManyConfig, number: int) -> SafeRedirConfig:
    """The settings of one of the concepts as a guard of its own."""
    name = config.concepts[number]
    record = dict(config.calibration.get(name, {}))
    return SafeRedirConfig(
        concept=name,
        prompt_threshold=config.prompt_thresholds[number],
        image_threshold=config.image_thresholds[number],
        measured=record.pop("measured", {}),
        calibration=record,
        training=config.training,
    )


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
        return [alone for alone in self._alone if alone.concept not in self.logged_concepts]

    def _warning(self, run: Run) -> str | None:
        """Why the run's guidance is outside of what was calibrated, of the first concept that acts."""
        return next((text for alone in self._acting_alone if (text := outside_calibration(alone, run))), None)

    def _weak_end(self, run: Run) -> str | None:
        """Why the run's last image verdict says little, of the first concept that acts."""
        return next((text for alone in self._acting_alone if (text := weak_at(alone, run.num_steps))), None)

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
        rows, count, device = run.batch_size, len(self.config.concepts), run.device
        config = self.config
        last = config.last_thresholds or config.image_thresholds
        image = tuple(image_threshold(*both, run.num_steps) for both in zip(config.image_thresholds, last, strict=True))
        limits = torch.tensor([config.prompt_thresholds, image, last], device=device)

        def flags(of_concepts: Iterable[bool]) -> Tensor:
            return torch.tensor(list(of_concepts), device=device)

        is_off = flags(name in config.off for name in config.concepts)
        retried = run.retry_levels
        if (warned := self._warning(run)) is not None:
            warnings.warn(warned, stacklevel=2)

        def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        return ManyState(
            limits=limits.masked_fill(is_off, torch.inf),
            image_thresholds=image,
            image_acts=zeros(torch.bool, rows, count),
            streak=zeros(torch.long, rows, count),
            level=retried,
            redirected=zeros(torch.long, rows),
            redirected_from=zeros(torch.long, rows, count),
            first_fired=zeros(torch.long, rows, count) - 1,
            is_high=zeros(torch.bool, rows, count),
            is_retried=retried > 0,
            prompt=zeros(torch.float32, rows, count),
            image_peak=zeros(torch.float32, rows, count) - torch.inf,
            left_out=zeros(torch.bool, rows, count),
            is_logged=flags(name in self.logged_concepts for name in config.concepts),
            is_allowed=self.allowed_images(run, *(self._names.get(name, self.name) for name in config.concepts)),
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
        for alone in self._acting_alone:
            require_calibrated_size(alone, step)
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
        """One record an image: of an unresolved concept, or the one furthest above its threshold, and all that acted.

        Of a guard that decides concept by concept, one an image of each.
        """
        if self._names:
            return self._verdict_by_concept(run, state)
        nothing = torch.zeros(0, device=state.level.device)
        margin, first_fired, is_high, left_out, image_peak, levels, prompt, redirected, strengths = to_host(
            self._acting(state)[1],
            state.first_fired,
            state.is_high,
            state.left_out,
            state.image_peak,
            state.level,
            state.prompt,
            state.redirected,
            nothing if state.strengths is None else state.strengths,
        )
        warned, weak_end = self._warning(run), self._weak_end(run)
        decisions = []
        for row in range(run.batch_size):
            fired = [
                name for name, step in zip(self.config.concepts, first_fired[row].tolist(), strict=True) if step >= 0
            ]
            high = [name for name, flag in zip(self.config.concepts, is_high[row].tolist(), strict=True) if flag]
            names = list(self.config.concepts)
            displaced = [name for name, flag in zip(names, left_out[row].tolist(), strict=True) if flag]
            top = max((names.index(name) for name in high), key=margin[row].tolist().__getitem__, default=-1)
            top = int(margin[row].argmax()) if top < 0 else top
            first = [step for step in first_fired[row].tolist() if step >= 0]
            is_late = bool(first) and min(first) > LATE * run.num_steps
            message = f"Redirected from {', '.join(fired)}." if fired else ""
            if is_late:
                message += " That was after the layout of the image had settled; block this image."
            if displaced:
                message = f"{message} {_LEFT_OUT.format(', '.join(displaced))}".strip()
            if high:
                message = f"{message} At the end it still seemed to show {', '.join(high)}; block this image.".strip()
            message = " ".join(part for part in (message, warned, weak_end) if part)
            image = float(image_peak[row, top])
            decisions.append(
                Decision(
                    guard=METHOD,
                    concept=self.config.concepts[top],
                    concepts=tuple(fired),
                    image=row,
                    fired=bool(fired),
                    action="escalated" if fired and int(levels[row]) else "redirected" if fired else "none",
                    prompt_score=float(prompt[row, top]),
                    image_score=image if image > -torch.inf else None,
                    thresholds={
                        "prompt": self.config.prompt_thresholds[top],
                        "image": state.image_thresholds[top],
                    },
                    first_fired_step=min(first) if first else None,
                    steps_redirected=int(redirected[row]),
                    unresolved=bool(high) or is_late or bool(displaced),
                    unverified=weak_end is not None,
                    token_strengths=tuple(strengths[row].tolist()) if fired and state.strengths is not None else None,
                    message=message,
                )
            )
        return decisions

    def _verdict_by_concept(self, run: Run, state: ManyState) -> list[Decision]:
        """B records for each named concept; `unresolved` is also one that asked to act and that others left out of a step.

        A record says what is weak about its own concept, and nothing of the others'.
        """
        nothing = torch.zeros(0, device=state.level.device)
        first_fired, is_high, left_out, image_peak, levels, prompt, redirected, strengths = to_host(
            state.first_fired, state.is_high, state.left_out, state.image_peak, state.level, state.prompt, state.redirected_from,
            nothing if state.strengths is None else state.strengths,
        )  # fmt: skip
        of_concept = {alone.concept: alone for alone in self._alone}
        decisions = []
        for concept, name in self._names.items():
            number, is_logged = self.config.concepts.index(concept), concept in self.logged_concepts
            weak_end = weak_at(of_concept[concept], run.num_steps)
            warned = [text for text in (outside_calibration(of_concept[concept], run), weak_end) if text]
            for row in range(run.batch_size):
                first = int(first_fired[row, number])
                fired, is_last_high = first >= 0, bool(is_high[row, number])
                is_late = fired and first > LATE * run.num_steps
                parts = [f"Redirected from {concept} from step {first}."] if fired else []
                if is_late:
                    parts.append("That was after the layout of the image had settled; block this image.")
                if is_left_out := bool(left_out[row, number]):
                    parts.append(_LEFT_OUT.format(concept))
                if is_last_high:
                    parts.append(f"At the end it still seemed to show {concept}; block this image.")
                decision = Decision(
                    guard=METHOD,
                    concept=concept,
                    name=name,
                    concepts=(concept,) if fired else (),
                    image=row,
                    fired=fired,
                    action="escalated" if fired and int(levels[row]) else "redirected" if fired else "none",
                    prompt_score=float(prompt[row, number]),
                    image_score=score if (score := float(image_peak[row, number])) > -torch.inf else None,
                    thresholds={
                        "prompt": self.config.prompt_thresholds[number],
                        "image": state.image_thresholds[number],
                    },
                    first_fired_step=first if fired else None,
                    steps_redirected=int(redirected[row, number]),
                    unresolved=is_last_high or is_late or is_left_out,
                    unverified=weak_end is not None,
                    token_strengths=tuple(strengths[row].tolist()) if fired and state.strengths is not None else None,
                    message=" ".join((*parts, *warned)),
                )
                decisions.append(logged_only(decision) if is_logged else decision)
        return decisions

    def warning_text(self) -> str | None:
        weak = weak_rows_text(self._title, self._acting_alone)
        if not self.config.off or self._names:  # a policy's rules say what is on
            return weak
        off = f"{', '.join(self.config.off)} switched off in {self._title}."
        return off if weak is None else f"{off} {weak[0].upper()}{weak[1:]}"

    def weak_verdicts(self) -> dict[str, float]:
        return {name: recall for alone in self._acting_alone for name, recall in weak_verdict(alone).items()}

    def card(self) -> str:
        return many_card(self.config)

    def tensors(self) -> dict[str, Tensor]:
        return {n: t.half() if t.is_floating_point() else t for n, t in self.network.state_dict().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        require_weights_fit(self.network, tensors)
        load_weights(self.network, tensors)
        self._has_weights = True
