"""Arguments of a pipeline's call, and its signature on an object that wraps the pipeline. Knows no guard; used by `protect`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from saferedir.errors import GuardError

_KINDS: dict[tuple[type[Any], type[Any]], type[Any]] = {}


def with_signature(kind: type[Any], pipeline: type[Any]) -> type[Any]:
    """`kind`, or rather a subclass, with the signature of a pipeline's call: servers choose by it what they pass on."""
    if (kind, pipeline) not in _KINDS:
        _KINDS[kind, pipeline] = _subclass(kind, pipeline)
    return _KINDS[kind, pipeline]


def _subclass(kind: type[Any], pipeline: type[Any]) -> type[Any]:
    original: Callable[..., Any] = kind.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **kwargs)

    call.__name__, call.__qualname__, call.__doc__ = "__call__", original.__qualname__, original.__doc__
    call.__signature__ = inspect.signature(pipeline.__call__)  # type: ignore[attr-defined]
    names = {
        "__call__": call,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
    }
    return type(kind.__name__, (kind,), names)


def by_name(pipe: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a pipeline call by keyword."""
    signature = inspect.signature(pipe.__call__)
    call = dict(signature.bind(*args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            call.update(call.pop(name, {}))
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL and call.pop(name, ()):
            raise GuardError(f"the arguments of a {type(pipe).__name__} must be given by name, as in prompt=....")
    return call


def generators_of(call: Mapping[str, Any]) -> list[torch.Generator]:
    """The caller's generators and torch's own, so that a retry starts from the same noise."""
    given = call.get("generator")
    generators = [given] if isinstance(given, torch.Generator) else list(given or ())
    if torch.cuda.is_initialized():
        generators += torch.cuda.default_generators
    return [*generators, torch.default_generator]
