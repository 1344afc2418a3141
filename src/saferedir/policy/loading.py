"""The guards that a policy names, loaded as its rules want them, and the prompts of a call that they allow.

Knows no pipeline. Used by `protect`, the command line and the service.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from saferedir.errors import GuardConfigError
from saferedir.guards.base import Guard
from saferedir.policy.allow_list import allowed_images
from saferedir.policy.observing import observing
from saferedir.policy.rules import ConceptRule, Policy


def allow_listed(guards: Sequence[Guard[Any]], rules: Sequence[ConceptRule], call: Mapping[str, Any]) -> None:
    """Tell each guard which images of the call its rule allows, for the next run."""
    for guard, rule in zip(guards, rules, strict=True):
        if flags := allowed_images(rule.allow, call):
            guard.allowed = {**guard.allowed, rule.concept: flags}


def guards_of(
    policy: Policy | str | Path,
    profile: str | None,
    *,
    force: bool = False,
    load: Callable[[str], Guard[Any]] | None = None,
) -> tuple[tuple[Guard[Any], ...], tuple[ConceptRule, ...]]:
    """The guards that a policy names, loaded, those it logs only observing; and its rules, in the same order.

    Rules of concepts inside one guard stand together, and their guard is the same object. Rules that are "off" are left out.

    Raises:
        GuardConfigError: everything is off, or a guard cannot do what its rules say.
    """
    policy = policy if isinstance(policy, Policy) else Policy.from_file(policy)
    on = [r for r in (policy if profile is None else policy.for_profile(profile)).concepts if r.action != "off"]
    if not on:
        raise GuardConfigError(f"the policy {policy.name!r} switches every concept off, so nothing would be guarded.")
    load = load or partial(Guard.from_pretrained, force=force)
    guards: list[Guard[Any]] = []
    rules: list[ConceptRule] = []
    for name in dict.fromkeys(rule.guard for rule in on):
        of_guard = [rule for rule in on if rule.guard == name]
        if of_guard[0].row:
            guards += [_guard_of_rows(load(name), of_guard)] * len(of_guard)
            rules += of_guard
            continue
        for rule in of_guard:
            guard = copy.copy(load(name))
            guard.name = rule.concept
            if rule.anchor:
                guard = _with_anchors(guard, rule, rule.anchor)
            guards.append(observing(guard) if rule.action == "log" else guard)
            rules.append(rule)
    for guard, rule in zip(guards, rules, strict=True):
        if rule.allow and not guard.has_prompt_verdict:
            raise GuardConfigError(
                f"the policy allows prompts for {rule.concept!r}, but its guard ({rule.guard}) has no prompt verdict that they "
                "could pass while the image is still judged; leave out allow."
            )
    return tuple(guards), tuple(rules)


def _guard_of_rows(whole: Any, rules: Sequence[ConceptRule]) -> Guard[Any]:
    """A guard of many concepts that decides on those of the rules, each by itself."""
    if not hasattr(whole, "deciding"):
        raise GuardConfigError(
            f"[concepts.{rules[0].concept}] names the row {rules[0].row!r} of {rules[0].guard}, which is a {whole.method} guard "
            "of one concept; leave out row."
        )
    logged = [rule.row for rule in rules if rule.action == "log"]
    guard: Guard[Any] = whole.deciding({rule.row: rule.concept for rule in rules}, logged)
    if anchors := {rule.row: rule.anchor for rule in rules if rule.anchor}:
        guard = _with_anchors(guard, rules[0], anchors)
    return observing(guard) if len(logged) == len(rules) else guard


def _with_anchors(guard: Guard[Any], rule: ConceptRule, anchors: str | Mapping[str, str]) -> Guard[Any]:
    """The guard redirecting to the anchors of its rules, of which `rule` is the first."""
    try:
        return guard.with_anchors(anchors)
    except GuardConfigError as error:
        table = f"[concepts.{rule.concept}]"
        if not rule.category:
            raise GuardConfigError(f"{table} has an anchor, but {error}") from error
        raise GuardConfigError(
            f"{table} has an anchor, of its own or of its category {rule.category!r}, but {error} If it is the category's, say "
            f'anchor = "" in {table}.'
        ) from error


def distinct(guards: Iterable[Guard[Any]]) -> tuple[Guard[Any], ...]:
    """The guards, each once."""
    return tuple({id(guard): guard for guard in guards}.values())


def require_verifiers(
    guards: Sequence[Guard[Any]], rules: Sequence[ConceptRule], verify: Any, *, image_verifiers: bool = True
) -> None:
    """GuardConfigError where a rule wants a concept verified, and nothing can tell whether an image shows it."""
    for guard, rule in zip(guards, rules, strict=True):
        has_verifier = image_verifiers and guard.image_verifier is not None
        if rule.action == "verify" and not (verify or guard.may_be_unresolved or has_verifier):
            raise GuardConfigError(
                f"the policy verifies {rule.concept!r}, but its guard ({rule.guard}) cannot tell whether an image shows it, and "
                "has no image verifier; train one (`saferedir train verifier`), give verify=, or use redirect or block."
            )
