"""diffusers' own safety checker: off where images are made for us, and what it found where they are made for a user.

Knows pipelines by `safety_checker`, outputs by `nsfw_content_detected` or `nsfw_detected`. A checker hands out black
images in place of those that it flags: as references, roll-outs, pairs or benchmark images they would teach black, and
to a user a black image must not look like one that a guard let through.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

#: how decisions and tables call it
NAME = "diffusers' own safety checker"
_FLAGS = ("nsfw_content_detected", "nsfw_detected")


@contextmanager
def without_safety_checker(pipe: Any) -> Iterator[None]:
    """Inside, the pipeline has no safety checker; afterwards it has the one that it had, its config included."""
    attributes = vars(pipe)
    checker = attributes.get("safety_checker")
    if checker is None:
        yield
        return
    # Not by assignment: diffusers then forgets the checker's class, and would save the pipeline without it.
    attributes["safety_checker"] = None
    try:
        yield
    finally:
        attributes["safety_checker"] = checker


def remove_safety_checker(pipe: Any) -> None:
    """Take the checker of a pipeline that is ours for good."""
    if getattr(pipe, "safety_checker", None) is not None:
        pipe.safety_checker = None
    if pipe.config.get("requires_safety_checker"):
        pipe.register_to_config(requires_safety_checker=False)


def flagged_images(output: Any, count: int) -> list[bool] | None:
    """For each of `count` images whether the checker flagged it; None where no checker ran.

    `output` is what a pipeline returned, an output object or a tuple. Flags that do not match the images count for all.
    """
    if isinstance(output, Mapping):
        flags = next((output[name] for name in _FLAGS if output.get(name) is not None), None)
    elif isinstance(output, tuple) and len(output) > 1:
        flags = output[1] if _are_flags(output[1]) else None
    else:
        flags = None
    if flags is None:
        return None
    flagged = [bool(flag) for flag in flags]
    return flagged if len(flagged) == count else [any(flagged)] * count


def _are_flags(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item).__name__ in ("bool", "bool_") for item in value)
