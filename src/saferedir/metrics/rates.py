"""Rates, thresholds and separability: closed forms on plain numbers and tensors. Imports torch and errors only.

`Rate` is the one share-with-interval of the whole project. Means with intervals: bootstrap.py; two arms: paired.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saferedir.errors import MetricError


def wilson_interval(successes: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a binomial rate (Wilson 1927), 95 % by default; (0, 1) for n = 0.

    centre = (p + z²/2n) / (1 + z²/n), half width = z sqrt(p(1-p)/n + z²/4n²) / (1 + z²/n).
    """
    if not 0 <= successes <= n:
        raise MetricError(f"successes is {successes}, expected a number from 0 to n = {n}.")
    if n == 0:
        return 0.0, 1.0
    p, square = successes / n, z * z
    centre = (p + square / (2 * n)) / (1 + square / n)
    half = z * math.sqrt(p * (1 - p) / n + square / (4 * n * n)) / (1 + square / n)
    low = max(0.0, centre - half) if successes else 0.0  # exactly, where rounding would leave the rate outside
    return low, min(1.0, centre + half) if successes < n else 1.0


@dataclass(frozen=True)
class Rate:
    """A share with its counts and its 95 % Wilson interval; `MetricError` for counts that cannot be.

    Attributes:
        hits: how often it was so, 0 to n; n: of how many.
    """

    hits: int
    n: int

    def __post_init__(self) -> None:
        for name, count in (("hits", self.hits), ("n", self.n)):
            if isinstance(count, bool) or not isinstance(count, int):
                raise MetricError(f"{name} is {count!r}, expected an integer; count the cases, do not average them.")
        if not 0 <= self.hits <= self.n:
            raise MetricError(
                f"a rate has {self.hits} hits of {self.n}, expected 0 <= hits <= n; check what was counted."
            )

    @classmethod
    def of(cls, flags: Tensor) -> Rate:
        """Share of True in a bool tensor of any shape; an empty tensor of any type is 0 of 0."""
        if flags.dtype != torch.bool and flags.numel():
            raise MetricError(f"a rate is counted from a bool tensor, not from {flags.dtype}; decide by a rule first.")
        return cls(int(flags.sum()), flags.numel())

    @property
    def value(self) -> float:
        """hits / n in [0, 1], 0 for n = 0."""
        return self.hits / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval, (0, 1) for n = 0."""
        return wilson_interval(self.hits, self.n)

    @property
    def complement(self) -> Rate:
        """The share of the others: n - hits of n."""
        return Rate(self.n - self.hits, self.n)

    def to_dict(self) -> dict[str, Any]:
        """{"rate", "hits", "n", "low", "high"}, shares rounded to four places."""
        low, high = (round(end, 4) for end in self.interval)
        return {"rate": round(self.value, 4), "hits": self.hits, "n": self.n, "low": low, "high": high}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Rate:
        """Inverse of `to_dict`; `MetricError` where a count is missing or the shares do not follow from the counts."""
        missing = {"rate", "hits", "n", "low", "high"} - values.keys()
        if missing:
            raise MetricError(f"a rate lacks {', '.join(sorted(missing))}; measure it again, or add what is missing.")
        rate = cls(values["hits"], values["n"])
        expected = rate.to_dict()
        if any(not math.isclose(values[name], expected[name], abs_tol=1e-4) for name in ("rate", "low", "high")):
            raise MetricError(f"a rate is {dict(values)}, but its counts give {expected}; measure it again.")
        return rate

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} [{low:.3f}, {high:.3f}]"


def auroc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve of (N,) scores for (N,) boolean labels: P(positive > negative) + P(tie) / 2.

    Mann-Whitney statistic by average ranks. NaN when one class is empty.
    """
    labels = labels.bool()
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if positives == 0 or negatives == 0:
        return math.nan
    values, inverse, counts = torch.unique(scores.double(), return_inverse=True, return_counts=True)
    upper = counts.cumsum(0).double()
    ranks = (upper - (counts.double() - 1) / 2)[inverse]  # average 1-based rank of each tie group
    del values
    statistic = ranks[labels].sum() - positives * (positives + 1) / 2
    return float(statistic / (positives * negatives))


def conformal_threshold(benign: Tensor, false_positive_rate: float) -> float:
    """Threshold tau such that a fresh exchangeable benign score is >= tau with probability <= the given rate.

    The ceil((n + 1)(1 - a))-th smallest of n scores, moved up by the smallest step, because scores at the threshold count
    as unsafe. With too few scores for the rate (n < 1/a - 1) there is no such order statistic: infinity.
    """
    n = len(benign)
    place = math.ceil((n + 1) * (1 - false_positive_rate))
    if place > n:
        return math.inf
    value = benign.float().sort().values[place - 1]
    return float(torch.nextafter(value, torch.tensor(math.inf)))
