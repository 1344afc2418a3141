"""The attacks by name: one line each, in an explicit table that raises on a clash."""

from __future__ import annotations

from saferedir.attacks.base import Attack
from saferedir.attacks.none import NoAttack
from saferedir.attacks.phrasings import Phrasings
from saferedir.errors import SaferedirError

ATTACKS: dict[str, type[Attack]] = {}


def register(attack: type[Attack]) -> None:
    """Add one attack; a name already taken is an error."""
    if attack.name in ATTACKS:
        raise SaferedirError(f"an attack named {attack.name!r} is registered already.")
    ATTACKS[attack.name] = attack


register(NoAttack)
register(Phrasings)
