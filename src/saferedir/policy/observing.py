"""Guards that score and change nothing: the action "log" of a policy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from saferedir.decisions import Decision, logged_only
from saferedir.errors import GuardConfigError
from saferedir.guards.base import Guard
from saferedir.guards.step import Run

#: points at which a guard edits something -> what it was given to edit
_GIVEN: dict[str, Callable[..., Any]] = {
    "on_prompt": lambda step: step.conditioning,
    "on_step_start": lambda step: step.conditioning,
    "on_skip_features": lambda step, skip: skip.cond,
    "on_attention": lambda step, attention: attention.cond,
    "on_prediction": lambda step: step.pred,
    "on_denoised": lambda step, x0: x0,
    "on_step_end": lambda step, latents: latents,
}


def observing(guard: Guard[Any]) -> Guard[Any]:
    """The guard as one that scores every image and changes none: the run is bit for bit the unguarded one.

    Its decisions keep their scores and whether it would have acted (`fired`); their action is "none". It shares the weights.

    Raises:
        GuardConfigError: the guard acts through the model's weights, or on every image whatever it shows: it scores nothing.
    """
    kind = type(guard)
    if guard.always_acts or kind.load is not Guard.load:
        raise GuardConfigError(
            f"guard {guard.method!r} ({guard.config.concept}) scores nothing, so that there is nothing to log; use redirect, or "
            "leave the concept out."
        )
    if any(guard.uses(point) for point in ("extra_prompts", "extra_embeds", "extra_latents")):
        raise GuardConfigError(
            f"guard {guard.method!r} ({guard.config.concept}) adds rows to the denoiser's calls, so that the run would not be "
            "the unguarded one; use redirect, or settings without such rows."
        )
    points = [point for point in _GIVEN if getattr(kind, point) is not getattr(Guard, point)]
    members: dict[str, Any] = {point: _blind(kind, point) for point in points}
    members |= {"verdict": _logged(kind), "logged_concepts": (guard.config.concept,)}
    other = copy.copy(guard)
    other.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, **members})
    other.latents_test = "off"
    return other


def _blind(kind: type[Guard[Any]], point: str) -> Callable[..., Any]:
    """The method of a point that does its work, and answers with what it was given."""

    def method(self: Guard[Any], *given: Any) -> Any:
        getattr(kind, point)(self, *given)
        return _GIVEN[point](*given)

    return method


def _logged(kind: type[Guard[Any]]) -> Callable[..., list[Decision]]:
    def verdict(self: Guard[Any], run: Run, state: Any) -> list[Decision]:
        return [logged_only(decision) for decision in kind.verdict(self, run, state)]

    return verdict
