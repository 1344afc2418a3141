"""Anchors of a policy, encoded by the pipeline's own text encoders when a guard is attached, and held against its guards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from saferedir.errors import GuardError, UnsupportedPipelineError
from saferedir.guards.base import Guard
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.encoding import encode_prompts
from saferedir.pipelines.families import Family
from saferedir.seam.begin import words_need_no_image
from saferedir.seam.requirements import check_works_without_text, missing_text_encoders


@torch.no_grad()
def check_anchors(pipe: Any, family: Family, present: Sequence[Guard[Any]], chosen: Sequence[Guard[Any]]) -> None:
    """Raise GuardError for an anchor that asks for what one of the guards keeps out, by that guard's prompt verdict.

    Anchors of `chosen` are held against all guards, those of `present` against `chosen`. Nothing is redirected by what is only
    logged, and nothing is kept out by it. A guard without a prompt verdict says nothing here.
    """
    for guard in (*present, *chosen):
        acting = {
            concept: text
            for concept, text in guard.anchor_prompts.items()
            if not {concept, guard.config.concept} & set(guard.logged_concepts)
        }
        texts = list(dict.fromkeys(acting.values()))
        others = chosen if any(guard is other for other in present) else (*present, *chosen)
        for other in others if texts else ():
            if not other.uses("prompt_gates"):
                continue
            embeds = _encoded(pipe, family, guard, texts, other.config.training.get("call"))
            for name, gate in other.prompt_gates(embeds).items():
                scores = dict(zip(texts, gate.score.tolist(), strict=True))
                for concept, text in acting.items():
                    if (score := scores[text]) >= gate.threshold:
                        raise GuardError(_asks_for(guard.rule_name(concept), text, name, score, gate.threshold))


@torch.no_grad()
def encode_anchors(pipe: Any, family: Family, guard: Guard[Any]) -> None:
    """Give a guard the conditioning of its `anchor_prompts`, encoded under the settings that it was trained under.

    Raises:
        GuardError: the text encoders are gone, or the embeddings are not finite.
        UnsupportedPipelineError: the pipeline reads no prompt, or encodes it together with an image.
    """
    if texts := list(dict.fromkeys(guard.anchor_prompts.values())):
        guard.take_anchors(_encoded(pipe, family, guard, texts, guard.config.training.get("call")))


def _encoded(pipe: Any, family: Family, guard: Guard[Any], texts: Sequence[str], call: Any) -> PromptEmbeds:
    """Conditioning of a guard's anchors under the settings `call`."""
    if not family.has_text:
        check_works_without_text(pipe, guard)
    if family.encoder_reads_image:
        raise UnsupportedPipelineError(f"guard {guard.method!r}: {words_need_no_image(pipe)}")
    if why := whole_anchor_refusal(family):
        raise UnsupportedPipelineError(f"the anchors of guard {guard.method!r} ({guard.config.concept}): {why}")
    if missing := missing_text_encoders(pipe, family):
        raise GuardError(
            f"the anchors of guard {guard.method!r} ({guard.config.concept}) are encoded when a guard is attached, and this "
            f"{type(pipe).__name__} has no {' and no '.join(missing)}; attach before you drop the text encoders."
        )
    return encode_prompts(pipe, texts, call)


def whole_anchor_refusal(family: Family) -> str | None:
    """Why an anchor would not stand whole in the place of another prompt, one sentence; None where it does.

    Under a mask that guards are given, and at a set length, it does, or is cut at its end.
    """
    if family.prompt_lengths == "longest":
        how = "are as long as the longest of a call, without a mask"
    elif family.has_inner_mask:
        how = "are hidden beyond their own tokens by a mask that guards are not given"
    else:
        return None
    return (
        f"prompts of {family.name} {how}, so that one encoded beforehand does not arrive whole there; leave out anchor."
    )


def _asks_for(concept: str, anchor: str, name: str, score: float, threshold: float) -> str:
    return (
        f"{concept!r} would be redirected to {anchor!r}, which asks for {name!r} by the prompt verdict of its guard (score "
        f"{score:.2f}, threshold {threshold:.2f}), so that it would be generated after all; give {concept!r} another anchor."
    )
