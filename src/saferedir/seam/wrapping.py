"""Wrapping methods of a scheduler or a pipeline and finding a seam again from the hooks it left. No run, no guard in sight.

Used by `seam.hooks`, `seam.texts` and `attach`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

from torch import nn

from saferedir.errors import GuardError

MARK = "saferedir_seam"
_HOOK_DICTS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
#: called as moment(instance, original, *args, **kwargs)
Moment = Callable[..., Any]


class WrappedMethods:
    """Methods of one instance, replaced until `release`; then inert, even where somebody wrapped them again."""

    def __init__(self, instance: Any, moments: Mapping[str, Moment], owner: object) -> None:
        self.instance, self._is_active = instance, True
        self._found = {name: instance.__dict__[name] for name in moments if name in instance.__dict__}
        self._wrappers = {name: self._wrapped(name, moment, owner) for name, moment in moments.items()}
        for name, wrapper in self._wrappers.items():
            setattr(instance, name, wrapper)

    def release(self) -> None:
        """Put the instance's own methods back."""
        self._is_active = False
        for name, wrapper in self._wrappers.items():
            if self.instance.__dict__.get(name) is not wrapper:
                continue  # somebody wrapped ours since; it stays below theirs and passes everything through
            if name in self._found:
                setattr(self.instance, name, self._found[name])
            else:
                delattr(self.instance, name)

    def _wrapped(self, name: str, moment: Moment, owner: object) -> MethodType:
        original = getattr(self.instance, name)

        # The type's function is the one pipelines inspect for `eta`, `generator`, `timesteps`, `sigmas`.
        @functools.wraps(getattr(type(self.instance), name))
        def wrapped(instance: Any, *args: Any, **kwargs: Any) -> Any:
            if instance is not self.instance:
                raise GuardError(
                    f"this {type(instance).__name__} is a copy of a guarded one, without guards of its own; attach guards "
                    "to its pipeline, or free it with saferedir.detach(pipe)."
                )
            if not self._is_active:
                return original(*args, **kwargs)
            return moment(instance, original, *args, **kwargs)

        setattr(wrapped, MARK, (owner, self))
        return MethodType(wrapped, self.instance)


def owner_of_hooks(module: nn.Module) -> Any:
    """The seam whose hooks are on `module`, its own or copied along from another."""
    for hook in module._forward_pre_hooks.values():
        owner = getattr(hook, MARK, None)
        if owner is not None:
            return owner
    return None


def remove_marked_hooks(module: nn.Module, is_foreign: Callable[[object, nn.Module], bool]) -> None:
    """Remove the hooks of seams for which `is_foreign` holds: those that came along with a deep copy."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key, hook in list(hooks.items()):
            owner = getattr(hook, MARK, None)
            if owner is not None and is_foreign(owner, module):
                for name in _HOOK_DICTS:
                    getattr(module, name, {}).pop(key, None)


def remove_foreign_wrappers(instance: Any) -> None:
    """Remove wrapped methods that a copied scheduler or pipeline brought along."""
    for name, method in list(instance.__dict__.items()):
        mark = getattr(method, MARK, None)
        if mark is not None and mark[1].instance is not instance:
            delattr(instance, name)
