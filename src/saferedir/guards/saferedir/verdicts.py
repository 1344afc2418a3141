"""Scores of SafeRedir's network as gates, and the two verdicts that they become over the steps of a run.

docs/methods/saferedir.md (1), (2) and (7). `guard` scores, these functions decide and write their decision into the run's state.
Shapes: scores, thresholds and weights (B,).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saferedir.errors import GuardError
from saferedir.guards.gates import Gate
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.guards.saferedir.frames import highest_over_frames
from saferedir.guards.saferedir.hardening import by_evidence, by_streak, needs_noise
from saferedir.guards.saferedir.state import RedirState
from saferedir.utils.device import refuse_nonfinite


def prompt_score(
    network: Any, concept: str, prompt_embeds: Tensor, mask: Tensor | None, pooled: Tensor | None
) -> Tensor:
    """(B,) logit that the prompt asks for any of the network's concepts; GuardError where one is not finite."""
    with torch.autocast(prompt_embeds.device.type, enabled=False):  # thresholds were calibrated in full precision
        logits: Tensor = network.prompt_logits(prompt_embeds, mask, pooled)
    return _finite(logits.amax(dim=1), "prompt", concept)


def image_score(network: Any, concept: str, x0: Tensor, t: Tensor) -> Tensor:
    """(B,) logit that x0 shows any of the network's concepts, of a video in any frame; GuardError where one is not finite."""
    with torch.autocast(x0.device.type, enabled=False):
        return _finite(highest_over_frames(network.image_logits, x0, t), "image", concept)


def _finite(score: Tensor, name: str, concept: str) -> Tensor:
    refuse_nonfinite(
        score,
        lambda: GuardError(
            f"SafeRedir's {name} score for {concept!r} is not finite, so no image is returned; check the "
            f"{'prompt embeddings' if name == 'prompt' else 'latents'} and the guard's weights."
        ),
    )
    return score


def gate(config: SafeRedirConfig, score: Tensor, threshold: float) -> Tensor:
    """(B,) 1 from the threshold on, in [0, 1] under a soft gate; a straight-through one has the soft one's gradient."""
    hard = (score >= threshold).to(score.dtype)
    if config.gate == "hard":
        return hard
    soft = torch.sigmoid(config.gate_sharpness * (score - threshold))
    return soft if config.gate == "soft" else hard + (soft - soft.detach())


def last_threshold(config: SafeRedirConfig) -> float:
    """Of the score of a run's last estimate, which decides whether the image is unresolved."""
    return config.image_threshold if config.last_threshold is None else config.last_threshold


def gates(config: SafeRedirConfig, state: RedirState) -> dict[str, Gate]:
    """Score and limit of each verdict that has been given."""
    prompt, negative = state.distances or (None, None)
    scores = {"prompt": state.score, "image": state.image_score, "embeds": prompt, "negative_embeds": negative}
    image = last_threshold(config) if state.is_last else state.image_threshold
    limits = {"prompt": config.prompt_threshold, "image": image, "embeds": 1.0, "negative_embeds": 1.0}
    return {name: Gate(score, limits[name]) for name, score in scores.items() if score is not None}


def decide_prompt(config: SafeRedirConfig, state: RedirState) -> None:
    """The prompt verdict of this step from `state.score`: given up after `patience` checks below the lower threshold."""
    if state.score is None:
        return
    if state.countdown > 0:
        state.countdown -= 1
        return
    state.countdown = config.replace_steps
    score, tau = state.score, config.prompt_threshold
    state.prompt_scores.append(score.detach())
    weight = torch.where(state.is_allowed, 0.0, gate(config, score, tau))
    below = score.detach() < tau - config.hysteresis
    state.safe_streak = torch.where(below, state.safe_streak + 1, 0)
    given_up = (state.safe_streak >= config.patience) & ~state.is_retried
    kept = torch.where(given_up, torch.zeros_like(weight), state.prompt_weight)
    state.prompt_weight = torch.maximum(weight, kept)


def decide_image(config: SafeRedirConfig, state: RedirState, score: Tensor, checks_left: int) -> None:
    """The image verdict of this step: sticky, and a level more where redirecting did not help.

    Args:
        config: the guard's settings.
        state: of the run; `is_last` says whether this is its last evaluation.
        score: (B,) of the guided denoised estimate.
        checks_left: checks of the image after this one.
    """
    shown = state.image_score = score
    if state.fired_now is not None and state.score_before is not None:  # the record holds what fired
        shown = state.image_score = torch.where(state.fired_now, state.score_before, score)
    state.image_scores.append(shown.detach())
    high = score.detach() >= state.image_threshold
    state.is_high = score.detach() >= last_threshold(config) if state.is_last else high
    was_redirected = state.weight.detach() > 0.5
    state.image_weight = torch.maximum(state.image_weight, gate(config, score, state.image_threshold))
    before = state.level
    if config.escalation == "streak":
        outcome = by_streak(state.unsafe_streak, before, high, was_redirected, config.patience)
    else:
        margin = score.detach() - state.image_threshold
        outcome = by_evidence(state.unsafe_streak, before, margin, was_redirected, config.patience, checks_left)
    state.unsafe_streak, state.level = outcome
    if config.answer == "renoise":
        again = high & was_redirected if state.lowest_level else high  # an anchor of a policy is no escalation
        rows = state.is_high if state.is_last else needs_noise(again, before, state.level)
        threshold = last_threshold(config) if state.is_last else state.image_threshold
        state.renoised_now = gate(config, score, threshold) * rows
        state.renoised = state.renoised + rows
