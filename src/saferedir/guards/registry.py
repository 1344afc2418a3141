"""guard_class(method): the class of a registered method. The table is in `methods`, below the base class; this is above it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from saferedir.guards.methods import class_of, methods, register

if TYPE_CHECKING:
    from saferedir.guards.base import Guard

__all__ = ["guard_class", "methods", "register"]


def guard_class(method: str) -> type[Guard[Any]]:
    """The class of a method; raises GuardConfigError naming the known ones."""
    return class_of(method)


def may_be_unresolved(guard: Guard[Any]) -> bool:
    """The old way to ask for `guard.may_be_unresolved`."""
    warnings.warn("may_be_unresolved(guard) is guard.may_be_unresolved now.", DeprecationWarning, stacklevel=2)
    return guard.may_be_unresolved


def always_acts(guard: Guard[Any]) -> bool:
    """The old way to ask for `guard.always_acts`."""
    warnings.warn("always_acts(guard) is guard.always_acts now.", DeprecationWarning, stacklevel=2)
    return guard.always_acts
