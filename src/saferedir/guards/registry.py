"""Which class serves which "method" of a `guard_config.json`. One guard, one line.

Classes are imported on first use, so that listing methods costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar, Protocol

from saferedir.errors import GuardConfigError


class Registered(Protocol):
    """What is asked of a guard here; `Guard` itself is above this file."""

    method: ClassVar[str]

    @property
    def config(self) -> Any: ...


_METHODS: dict[str, str] = {}
#: methods with a classifier of the final x0 -> whether it is on under these settings
_IMAGE_VERDICTS: dict[str, Callable[[Any], bool]] = {
    "saferedir": lambda config: config.use_image and config.mode == "default",
}
#: methods that act on every image of every run, whatever it shows
_ALWAYS_ACT = ("negative_prompt", "duo", "dual_latent_r1", "dual_latent_r2")


def register(method: str, target: str) -> None:
    """Bind `method` to ``"module:Class"``. Raises on a name that is already bound to something else."""
    bound = _METHODS.setdefault(method, target)
    if bound != target:
        raise GuardConfigError(f"guard method {method!r} is already registered as {bound}; choose another name.")


def methods() -> list[str]:
    """Names of all registered methods, sorted."""
    return sorted(_METHODS)


def guard_class(method: str) -> type[Any]:
    """The class of a method, a `Guard`; raises GuardConfigError naming the known ones."""
    if method not in _METHODS:
        raise GuardConfigError(f"no guard method is called {method!r}; known methods: {', '.join(methods())}.")
    module, _, name = _METHODS[method].partition(":")
    found: type[Any] = getattr(import_module(module), name)
    return found


def may_be_unresolved(guard: Registered) -> bool:
    """Whether a decision of this guard may be `unresolved`: whether it can tell that the concept is still there at the end.

    Of our own methods only those that look at the final x0 with a classifier; of others it is taken for granted.
    """
    is_ours = guard.method in _METHODS and type(guard) is guard_class(guard.method)
    has_verdict = _IMAGE_VERDICTS.get(guard.method)
    return not is_ours or (has_verdict is not None and has_verdict(guard.config))


def always_acts(guard: Registered) -> bool:
    """Whether this guard acts on every image, so that a policy that blocks what it acted on blocks everything."""
    return guard.method in _ALWAYS_ACT


register("saferedir", "saferedir.guards.saferedir.guard:SafeRedir")
register("safe_denoiser", "saferedir.guards.safe_denoiser:SafeDenoiser")
register("spell", "saferedir.guards.spell:SPELL")
register("negative_prompt", "saferedir.guards.negative_prompt:NegativePrompt")
register("sld", "saferedir.guards.sld:SLD")
register("dual_latent_r1", "saferedir.guards.dual_latent.r1:DualLatentR1")
register("dual_latent_r2", "saferedir.guards.dual_latent.r2:DualLatentR2")
register("duo", "saferedir.guards.duo.guard:DUO")
register("safree", "saferedir.guards.safree:Safree")
