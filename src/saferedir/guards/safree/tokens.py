"""What SAFREE makes of a text in one text encoder: its words, its triggers, and what to put in their place.

The guard is guard.py. Shapes: tokens (L,), their states (L, d), bases V (d, r).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saferedir.guards.base import Step
from saferedir.guards.safree.config import SafreeConfig
from saferedir.guards.safree.math import (
    basis,
    filtered,
    gram_tolerance,
    last_step,
    last_step_paper,
    strength,
    triggers,
)
from saferedir.pipelines.text_encoders import TextEncoder

TOLERANCE = 1e-3
COPIES = 16  # masked copies in one call of a text encoder
FAITHFUL_WORDS = 75


class Analysis(NamedTuple):
    """One text. is_trigger, words, attended (L,) bool; own: V of P_I, None for no words; ids (1, L), None where the text is
    unknown and everything counts as a trigger.
    """

    is_trigger: Tensor
    words: Tensor
    attended: Tensor
    prompt_basis: Tensor | None
    ids: Tensor | None

    def to(self, device: torch.device) -> Analysis:
        """On another device."""
        return Analysis(*(None if part is None else part.to(device) for part in self))  # type: ignore[arg-type]


class Segment(NamedTuple):
    """One encoder's part of the prompts: tokens to replace (B, L) bool, by what (B, L, d), in steps 0..t' (B,); score b (B,)."""

    text_encoder: TextEncoder
    tokens: Tensor
    new: Tensor
    last: Tensor
    score: Tensor


class Masked(NamedTuple):
    """One text on the CPU: ids (1, L), words and attended (L,) bool; the pooled states of its masked copies, (n, d), where they
    were made.
    """

    ids: Tensor
    words: Tensor
    attended: Tensor
    pooled: Tensor


def concept_states(text_encoder: TextEncoder, phrases: Sequence[str]) -> Tensor:
    """C, (K, d): pooled states of the phrases."""
    return _pooled(text_encoder, text_encoder.ids(phrases))


def concept_basis(states: Tensor, config: SafreeConfig) -> Tensor:
    """V of P_C, (d, r)."""
    return basis(states, _tolerance(len(states), config))


def masked_copies(text_encoder: TextEncoder, text: str, config: SafreeConfig) -> Masked:
    """Copies of a text with one word after the other masked."""
    is_faithful = config.mode == "faithful"
    ids = text_encoder.ids([text], keep_end=not is_faithful, device="cpu")
    words, attended = text_encoder.words(ids)[0], text_encoder.attended(ids)[0]
    if is_faithful:
        words[text_encoder.first_word + FAITHFUL_WORDS :] = False
    positions = words.nonzero()[:, 0]
    copies = ids.repeat(len(positions), 1)
    copies[torch.arange(len(positions)), positions] = text_encoder.mask_id
    width = int(text_encoder.encoder.config.hidden_size)
    pooled = _pooled(text_encoder, copies.to(text_encoder.device)) if len(positions) else torch.zeros(0, width)
    return Masked(ids, words, attended, pooled)


def analyse(masked: Masked, concept: Tensor, config: SafreeConfig) -> Analysis:
    """Which words hold the text near the concept, by its masked copies; everything on the CPU."""
    if not len(masked.pooled):
        return Analysis(masked.words, masked.words, masked.attended, None, masked.ids)
    is_trigger, margin = masked.words.clone(), math.inf if config.margin is None else config.margin
    is_trigger[masked.words] = triggers(masked.pooled, concept, margin)
    prompt_basis = basis(masked.pooled, _tolerance(len(masked.pooled), config))
    return Analysis(is_trigger, masked.words, masked.attended, prompt_basis, masked.ids)


def make_segment(
    step: Step, text_encoder: TextEncoder, concept: Tensor, known: Mapping[str, Analysis], config: SafreeConfig
) -> Segment:
    """The filter on the tokens of one text encoder, for each image by itself; `known`: what is known of each text."""
    texts = step.prompts or (None,) * step.run.batch_size
    retry_level = step.run.retry_level or (0,) * step.run.batch_size
    rows = []
    for image, text in enumerate(texts):
        states = step.prompt_embeds[image, text_encoder.tokens, text_encoder.channels].float()
        is_inner = step.prompt_mask[image, text_encoder.tokens].clone()
        is_inner[: text_encoder.first_word] = False
        analysis = Analysis(is_inner, is_inner, is_inner, None, None) if text is None else known[text]
        new = filtered(states, concept, analysis.prompt_basis, config.order)
        tokens = analysis.words if retry_level[image] > 1 else analysis.is_trigger
        if config.filter_eos:
            tokens = tokens | (is_inner & ~analysis.words & tokens.any())
        with torch.no_grad():
            score = strength(states, new, analysis.attended)
            last = torch.full_like(score, math.inf)
            if analysis.ids is not None and not retry_level[image] and config.svf == "code":
                last = last_step(score, config.calibration)
            elif analysis.ids is not None and not retry_level[image] and config.svf == "paper":
                pooled = text_encoder.pool(states[None], analysis.ids)
                last = last_step_paper(pooled, filtered(pooled, concept, analysis.prompt_basis, config.order))[0]
        rows.append((tokens, new, last, score))
    return Segment(text_encoder, *(torch.stack(column) for column in zip(*rows, strict=True)))


def _pooled(text_encoder: TextEncoder, ids: Tensor) -> Tensor:
    """(N, d), constants to gradients: a text is discrete, and the basis of a span has no useful derivative."""
    with torch.no_grad():
        return torch.cat([text_encoder.states(some)[1] for some in ids.split(COPIES)])


def _tolerance(rows: int, config: SafreeConfig) -> float:
    return gram_tolerance(rows) if config.mode == "faithful" else TOLERANCE
