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
        return f"{self.concept} redirects to {self.anchor!r}, {what}; give its rule another anchor."


def anchor_of(guard: Guard[Any], rule: ConceptRule) -> str:
    """The words that a guard puts in the place of a rule's concept, by the rule or by the guard's record; "" for none."""
    return rule.anchor or str(guard.config.training.get("anchor") or getattr(guard.config, "anchor_prompt", "") or "")


def named_conflicts(guards: Sequence[Guard[Any]], rules: Sequence[ConceptRule]) -> list[Conflict]:
    """The anchors that name another concept of the policy in as many words; needs no model, and misses other wordings.

    Of the concepts inside one guard without an anchor of the policy's, those that lead into each other by the guard's record.
    A policy's anchor may not name its own concept either. Nothing is redirected by what is only logged, and nothing is kept out
    by it.
    """
    guards, rules = _acting(guards, rules)
    conflicts = _inner_conflicts(guards, rules)
    for guard, rule in zip(guards, rules, strict=True):
        anchor = f" {_words(anchor_of(guard, rule))} "
        for other, of in zip(guards, rules, strict=True):
            is_asked = rule.anchor or of.concept != rule.concept
            if is_asked and any(f" {_words(name)} " in anchor for name in _names_of(other, of)):
                conflicts.append(Conflict(rule.concept, anchor_of(guard, rule), of.concept, None))
    return conflicts


def _names_of(guard: Guard[Any], rule: ConceptRule) -> set[str]:
    """What a rule's concept, or concepts, are called in the policy and in the guard."""
    inside = {rule.row} if rule.row else {guard.config.concept, *getattr(guard.config, "concepts", ())}
    return {rule.concept, *inside}


def _inner_conflicts(guards: Sequence[Guard[Any]], rules: Sequence[ConceptRule]) -> list[Conflict]:
    """The concepts of one guard of many that lead into others that are guarded too, by what their training recorded."""
    conflicts = []
    for guard in {id(guard): guard for guard in guards}.values():
        config: Any = guard.config
        rows = {rule.row: rule.concept for each, rule in zip(guards, rules, strict=True) if each is guard and rule.row}
        names = rows or {name: name for name in getattr(config, "concepts", ()) if name not in config.off}
        for row, concept in names.items():
            if row in guard.anchor_prompts:
                continue
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
    """The anchors on which another concept's guard acts, or, of those that rules give, any; what is only logged is left out.

    Args:
        decide: a guard and N prompts -> its N decisions (`saferedir.protect.prompt_decisions` of a pipeline).
        guards: the guards of the rules, in their order.
        rules: the policy's concepts.
    """
    guards, rules = _acting(guards, rules)
    anchors = [(rule, anchor) for guard, rule in zip(guards, rules, strict=True) if (anchor := anchor_of(guard, rule))]
    texts = list(dict.fromkeys(anchor for _, anchor in anchors))
    decided: dict[int, Sequence[Decision]] = {}
    conflicts = []
    for guard, rule in zip(guards, rules, strict=True):
        asked = [(of, anchor) for of, anchor in anchors if of.anchor or of.concept != rule.concept]
        if guard.always_acts or not asked:
            continue
        if id(guard) not in decided:
            decided[id(guard)] = decide(guard, texts)
        decisions = [d for d in decided[id(guard)] if not guard.decision_names or d.name == rule.concept]
        conflicts += [
            Conflict(of.concept, anchor, rule.concept, decisions[texts.index(anchor)].prompt_score)
            for of, anchor in asked
            if decisions[texts.index(anchor)].fired
        ]
    return conflicts
