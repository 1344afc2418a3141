"""Rules and tests of docs/hardening.md that the settings of a guard switch on; read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: setting -> its value in a guard without rules and tests
PLAIN_RULES: Mapping[str, str] = {
    "recheck": "next_step",
    "escalation": "streak",
    "answer": "redirect",
    "latents_test": "off",
    "embeds_test": "off",
}


def active_rules(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Setting -> value of those rules and tests that are not the plain ones; empty for a guard without any."""
    return {name: settings[name] for name, plain in PLAIN_RULES.items() if settings.get(name, plain) != plain}
