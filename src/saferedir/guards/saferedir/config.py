"""The frozen configuration of a SafeRedir guard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from saferedir.guards.base import GuardConfig
from saferedir.utils.rules import PLAIN_RULES

MODES = ("default", "faithful")
GATES = ("hard", "soft", "straight_through")
RECHECKS = ("next_step", "same_step")
ESCALATIONS = ("streak", "evidence")
ANSWERS = ("redirect", "renoise")
SIZES = ("refuse", "allow")
LATENTS_TESTS = ("off", "refuse", "refresh", "refresh_all", "refuse_all")
EMBEDS_TESTS = ("off", "refuse", "texts")


@dataclass(frozen=True, kw_only=True)
class SafeRedirConfig(GuardConfig):
    """Settings of SafeRedir (arXiv:2601.08623).

    Attributes:
        mode: "default" (this project's fixes) or "faithful" (the authors' released loop).
        network: sizes of the redirector, `RedirectorConfig.to_dict()`; unused in faithful mode.
        prompt_threshold: the prompt is redirected at score (logit) >= this value; calibrated by training.
        image_threshold: the same for the verdict on the denoised estimate.
        last_threshold: from this score of a run's last denoised estimate on the image is `unresolved`; None: `image_threshold`.
            Runs of fewer than four steps hold every estimate against the mean of both.
        calibration: how the thresholds were chosen and what they do: guidance scales, steps, counts, both error rates of each
            verdict (`calibration.calibrate`); empty where unknown.
        use_prompt, use_image: switch either verdict off, for ablations.
        scale: s, multiplier of the shift, >= 0.
        replace_steps: steps skipped after a hit (faithful) or after every check of either verdict (default); the last
            estimate of a run is scored whatever this says.
        hysteresis: the prompt verdict is given up below `prompt_threshold - hysteresis`, in logits.
        patience: checks in a row before the prompt verdict is given up, or before an image verdict that stays
            high escalates.
        escalation_scale: factor on `scale` at the first escalation; the second puts the anchor's embedding in place.
        redirect_uncond: shift the unconditional half too (the reference does).
        gate: "hard" in use; "soft" or "straight_through" to differentiate through the decision.
        gate_sharpness: kappa of the soft gate, per logit.
        mask_again: faithful mode, multiply the normalised direction by the predicted mask.
        carry_countdown: faithful mode, keep the countdown between pipeline calls as the reference does.
        recheck: "next_step": the image verdict acts from the next step on. "same_step": the redirected prediction of the same
            step takes the place of the one that fired, for one more denoiser row an image until all are redirected.
        escalation: "streak": `patience` high checks in a row. "evidence": high checks and their margins add up, and the anchor
            comes at once where too few steps are left (`hardening.by_evidence`).
        answer: "redirect": the image verdict changes the prompt's embeddings alone. "renoise": where that does not help, the
            latents, too: fresh noise on a flat image at the same level (`hardening.needs_noise`).
        latents_test: what becomes of `latents` of the caller that do not look like noise: "off", "refuse" or "refresh";
            "refuse_all" takes none of the caller at all; "refresh_all" refuses as "refuse" does, and of those that pass replaces
            a share by noise, so that an image asked for by `latents` is no longer the bare pipeline's.
        latents_false_positives: share of honest noise that may fail that test, in (0, 1).
        latents_fresh_share: of the energy of `latents`, what "refresh_all" replaces, in (0, 1]. The noise is decided by their
            values alone (`pipelines.latent_refresh`): the same latents give the same image again.
        embeds_test: what becomes of embeddings of the caller, of prompts and negative prompts: "off"; "refuse" those that no text
            encoder makes, which needs a guard folder with statistics (`saferedir guards manifold`); "texts": refuse all but what
            the pipeline's `encode_prompt` made while the guard was attached.
        other_sizes: what becomes of a run at a size that the image verdict was not calibrated at (`fit.require_calibrated_size`):
            "refuse", or "allow". Guards without a record of their sizes run at any.
        fail_closed: raise on a redirection that is not finite; False leaves that row alone and logs a warning.
    """

    mode: str = "default"
    network: dict[str, Any] = field(default_factory=dict)
    prompt_threshold: float = 0.0
    image_threshold: float = 0.0
    last_threshold: float | None = None
    calibration: dict[str, Any] = field(default_factory=dict)
    use_prompt: bool = True
    use_image: bool = True
    scale: float = 1.0
    replace_steps: int = 0
    hysteresis: float = 1.0
    patience: int = 3
    escalation_scale: float = 1.5
    redirect_uncond: bool = False
    gate: str = "hard"
    gate_sharpness: float = 4.0
    mask_again: bool = False
    carry_countdown: bool = False
    recheck: str = "next_step"
    escalation: str = "streak"
    answer: str = "redirect"
    latents_test: str = "off"
    latents_false_positives: float = 1e-3
    latents_fresh_share: float = 1.0
    embeds_test: str = "off"
    other_sizes: str = "refuse"
    fail_closed: bool = True

    options: ClassVar[Mapping[str, Any]] = {
        **PLAIN_RULES,
        "latents_false_positives": 1e-3,
        "latents_fresh_share": 1.0,
        "other_sizes": "refuse",
    }

    def validate(self) -> None:
        self.require(isinstance(self.network, dict), "network", "the sizes of a redirector, by name")
        self.require(isinstance(self.calibration, dict), "calibration", "what was recorded, by name")
        self.require_choice("mode", MODES)
        self.require_choice("gate", GATES)
        self.require_choice("recheck", RECHECKS)
        self.require_choice("escalation", ESCALATIONS)
        self.require_choice("answer", ANSWERS)
        self.require_choice("latents_test", LATENTS_TESTS)
        self.require_choice("other_sizes", SIZES)
        self.require_choice("embeds_test", EMBEDS_TESTS)
        self.require_number("latents_false_positives", above=0, below=1)
        self.require_number("latents_fresh_share", above=0, at_most=1)
        if self.mode == "faithful":
            self.require(self.recheck == "next_step", "recheck", "next_step in faithful mode")
            self.require(self.escalation == "streak", "escalation", "streak in faithful mode")
            self.require(self.embeds_test == "off", "embeds_test", "off in faithful mode")
            self.require(self.answer == "redirect", "answer", "redirect in faithful mode")
        self.require(self.use_image or self.recheck == "next_step", "recheck", "next_step where use_image is false")
        self.require(self.use_image or self.answer == "redirect", "answer", "redirect where use_image is false")
        self.require_number("prompt_threshold", "image_threshold")
        self.require_number("last_threshold", or_none=True)
        self.require_number("scale", "hysteresis", at_least=0)
        self.require_number("escalation_scale", at_least=1)
        self.require_number("gate_sharpness", above=0)
        self.require_whole("replace_steps", at_least=0)
        self.require_whole("patience", at_least=1)
        self.require_flag(*(entry.name for entry in fields(self) if entry.type == "bool"))
        self.require(self.use_prompt or self.use_image, "use_prompt", "true where use_image is false")
