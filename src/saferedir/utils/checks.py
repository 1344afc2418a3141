"""Checks of settings: numbers, whole numbers, flags, texts and choices, each with one sentence that says what was expected.

`Checked` is a mixin for frozen dataclasses of settings: `guard.GuardConfig` and the trainers' TrainConfig.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from saferedir.errors import GuardConfigError


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number: no bool, no NaN, no text of digits."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_int(value: Any) -> bool:
    """Whether `value` is an int and no bool; 2.0 is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_nonempty_str(value: Any) -> bool:
    """Whether `value` is a text of more than blanks."""
    return isinstance(value, str) and bool(value.strip())


class Checked:
    """Settings that can say what is wrong with them; a mixin for dataclasses."""

    def require(self, holds: bool, name: str, expected: str) -> None:
        """Raise a GuardConfigError naming field, value and expectation unless `holds`."""
        if not holds:
            raise GuardConfigError(f"{type(self).__name__}.{name} is {getattr(self, name)!r}; expected {expected}.")

    def require_number(
        self,
        *names: str,
        at_least: float | None = None,
        above: float | None = None,
        at_most: float | None = None,
        below: float | None = None,
        or_none: bool = False,
    ) -> None:
        """Each named field is a finite number within these bounds, or None where `or_none`."""
        for name in names:
            value = getattr(self, name)
            holds = is_number(value) and _is_within(value, at_least, above, at_most, below)
            expected = "a finite number" + _bounds(at_least, above, at_most, below)
            self.require(holds or (or_none and value is None), name, expected + (", or None" if or_none else ""))

    def require_whole(self, *names: str, at_least: int | None = None, or_none: bool = False) -> None:
        """Each named field is a whole number >= `at_least`, or None where `or_none`."""
        for name in names:
            value = getattr(self, name)
            holds = is_int(value) and _is_within(value, at_least, None, None, None)
            expected = "a whole number" + _bounds(at_least, None, None, None)
            self.require(holds or (or_none and value is None), name, expected + (", or None" if or_none else ""))

    def require_flag(self, *names: str) -> None:
        """Each named field is True or False."""
        for name in names:
            self.require(isinstance(getattr(self, name), bool), name, "True or False")

    def require_text(self, *names: str) -> None:
        """Each named field is a text of more than blanks."""
        for name in names:
            self.require(is_nonempty_str(getattr(self, name)), name, "some words")

    def require_choice(self, name: str, choices: Sequence[str]) -> None:
        """The named field is one of `choices`."""
        self.require(getattr(self, name) in tuple(choices), name, f"one of {', '.join(choices)}")


def _is_within(
    value: float, at_least: float | None, above: float | None, at_most: float | None, below: float | None
) -> bool:
    return (
        (at_least is None or value >= at_least)
        and (above is None or value > above)
        and (at_most is None or value <= at_most)
        and (below is None or value < below)
    )


def _bounds(at_least: float | None, above: float | None, at_most: float | None, below: float | None) -> str:
    marks = ((">=", at_least), (">", above), ("<=", at_most), ("<", below))
    limits = [f"{mark} {bound:g}" for mark, bound in marks if bound is not None]
    return f" {' and '.join(limits)}" if limits else ""
