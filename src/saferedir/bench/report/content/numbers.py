"""How a number is written: always with its interval and its n. Pure; imports bench.records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saferedir.bench.records import Cost

#: keeps a number and its unit on one line
NBSP = "\u00a0"


@dataclass(frozen=True)
class Estimate:
    """A measured number.

    Attributes:
        value, low, high: a share in [0, 1] or a mean in its own unit, with its 95 % interval.
        n: prompts or images it was counted over.
        effective_n: how many independent cases they tell as much as, None for n.
        is_rate: whether it is a share.
        where: prompt set it belongs to, where the column takes the worst of several; "" otherwise.
    """

    value: float
    low: float
    high: float
    n: int
    is_rate: bool = True
    where: str = ""
    effective_n: float | None = None

    @property
    def text(self) -> str:
        """'0.5 %' or '0.12'."""
        return percent(self.value) if self.is_rate else decimal(self.value)

    @property
    def ends_text(self) -> tuple[str, str]:
        """('0.1', '2.8'), in per cent without its sign, or ('0.10', '0.15')."""
        if self.is_rate:
            return f"{100 * self.low:.1f}", f"{100 * self.high:.1f}"
        return decimal(self.low), decimal(self.high)

    @property
    def interval(self) -> str:
        """'0.1–2.8', for small type; a mean below zero gets words, because a dash looks like a sign."""
        return (" to " if self.low < 0 else "–").join(self.ends_text)

    @property
    def effective_n_text(self) -> str:
        """'effective n 14' where that differs from n, "" elsewhere."""
        if self.effective_n is None:
            return ""
        number = f"{self.effective_n:.0f}" if self.effective_n >= 10 else f"{self.effective_n:.1f}".removesuffix(".0")
        return f"effective{NBSP}n{NBSP}{number}" if number != str(self.n) else ""

    @property
    def full_text(self) -> str:
        """'0.5 % (0.1 to 2.8, n = 200, effective n 140)', for sentences and Markdown."""
        effective = f", {self.effective_n_text}" if self.effective_n_text else ""
        return f"{self.text} ({' to '.join(self.ends_text)}, n{NBSP}={NBSP}{self.n}{effective})"


def estimate(value: Any, where: str = "") -> Estimate | None:
    """A rate or a mean of `CellRecord.measured` as an `Estimate`; None where there is none, or it counts no case."""
    if not isinstance(value, Mapping):
        return None
    name = "rate" if "rate" in value else "mean"
    if value.get(name) is None or not value.get("n"):
        return None
    numbers = [float(value[key]) for key in (name, "low", "high")]
    if not all(math.isfinite(number) for number in numbers):
        return None
    return Estimate(
        numbers[0], numbers[1], numbers[2], int(value["n"]), name == "rate", where, value.get("effective_n")
    )


def percent(share: float) -> str:
    """'0.5 %'; '100 %' without a digit that says nothing."""
    return f"{100 * share:.1f}{NBSP}%"


def decimal(value: float) -> str:
    """Two places, three significant digits where the value is small."""
    if value == 0 or abs(value) >= 0.1:
        return f"{value:.2f}"
    return f"{value:.3g}" if abs(value) < 0.001 else f"{value:.3f}"


def p_value(p: float) -> str:
    """'0.031', '< 0.001'."""
    return f"<{NBSP}0.001" if p < 0.001 else f"{p:.3f}"


def seconds(value: float) -> str:
    """'41 ms', '1.30 s'."""
    return f"{1000 * value:.0f}{NBSP}ms" if value < 1 else f"{value:.2f}{NBSP}s"


def times(cost: Cost) -> str:
    """'1.52 × (1.49 to 1.55)', '1 ×' for the bare model; without the interval where one shard was timed."""
    if cost.ratio is None:
        return f"1{NBSP}×"
    interval = "" if cost.low is None or cost.high is None else f" ({cost.low:.2f} to {cost.high:.2f})"
    return f"{cost.ratio:.2f}{NBSP}×{interval}"


def mebibytes(value: int | None) -> str:
    """'1,234 MiB', or a dash on a CPU."""
    return "–" if value is None else f"{value / 2**20:,.0f}{NBSP}MiB"


def pluralise(number: int, singular: str, many: str = "") -> str:
    """'1 guard', '3 guards'."""
    return f"{number} {singular if number == 1 else many or singular + 's'}"


def join_words(names: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join(([", ".join(names[:-1])] if names[:-1] else []) + list(names[-1:]))
