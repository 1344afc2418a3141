"""Policies of served models: the rules that a call is under, what records say of them, and the check when the service starts."""

from __future__ import annotations

import logging
from typing import Any

from saferedir.errors import SaferedirError
from saferedir.policy.rules import Policy
from saferedir.server.config import ModelSettings, Profile, Settings
from saferedir.server.errors import ServerError

logger = logging.getLogger("saferedir.server")


def floor_of(model: ModelSettings, profile: Profile) -> tuple[str, str]:
    """(policy, profile) of a `CallKey` for calls that name no policy themselves.

    An `on_unsafe` that a key's profile sets is a floor under a policy file's actions, too; one that it does not set is not.
    """
    if model.policy is None:
        return profile.on_unsafe, ""
    return profile.on_unsafe if "on_unsafe" in profile.model_fields_set else "", profile.policy_profile


def rules_of(model: ModelSettings, action: str, profile: str) -> Policy | None:
    """A model's policy file as such calls have it; None for a model without one.

    Args:
        action: that every concept has at least; "" for what the file says.
        profile: of the file; "" for none.
    """
    rules = model.rules
    if rules is None:
        return None
    rules = rules.for_profile(profile) if profile else rules
    return rules.stricter({"*": action}) if action else rules


def actions_of(model: ModelSettings, action: str, profile: str) -> dict[str, str]:
    """Concept -> action, of a model with a policy file; {} for others."""
    rules = rules_of(model, action, profile)
    return {} if rules is None else {rule.concept: rule.action for rule in rules.concepts}


def acting_guards(policy: Policy) -> tuple[str, ...]:
    """What the guards are loaded by that act on something, each once: not those that are off or only log."""
    return tuple(dict.fromkeys(rule.guard for rule in policy.concepts if rule.action not in ("off", "log")))


def policy_facts(model: ModelSettings, action: str, retries: int, profile: str) -> dict[str, Any]:
    """The policy of such calls as records and evidence state it.

    Of a policy file: its name, version and fingerprint, the profile, what all concepts were raised to (`at_least`), the action
    of each concept, the guards that act on something (`guards`), and those that only log (`logged`). Guards that are off are in
    neither. Of a model without a file: `on_unsafe`, and all guards.
    """
    rules, applied = model.rules, rules_of(model, action, profile)
    if rules is None or applied is None:
        facts: dict[str, Any] = {"on_unsafe": action, "guards": list(model.guard_names)}
    else:
        acting = acting_guards(applied)
        logged = dict.fromkeys(rule.guard for rule in applied.concepts if rule.action == "log")
        facts = {
            "name": rules.name,
            "version": rules.version,
            "fingerprint": rules.fingerprint,
            "profile": profile,
            "at_least": action,
            "actions": {rule.concept: rule.action for rule in applied.concepts},
            "guards": list(acting),
            "logged": [name for name in logged if name not in acting],
        }
    return {**facts, "retries": retries, "verify": list(model.verify)}


def check_policies(settings: Settings) -> None:
    """Load the guards of every policy file, and hold it against them in all forms that keys and requests may give it.

    A form in which no image comes out, as a guard cannot tell and the model has no judge, is a warning in the log.

    Raises:
        ServerError: a guard is missing, knows no such concept, cannot do what a rule says, or redirects to another concept of
            the policy.
    """
    for model in settings.models:
        if (rules := model.rules) is None:
            continue
        from saferedir.policy.checking import (  # torch
            all_named_conflicts,
            all_weak_verdict_texts,
            checked_policies,
            forms_of,
        )

        forms = forms_of(rules)
        if {rule.action for rule in rules.concepts} == {"off"}:  # a matter of those whose keys get it, below
            del forms[""]
        for name, profile in settings.profiles.items():
            if not profile.models or model.name in profile.models:
                applied = rules_of(model, *floor_of(model, profile))
                if applied is not None:
                    forms[f"profile {name!r}"] = applied
        try:
            checked = checked_policies(forms, verify=model.verify or None)
        except SaferedirError as error:
            raise ServerError(f"model {model.name!r}: its policy {rules.name!r} cannot be served: {error}") from error
        for conflict in all_named_conflicts(list(checked.values())):
            raise ServerError(f"model {model.name!r}: its policy {rules.name!r} cannot be served: {conflict.sentence}")
        for text in all_weak_verdict_texts(checked, model.verify or None):
            logger.warning("model %r, policy %r: %s", model.name, rules.name, text)
