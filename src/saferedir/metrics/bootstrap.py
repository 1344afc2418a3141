"""Means and ratios with percentile bootstrap intervals; images of one prompt are resampled together.

Two arms on the same prompts: paired.py; shares: rates.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from saferedir.errors import MetricError
from saferedir.metrics import checks
from saferedir.metrics.student import student_quantile

_ROWS_AT_ONCE = 1 << 21  # indices held in memory at one time


@dataclass(frozen=True)
class Resampling:
    """Settings of a bootstrap.

    Attributes:
        resamples: how often, >= 1.
        level: probability of the interval, in (0, 1).
        seed: of the `torch.Generator`, so that the same numbers have the same interval.
    """

    resamples: int = 10_000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 1 or not 0 < self.level < 1:
            raise MetricError(
                f"a bootstrap has resamples {self.resamples} and level {self.level}, expected >= 1 and within (0, 1)."
            )


USUAL = Resampling()


@dataclass(frozen=True)
class Mean:
    """A mean, a ratio or a difference of n cases, with a bootstrap interval.

    Attributes:
        value: the estimate.
        n: images behind it.
        low, high: ends of its interval.
    """

    value: float
    n: int
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """{"mean", "n", "low", "high"}, rounded to six places."""
        return {"mean": round(self.value, 6), "n": self.n, "low": round(self.low, 6), "high": round(self.high, 6)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Mean:
        """Inverse of `to_dict`; `MetricError` for a missing number."""
        missing = {"mean", "n", "low", "high"} - values.keys()
        if missing:
            raise MetricError(f"a mean lacks {', '.join(sorted(missing))}; measure it again.")
        return cls(values["mean"], values["n"], values["low"], values["high"])

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_interval(
    statistic: Callable[[Tensor], Tensor], units: int, how: Resampling = USUAL
) -> tuple[float, float]:
    """Percentile interval of a statistic of U exchangeable units (Efron 1979), expanded for few of them.

    The quantiles are those of Phi(-sqrt(U / (U - 1)) t_{U-1}), not of (1 - level) / 2: with few units the plain interval is too
    narrow (Hesterberg 2015, What Teachers Should Know About the Bootstrap).

    Args:
        statistic: (R, U) indices of sampled units to (R,) values. A resample with no finite value (a ratio with denominator 0)
            is left out; `MetricError` where none is left.
        units: U >= 2; MetricError for one, which says nothing about the spread.
        how: number of resamples, level, seed.
    """
    if units < 2:
        raise MetricError("one prompt has no interval; generate images of more.")
    generator = torch.Generator().manual_seed(how.seed)
    at_once = max(1, _ROWS_AT_ONCE // units)
    values = []
    for start in range(0, how.resamples, at_once):
        rows = torch.randint(units, (min(at_once, how.resamples - start), units), generator=generator)
        values.append(statistic(rows).double())
    resampled = torch.cat(values)
    resampled = resampled[resampled.isfinite()]
    if not len(resampled):
        raise MetricError("no resample of the bootstrap has a finite value; the denominator is zero nearly everywhere.")
    tail = NormalDist().cdf(-((units / (units - 1)) ** 0.5) * student_quantile(units - 1, how.level))
    low, high = resampled.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return float(low), float(high)


def bootstrap_ratio(
    numerators: Tensor, denominators: Tensor, clusters: Tensor | None = None, how: Resampling = USUAL
) -> Mean:
    """sum(numerators) / sum(denominators) of paired (N,) numbers, with the interval over pairs.

    Args:
        numerators: (N,) finite.
        denominators: (N,) finite; they must not sum to zero.
        clusters: (N,) integers, the prompt of each pair; whole clusters are resampled where several images share a prompt,
            because they are not independent (Davison & Hinkley 1997, sec. 3.8).
        how: number of resamples, level, seed.
    """
    over = checks.numbers("the numerators", numerators)
    under = checks.numbers("the denominators", denominators, len(over))
    n = len(over)
    if clusters is not None:
        cluster = checks.groups("the clusters", clusters, n)
        empty = torch.zeros(int(cluster.max()) + 1, dtype=torch.float64)
        over, under = empty.index_add(0, cluster, over), empty.index_add(0, cluster, under)
    if float(under.sum()) == 0:
        raise MetricError("a ratio's denominators sum to zero, so there is no ratio; report the two sums instead.")
    low, high = bootstrap_interval(lambda rows: over[rows].sum(dim=1) / under[rows].sum(dim=1), len(over), how)
    return Mean(float(over.sum() / under.sum()), n, low, high)


def bootstrap_mean(values: Tensor, clusters: Tensor | None = None, how: Resampling = USUAL) -> Mean:
    """Mean of (N,) numbers or flags with its bootstrap interval, by cluster as in `bootstrap_ratio` if clusters are given."""
    return bootstrap_ratio(values.double(), torch.ones(values.shape), clusters, how)
