"""Conflicts inside a policy: a guard that redirects to what another one keeps out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from saferedir.decisions import Decision
from saferedir.guards.base import Guard
from saferedir.policy.allow_list import normalised
from saferedir.policy.rules import ConceptRule


class Conflict(NamedTuple):
    """`concept`'s guard redirects to `anchor`, on which the guard of `other` acts, with this score; None: which names `other`."""

    concept: str
    anchor: str
    other: str
    score: float | None

    @property
    def sentence(self) -> str:
        """For a person."""
        what = f"which names {self.other}" if self.score is None else f"on which the guard of {self.other} acts"
        return f"{self.concept} redirects to {self.anchor!r}, {what}; train it with another anchor."


def anchor_of(guard: Guard[Any]) -> str:
    """The words that a guard puts in the place of its concept, by its own record; "" where it has none."""
    return str(guard.config.training.get("anchor") or getattr(guard.config, "anchor_prompt", "") or "")


def named_conflicts(guards: Sequence[Guard[Any]], rules: Sequence[ConceptRule]) -> list[Conflict]:
    """The anchors that name another concept of the policy in as many words; needs no model, and misses other wordings.

    Of the concepts inside one guard, those that lead into each other by the guard's record. Nothing is redirected by what is
    only logged, and nothing is kept out by it.
    """
    guards, rules = _acting(guards, rules)
    conflicts = _inner_conflicts(guards, rules)
    for guard, rule in zip(guards, rules, strict=True):
        anchor = f" {_words(anchor_of(guard))} "
        for other, of in zip(guards, rules, strict=True):
            concept = of.row or other.config.concept
            if of.concept != rule.concept and any(f" {_words(name)} " in anchor for name in (of.concept, concept)):
                conflicts.append(Conflict(rule.concept, anchor_of(guard), of.concept, None))
    return conflicts


def _inner_conflicts(guards: Sequence[Guard[Any]], rules: Sequence[ConceptRule]) -> list[Conflict]:
    """The concepts of one guard of many that lead into others that are guarded too, by what their training recorded."""
    conflicts = []
    for guard in {id(guard): guard for guard in guards}.values():
        config: Any = guard.config
        rows = {rule.row: rule.concept for each, rule in zip(guards, rules, strict=True) if each is guard and rule.row}
        names = rows or {name: name for name in getattr(config, "concepts", ()) if name not in config.off}
        for row, concept in names.items():
            record = config.calibration.get(row, {}) if hasattr(config, "calibration") else {}
            others = [name for name in record.get("leads_into", {}) if name in names]
            conflicts += [Conflict(concept, name, names[name], None) for name in others]
    return conflicts


def _acting(guards: Sequence[Guard[Any]], rules: Sequence[ConceptRule]) -> tuple[list[Guard[Any]], list[ConceptRule]]:
    pairs = [(guard, rule) for guard, rule in zip(guards, rules, strict=True) if rule.action != "log"]
    return [guard for guard, _ in pairs], [rule for _, rule in pairs]


def _words(text: str) -> str:
    return re.sub(r"[^\w]+", " ", normalised(text)).strip()


def anchor_conflicts(
    decide: Callable[[Guard[Any], list[str]], Sequence[Decision]],
    guards: Sequence[Guard[Any]],
    rules: Sequence[ConceptRule],
) -> list[Conflict]:
    """The anchors on which another concept's guard acts; what is only logged is left out.

    Args:
        decide: a guard and N prompts -> its N decisions (`saferedir.protect.prompt_decisions` of a pipeline).
        guards: the guards of the rules, in their order.
        rules: the policy's concepts.
    """
    guards, rules = _acting(guards, rules)
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
