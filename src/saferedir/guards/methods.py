"""Which class serves which "method" of a `guard_config.json`: the rows of `guards.catalogue`, and what plug-ins register.

Classes are imported on first use, so that listing methods costs nothing. `registry` hands them out as guards.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from saferedir.errors import GuardConfigError
from saferedir.guards.catalogue import METHODS

_METHODS: dict[str, str] = {}


def register(method: str, target: str) -> None:
    """Bind `method` to ``"module:Class"``. Raises on a name that is already bound to something else."""
    bound = _METHODS.setdefault(method, target)
    if bound != target:
        raise GuardConfigError(f"guard method {method!r} is already registered as {bound}; choose another name.")


def methods() -> list[str]:
    """Names of all registered methods, sorted."""
    return sorted(_METHODS)


def class_of(method: str) -> type[Any]:
    """The class of a method; raises GuardConfigError naming the known ones."""
    if method not in _METHODS:
        raise GuardConfigError(f"no guard method is called {method!r}; known methods: {', '.join(methods())}.")
    module, _, name = _METHODS[method].partition(":")
    return getattr(import_module(module), name)  # type: ignore[no-any-return]


for _method in METHODS:
    register(_method.name, _method.target)
