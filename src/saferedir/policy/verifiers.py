"""Who looks at images for a policy: the caller's verifiers, guards' image verifiers, and what is refused where there is nobody.

Knows no pipeline and no judge. A verifier is any function of PIL images. Used by `protect`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from saferedir.decisions import Decision
from saferedir.errors import GuardConfigError, GuardError
from saferedir.guards.base import Guard
from saferedir.guards.image_verifier import ImageVerifier

POLICIES = ("redirect", "verify", "block")
ON_BLOCK = ("blank", "raise")
#: N images -> N bools, True where the concept is still there
Verifier = Callable[[list[Image.Image]], Sequence[bool]]


class InputVerifier(NamedTuple):
    """Who checks input images: a verifier, and the guard and concept it speaks for in decisions."""

    guard: str
    concept: str
    verifier: Verifier


def input_verifiers(
    guards: Sequence[Guard[Any]], check_inputs: bool | Verifier, verifier: Verifier | None
) -> tuple[InputVerifier, ...]:
    """Who checks a call's input images; nobody where `check_inputs` is False."""
    if check_inputs is False:
        return ()
    if check_inputs is not True:
        refuse_judge("check_inputs", check_inputs)
        if not callable(check_inputs):
            raise GuardConfigError(
                f"check_inputs is {check_inputs!r}; expected True, False or a function of PIL images."
            )
        return tuple(
            InputVerifier("check_inputs", name, part) for name, part in parts_by_name(check_inputs, "").items()
        )
    verifiers = [
        InputVerifier(guard.method, guard.config.concept, guard.image_verifier.sees)
        for guard in guards
        if guard.image_verifier is not None
    ]
    verifiers += [InputVerifier("verify", name, part) for name, part in parts_by_name(verifier, "").items()]
    if not verifiers:
        raise GuardConfigError(
            "check_inputs=True has nothing to look with: no guard brings an image verifier along, and verify= is not given; give "
            "check_inputs=, a function of PIL images, or train a verifier (`saferedir train verifier`)."
        )
    return tuple(verifiers)


class NamedVerifiers:
    """Several verifiers as one: the concept is there where one of them says so."""

    def __init__(self, by_name: Mapping[str, Verifier]) -> None:
        self.by_name = dict(by_name)

    def __call__(self, images: list[Image.Image]) -> list[bool]:
        """One bool an image."""
        answers = [flags_of(verifier, images) for verifier in self.by_name.values()]
        return [any(flags) for flags in zip(*answers, strict=True)]


def parts_by_name(verifier: Verifier | None, name: str) -> dict[str, Verifier]:
    """The parts of a verifier by their names; one without parts under the given name."""
    if verifier is None:
        return {}
    return verifier.by_name if isinstance(verifier, NamedVerifiers) else {name: verifier}


def refuse_judge(argument: str, value: Any) -> None:
    """Raise where a judge is given in the place of its verifier."""
    if callable(getattr(value, "verifier", None)):
        raise GuardConfigError(
            f"{argument} is a judge ({getattr(value, 'name', '') or type(value).__name__}), which gives scores, not a verdict; "
            f"use {argument}=judge.verifier(rule), the rule being a preset's name such as 'star' or a rule of your own "
            "(docs/judges.md)."
        )


def checked_policy(
    guards: Sequence[Guard[Any]],
    on_unsafe: str,
    verify: Verifier | Mapping[str, Verifier] | Guard[Any] | None,
    retries: int,
    on_block: str = "blank",
    image_verifiers: bool = True,
) -> tuple[Verifier | None, tuple[ImageVerifier, ...]]:
    """The function and the guards' image verifiers that a policy asks; GuardConfigError as `protect` says."""
    if on_unsafe not in POLICIES:
        raise GuardConfigError(f"on_unsafe is {on_unsafe!r}; expected one of {', '.join(POLICIES)}.")
    if on_block not in ON_BLOCK:
        raise GuardConfigError(f"on_block is {on_block!r}; expected one of {', '.join(ON_BLOCK)}.")
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise GuardConfigError(f"retries is {retries!r}; expected a whole number >= 0.")
    if verify is not None and on_unsafe == "redirect":
        raise GuardConfigError('on_unsafe="redirect" checks nothing; use on_unsafe="verify" with a verifier.')
    if isinstance(verify, Guard):
        if not any(verify is guard for guard in guards):
            raise GuardConfigError("verify is a guard that is not among `guards`; add it there, or give a function.")
    if isinstance(verify, Mapping):
        for name, function in verify.items():
            refuse_judge(f"verify[{name!r}]", function)
        if not verify or not all(map(callable, verify.values())):
            raise GuardConfigError(
                "verify is a mapping of names to functions of PIL images, and it names none, or no function."
            )
        verify = NamedVerifiers(verify)
    refuse_judge("verify", verify)
    if verify is not None and not isinstance(verify, Guard) and not callable(verify):
        raise GuardConfigError(f"verify is {verify!r}; expected a function of PIL images, one of the guards, or None.")
    verifier = None if verify is None or isinstance(verify, Guard) else verify
    of_guards = tuple(guard.image_verifier for guard in guards if guard.image_verifier is not None and image_verifiers)
    can_tell = any(guard.may_be_unresolved for guard in guards) or bool(of_guards)
    if on_unsafe == "verify" and verifier is None and guards and not can_tell:
        names = ", ".join(repr(guard.method) for guard in guards)
        raise GuardConfigError(
            f'on_unsafe="verify" has nothing to verify with: guards of {names} do not say that they can call one unresolved; '
            'give verify=, a function of the finished images, or use on_unsafe="redirect". A guard of your own with a classifier '
            "of the final estimate says may_be_unresolved = True in its class."
        )
    return verifier, of_guards


def flags_of(verifier: Verifier, images: list[Image.Image]) -> list[bool]:
    """The verifier's answer, one true bool an image; anything else is an error."""
    try:
        answer: Any = verifier(images)
        flags = [item.item() if getattr(item, "shape", None) == () else item for item in answer]
    except Exception as error:
        raise GuardError(
            f"the verifier failed ({type(error).__name__}: {error}), so no image is returned; mend it, or use "
            "verify=None."
        ) from error
    if len(flags) != len(images) or not all(isinstance(flag, bool) for flag in flags):
        raise GuardError(
            f"the verifier answered {flags!r} for {len(images)} images, so none is returned; expected one bool each."
        )
    return flags


def refuse_unverified(decisions: Sequence[Decision]) -> None:
    """Without a verifier the guards' own last verdicts are all there is; one that is known to be weak is none."""
    weak = next((decision for decision in decisions if decision.unverified), None)
    if weak is not None:
        raise GuardError(
            f'on_unsafe="verify" has nothing to verify with in this run, so no image is returned. {weak.message} Give verify=, a '
            'function of the finished images, take more steps, or use on_unsafe="redirect".'
        )
