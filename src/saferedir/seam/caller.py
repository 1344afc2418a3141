"""Who is calling the denoiser: the guarded pipeline itself, or somebody who shares its modules.

Looks at the Python stack, once a run. It catches mistakes; code of an attacker in this very process can fake a stack.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import CodeType
from typing import Any

from saferedir.errors import GuardError
from saferedir.families import unwrapped


def settings_of_caller(pipe: Any, name: str) -> Mapping[str, Any]:
    """Variables of the pipeline's method that calls the denoiser (attribute `name`) now; raises if it is not this pipeline's.

    A pipeline made by `from_pipe` runs the same denoiser with settings of its own, which the guarded one does not know.
    """
    module = unwrapped(getattr(pipe, name))
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        parts = getattr(owner, "__dict__", {})
        if "scheduler" in parts and unwrapped(parts.get(name)) is module and _is_method(owner, frame.f_code):
            if owner is pipe:
                return dict(frame.f_locals)
            raise GuardError(
                f"a {type(owner).__name__} shares the {name} of a guarded {type(pipe).__name__}; attach the guards to the one "
                "you call, and detach them from the other."
            )
        frame = frame.f_back
    raise GuardError(
        f"the {name} of a guarded pipeline was called outside a call of that pipeline; call the pipeline, or detach the guards."
    )


def _is_method(owner: Any, code: CodeType) -> bool:
    """Whether `code` is that of a method of the owner's class."""
    found = (vars(base).get(code.co_name) for base in type(owner).__mro__)
    return any(callable(method) and getattr(inspect.unwrap(method), "__code__", None) is code for method in found)
