"""Rules that ask for more than their guards can tell: "verify" or "block" where a guard's last verdict is weak by its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saferedir.guards.base import Guard
from saferedir.policy.rules import ConceptRule

_WHAT = {"verify": "every run is refused", "block": "every image is blocked"}


def weak_of(guard: Guard[Any], rule: ConceptRule) -> dict[str, float]:
    """The concepts of a rule whose last verdict is weak in runs of any length (`Guard.weak_verdicts`) -> the recall, 0 to 1."""
    weak = guard.weak_verdicts()
    return {name: recall for name, recall in weak.items() if not rule.row or name == rule.row}


def weak_verdict_texts(
    guards: Sequence[Guard[Any]], rules: Sequence[ConceptRule], verify: Any = None, *, image_verifiers: bool = True
) -> list[str]:
    """A sentence for each action that lets no image out, because its guards cannot tell and nobody else checks.

    Args:
        guards: the guards of the rules, in their order.
        rules: the policy's concepts.
        verify: the caller's own verifier; with one there is nothing to say.
        image_verifiers: whether the guards' image verifiers are asked.
    """
    texts = []
    for action, what in _WHAT.items() if verify is None else ():
        named = []
        for guard, rule in zip(guards, rules, strict=True):
            is_checked = action == "block" and image_verifiers and guard.image_verifier is not None
            if rule.action == action and not is_checked and (weak := weak_of(guard, rule)):
                named.append(f"{rule.concept} ({_recall(weak)})")
        if named:
            texts.append(
                f'Under "{action}" {what}, as by its guard\'s own record the last verdict finds too few of the images that show '
                f"{', '.join(named)}; use redirect, or give verify=, a function of the finished images."
            )
    return texts


def _recall(weak: Mapping[str, float]) -> str:
    """ "33 %", or of several concepts "12 of its concepts, at worst fox, 5 %"."""
    name = min(weak, key=weak.__getitem__)
    return f"{weak[name]:.0%}" if len(weak) == 1 else f"{len(weak)} of its concepts, at worst {name}, {weak[name]:.0%}"
