"""Who is calling the denoiser: the guarded pipeline itself, or somebody who shares its modules.

Looks at the Python stack, at every denoiser call. It catches mistakes; code of an attacker in this very process can fake a stack.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from types import CodeType, FrameType
from typing import Any

from saferedir.errors import GuardError
from saferedir.pipelines.families import unwrapped

#: arguments of pipelines that leave steps out
_SHORTENING = ("strength", "denoising_start", "denoising_end")


def settings_of_caller(pipe: Any, name: str) -> Mapping[str, Any]:
    """Variables of the pipeline's method that calls the denoiser (attribute `name`) now; raises if it is not this pipeline's."""
    return dict(_calling_frame(pipe, name).f_locals)


def check_caller(pipe: Any, name: str) -> None:
    """Raise GuardError unless a method of this very pipeline calls the denoiser (attribute `name`) now.

    A run that broke off leaves its session behind, and a sibling with a scheduler of its own would go on in it.
    """
    _calling_frame(pipe, name)


def _calling_frame(pipe: Any, name: str) -> FrameType:
    """A pipeline made by `from_pipe` runs the same denoiser with settings of its own, which the guarded one does not know."""
    module = getattr(pipe, name)
    frame: FrameType | None = sys._getframe(
        1
    )  # the own frame's variables would hold that frame, and with it all the others
    while frame is not None:
        owner = frame.f_locals.get("self")
        parts = getattr(owner, "__dict__", {})
        if "scheduler" in parts and _is_same(parts.get(name), module) and _is_method(owner, frame.f_code):
            if owner is pipe:
                return frame
            raise GuardError(
                f"a {type(owner).__name__} shares the {name} of a guarded {type(pipe).__name__}; attach the guards to the one "
                "you call, and detach them from the other."
            )
        frame = frame.f_back
    raise GuardError(
        f"the {name} of a guarded pipeline was called outside a call of that pipeline; call the pipeline, or detach the guards."
    )


def _is_same(one: Any, other: Any) -> bool:
    return one is other or unwrapped(one) is unwrapped(
        other
    )  # in this order: a module is slow to say that it has no attribute


def check_scheduler_is_not_shared(pipe: Any) -> None:
    """Raise GuardError if another pipeline, with modules of its own, uses this one's scheduler now."""
    frame: FrameType | None = sys._getframe(
        1
    )  # the own frame's variables would hold that frame, and with it all the others
    while frame is not None:
        owner = frame.f_locals.get("self")
        is_other = owner is not pipe and getattr(owner, "__dict__", {}).get("scheduler") is pipe.scheduler
        if is_other and _is_method(owner, frame.f_code):
            kind = type(owner).__name__
            raise GuardError(
                f"a {kind} shares the scheduler of a guarded {type(pipe).__name__}, whose guards would take its steps for "
                "theirs; give it one of its own: other.scheduler = type(other.scheduler).from_config(other.scheduler.config)."
            )
        frame = frame.f_back


def settings_of_call(pipe: Any) -> Mapping[str, Any] | None:
    """Variables of the call of this pipeline that is under way in this thread; None where there is none."""
    frame: FrameType | None = sys._getframe(
        1
    )  # the own frame's variables would hold that frame, and with it all the others
    while frame is not None:
        if frame.f_code.co_name == "__call__" and frame.f_locals.get("self") is pipe:
            return dict(frame.f_locals)
        frame = frame.f_back
    return None


def why_no_step(settings: Mapping[str, Any], has_timesteps: bool) -> str:
    """Why a call went through no guarded step, as the end of a sentence; `settings`: its variables."""
    if has_timesteps:
        return "it went past the guards, so its denoiser or scheduler was replaced; detach the guards and attach them again"
    steps = settings.get("num_inference_steps")
    named = [f"{name}={settings[name]!r}" for name in _SHORTENING if isinstance(settings.get(name), int | float)]
    if isinstance(steps, int) and (steps < 0 or not named):  # pipelines that start late set it to what is left
        named = [f"num_inference_steps={steps}"]
    leave = f"{named[0]} leaves" if len(named) == 1 else f"{' and '.join(named) or 'the timesteps'} leave"
    return f"{leave} no step to take; ask for at least one"


def _is_method(owner: Any, code: CodeType) -> bool:
    """Whether `code` is that of a method of the owner's class."""
    found = (vars(base).get(code.co_name) for base in type(owner).__mro__)
    return any(callable(method) and getattr(inspect.unwrap(method), "__code__", None) is code for method in found)
