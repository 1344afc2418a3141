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
    guards = (*present, *chosen)
    of_guard = {id(guard): acting for guard in guards if (acting := _acting_anchors(guard))}
    texts = list(dict.fromkeys(text for acting in of_guard.values() for text in acting.values()))
    anchored = [guard for guard in guards if id(guard) in of_guard]
    new = {id(guard) for guard in chosen}
    encoded: dict[str, PromptEmbeds] = {}  # by the settings of the call, which most guards have in common
    for other in guards if texts else ():
        asking = [guard for guard in anchored if id(guard) in new or id(other) in new]
        if not asking or not other.uses("prompt_gates"):
            continue
        call = other.config.training.get("call")
        if repr(call) not in encoded:
            for guard in asking:
                _check_encodable(pipe, family, guard)
            encoded[repr(call)] = encode_prompts(pipe, texts, call)
        for name, gate in other.prompt_gates(encoded[repr(call)]).items():
            scores = dict(zip(texts, gate.score.tolist(), strict=True))
            for guard in asking:
                for concept, text in of_guard[id(guard)].items():
                    if (score := scores[text]) >= gate.threshold:
                        raise GuardError(_asks_for(guard.rule_name(concept), text, name, score, gate.threshold))


def _acting_anchors(guard: Guard[Any]) -> dict[str, str]:
    """The anchors of a guard's concepts, without those of what it only logs."""
    logged = set(guard.logged_concepts)
    return {
        concept: text for concept, text in guard.anchor_prompts.items() if not {concept, guard.config.concept} & logged
    }


@torch.no_grad()
def encode_anchors(pipe: Any, family: Family, guard: Guard[Any]) -> None:
    """Give a guard the conditioning of its `anchor_prompts`, encoded under the settings that it was trained under.

    Raises:
        GuardError: the text encoders are gone, or the embeddings are not finite.
        UnsupportedPipelineError: the pipeline reads no prompt, or encodes it together with an image.
    """
    if texts := list(dict.fromkeys(guard.anchor_prompts.values())):
        _check_encodable(pipe, family, guard)
        guard.take_anchors(encode_prompts(pipe, texts, guard.config.training.get("call")))


def _check_encodable(pipe: Any, family: Family, guard: Guard[Any]) -> None:
    """Raise where a guard's anchors cannot be encoded, see `encode_anchors`."""
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
