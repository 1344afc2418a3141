"""Who is calling the denoiser: the guarded pipeline itself, or somebody who shares its modules.

Pure; looks at the Python stack, once a run. Used by `seam.hooks`.
"""

from __future__ import annotations

import inspect
from typing import Any

from saferedir.errors import GuardError
from saferedir.families import unwrapped


def check_caller(pipe: Any, name: str) -> None:
    """Raise unless the nearest caller that holds the denoiser (attribute `name`) and a scheduler is `pipe` itself.

    A pipeline made by `from_pipe` runs the same denoiser with settings of its own, which the guarded one does not know.
    """
    module = unwrapped(getattr(pipe, name))
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        parts = getattr(owner, "__dict__", {})
        if "scheduler" in parts and unwrapped(parts.get(name)) is module:
            if owner is pipe:
                return
            raise GuardError(
                f"a {type(owner).__name__} shares the {name} of a guarded {type(pipe).__name__}; attach the guards to the one "
                "you call, and detach them from the other."
            )
        frame = frame.f_back
    raise GuardError(
        f"the {name} of a guarded pipeline was called outside a call of that pipeline; call the pipeline, or detach the guards."
    )
