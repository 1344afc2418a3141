"""A policy held against its guards before it is used: as it is written, and as each of its profiles has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from saferedir.errors import SaferedirError
from saferedir.guards.base import Guard
from saferedir.policy.conflicts import Conflict, named_conflicts
from saferedir.policy.loading import guards_of, require_verifiers
from saferedir.policy.rules import ConceptRule, Policy
from saferedir.policy.weak_verdicts import weak_verdict_texts


class CheckedPolicy(NamedTuple):
    """A policy with its guards, loaded, and its rules, in the same order; rules that are "off" are left out."""

    policy: Policy
    guards: tuple[Guard[Any], ...]
    rules: tuple[ConceptRule, ...]


def forms_of(policy: Policy) -> dict[str, Policy]:
    """Where it is written -> the policy there: "" for itself, "[profiles.NAME]" for each profile."""
    return {"": policy, **{f"[profiles.{name}]": policy.for_profile(name) for name in policy.profiles}}


def checked_policies(
    forms: Mapping[str, Policy], *, verify: Any = None, load: Callable[[str], Guard[Any]] | None = None
) -> dict[str, CheckedPolicy]:
    """Each of some policies with its guards; every guard is loaded once, those of concepts that are off, too.

    Args:
        forms: where it is written -> the policy (`forms_of`), at least one.
        verify: a verifier that all of them have beside their guards' own; None for none.
        load: gives the guard of a name.

    Raises:
        GuardConfigError, GuardNotFoundError: a guard is missing, has no such row, or cannot do what its rule says; the sentence
            begins with where that is written.
    """
    loaded = cache(load or Guard.from_pretrained)
    checked = {}
    whole = next(iter(forms.values())).stricter({"*": "redirect"})  # a request may switch on what is off
    guards_of(whole, None, load=loaded)
    for where, policy in forms.items():
        try:
            guards, rules = guards_of(policy, None, load=loaded)
            require_verifiers(guards, rules, verify)
        except SaferedirError as error:
            raise type(error)(f"{where}: {error}" if where else str(error)) from error
        checked[where] = CheckedPolicy(policy, guards, rules)
    return checked


def all_named_conflicts(checked: Sequence[CheckedPolicy]) -> list[Conflict]:
    """`named_conflicts` of all of them, each once."""
    conflicts = [conflict for each in checked for conflict in named_conflicts(each.guards, each.rules)]
    return list(dict.fromkeys(conflicts))


def all_weak_verdict_texts(checked: Mapping[str, CheckedPolicy], verify: Any = None) -> list[str]:
    """`weak_verdict_texts` of all of them, each once, those of a profile beginning with where it is written."""
    texts: dict[str, str] = {}
    for where, each in checked.items():
        for text in weak_verdict_texts(each.guards, each.rules, verify):
            texts.setdefault(text, f"{where}: {text}" if where else text)
    return list(texts.values())
