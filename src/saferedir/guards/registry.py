"""guard_class(method): the class of a registered method. The table is in `methods`, below the base class; this is above it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from saferedir.guards.methods import class_of, methods, register

if TYPE_CHECKING:
    from saferedir.guards.base import Guard

__all__ = ["guard_class", "methods", "register"]


def guard_class(method: str) -> type[Guard[Any]]:
    """The class of a method; raises GuardConfigError naming the known ones."""
    return class_of(method)
