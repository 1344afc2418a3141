"""Conflicts inside a policy: a guard that redirects to what another one keeps out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from saferedir.decisions import Decision
from saferedir.guards.base import Guard
from saferedir.policy.rules import ConceptRule


class Conflict(NamedTuple):
    """`concept`'s guard redirects to `anchor`, on which the guard of `other` acts, with this score."""

    concept: str
    anchor: str
    other: str
    score: float | None


def anchor_of(guard: Guard[Any]) -> str:
    """The words that a guard puts in the place of its concept, by its own record; "" where it has none."""
    return str(guard.config.training.get("anchor") or getattr(guard.config, "anchor_prompt", "") or "")


def anchor_conflicts(
    decide: Callable[[Guard[Any], list[str]], Sequence[Decision]],
    guards: Sequence[Guard[Any]],
    rules: Sequence[ConceptRule],
) -> list[Conflict]:
    """The anchors on which another concept's guard acts.

    Args:
        decide: a guard and N prompts -> its N decisions (`saferedir.protect.prompt_decisions` of a pipeline).
        guards: the guards of the rules, in their order.
        rules: the policy's concepts.
    """
    anchors = {rule.concept: anchor_of(guard) for guard, rule in zip(guards, rules, strict=True)}
    conflicts = []
    for guard, rule in zip(guards, rules, strict=True):
        asked = [(concept, anchor) for concept, anchor in anchors.items() if anchor and concept != rule.concept]
        if guard.always_acts or not asked:
            continue
        decisions = decide(guard, [anchor for _, anchor in asked])
        decisions = [d for d in decisions if not guard.decision_names or d.name == rule.concept]
        conflicts += [
            Conflict(concept, anchor, rule.concept, decision.prompt_score)
            for (concept, anchor), decision in zip(asked, decisions, strict=True)
            if decision.fired
        ]
    return conflicts
