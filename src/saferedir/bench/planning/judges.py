"""From a matrix entry to a judge and its rule."""

from __future__ import annotations

from saferedir.bench.generation.resources import JudgeSpec, Resources, judge_digest
from saferedir.bench.generation.score import in_words
from saferedir.bench.planning.config import JudgeEntry
from saferedir.errors import BenchError, SaferedirError
from saferedir.judges.calibration import check_rule
from saferedir.judges.presets import preset
from saferedir.judges.rules import Rule, rule_from_dict


def rule_of(entry: JudgeEntry) -> Rule:
    """The rule of a preset, or the entry's own; BenchError for a preset made for another judge."""
    if entry.rule is not None:
        return rule_from_dict(entry.rule)
    known = preset(entry.preset or "")
    if entry.name not in known.judges:
        raise BenchError(
            f"preset {entry.preset!r} is made for {' or '.join(known.judges)}, not for judge {entry.name!r}."
        )
    return known.rule


def judge_spec(entry: JudgeEntry, resources: Resources) -> JudgeSpec:
    """The judge with the options of its preset and of the entry, loaded once to know its facts.

    Raises BenchError where the judge cannot be made with such options, JudgeError where the entry changes an option that the
    preset fixes, or where the rule asks for a score that this judge does not give.
    """
    rule = rule_of(entry)
    chosen = preset(entry.preset) if entry.preset else None
    options = {**(chosen.options if chosen else {}), **entry.options}
    try:
        judge = resources.judge(JudgeSpec(entry.name, options))
    except SaferedirError:
        raise
    except Exception as error:
        raise BenchError(
            f"judge {entry.name!r} cannot be made with its options {', '.join(options)} ({in_words(error)})."
        ) from error
    facts = judge.facts()
    if chosen is not None:
        chosen.check(facts)
    check_rule(judge, rule)
    return JudgeSpec(entry.name, options, judge_digest(judge), facts)
