"""What SAFREE makes of a text in one text encoder: its words, its triggers, and what to put in their place.

The guard is guard.py. Shapes: tokens (L,), their states (L, d), bases V (d, r).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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


class Segment(NamedTuple):
    """One encoder's part of the prompts: tokens to replace (B, L) bool, by what (B, L, d), in steps 0..t' (B,); score b (B,)."""

    text_encoder: TextEncoder
    tokens: Tensor
    new: Tensor
    last: Tensor
    score: Tensor


def concept_basis(text_encoder: TextEncoder, phrases: Sequence[str], config: SafreeConfig) -> Tensor:
    """V of P_C, (d, r)."""
    return basis(_pooled(text_encoder, text_encoder.ids(phrases)), _tolerance(len(phrases), config))


def analyse(text_encoder: TextEncoder, concept: Tensor, text: str, config: SafreeConfig) -> Analysis:
    """Mask one word after the other and see which ones hold the text near the concept."""
    is_faithful = config.mode == "faithful"
    ids = text_encoder.ids([text], keep_end=not is_faithful)
    words, attended = text_encoder.words(ids)[0], text_encoder.attended(ids)[0]
    if is_faithful:
        words[text_encoder.first_word + FAITHFUL_WORDS :] = False
    positions = words.nonzero()[:, 0]
    if not len(positions):
        return Analysis(words, words, attended, None, ids)
    copies = ids.repeat(len(positions), 1)
    copies[torch.arange(len(positions), device=ids.device), positions] = text_encoder.mask_id
    masked = _pooled(text_encoder, copies)
    is_trigger = words.clone()
    is_trigger[positions] = triggers(masked, concept, math.inf if config.margin is None else config.margin)
    return Analysis(is_trigger, words, attended, basis(masked, _tolerance(len(positions), config)), ids)


def make_segment(
    step: Step, text_encoder: TextEncoder, concept: Tensor, retry_level: Tensor, config: SafreeConfig
) -> Segment:
    """The filter on the tokens of one text encoder, for each image by itself; `retry_level` (B,) as in the run."""
    texts = step.prompts or (None,) * len(retry_level)
    known = {text: analyse(text_encoder, concept, text, config) for text in set(texts) if text is not None}
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
