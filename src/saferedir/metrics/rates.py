"""Rates, thresholds and separability: closed forms on plain numbers and tensors.

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
from saferedir.metrics import checks
from saferedir.metrics.student import NORMAL_95, student_quantile

#: cases of the rarer kind that the prior of `effective_size` counts as
_PRIOR = 10.0


def wilson_interval(successes: float, n: float, z: float = NORMAL_95) -> tuple[float, float]:
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


def effective_size(flags: Tensor, clusters: Tensor) -> float:
    """Effective number of independent cases of (N,) bool flags in clusters, which takes the place of N in Wilson's interval.

    With K clusters of m_k cases and h_k hits, v = K/(K - 1) Σ_k (h_k - p m_k)² / N² is the variance of the share p = Σh/N, by
    Taylor's linearisation, and p(1 - p) / v (z / t_{K-1})² the effective size (Korn & Graubard 1998; Dean & Pagano 2015). It is
    kept between N and Kish's N² / Σ m_k², the effective number if those of a cluster all agree.

    Deviation: a handful of hits (or of misses) says next to nothing about agreement, and at a share of 0 or 1 v says nothing at
    all. 1 / size is therefore mixed with Kish's, which counts as `_PRIOR` cases of the rarer kind.
    """
    hit = checks.flags("the flags", flags)
    cluster = checks.groups("the clusters", clusters, len(hit))
    n = len(hit)
    if not n:
        return 0.0
    sizes = cluster.bincount().double()
    hits = torch.zeros(len(sizes), dtype=torch.float64).index_add(0, cluster, hit.double())
    share, count = float(hits.sum()) / n, len(sizes)
    least = n * n / float((sizes * sizes).sum())
    variance = float(((hits - share * sizes) ** 2).sum()) * count / (max(1, count - 1) * n * n)
    if count == 1:
        return least
    rarer = min(float(hits.sum()), n - float(hits.sum()))
    inverse_size = min(1 / least, max(1 / n, variance / (share * (1 - share)))) if rarer else 0.0
    mixed = (rarer * inverse_size + _PRIOR / least) / (rarer + _PRIOR)
    return min(float(n), max(least, (NORMAL_95 / student_quantile(count - 1)) ** 2 / mixed))


@dataclass(frozen=True)
class Rate:
    """A share with its counts and its 95 % Wilson interval; `MetricError` for counts that cannot be.

    Attributes:
        hits: how often it was so, 0 to n.
        n: of how many.
        effective_n: effective number of independent cases, where the n come in clusters (several images of a prompt, several
            attributes of an image) and the interval must be wider for it; None for n.
    """

    hits: int
    n: int
    effective_n: float | None = None

    def __post_init__(self) -> None:
        for name, count in (("hits", self.hits), ("n", self.n)):
            if isinstance(count, bool) or not isinstance(count, int):
                raise MetricError(f"{name} is {count!r}, expected an integer; count the cases, do not average them.")
        if not 0 <= self.hits <= self.n:
            raise MetricError(
                f"a rate has {self.hits} hits of {self.n}, expected 0 <= hits <= n; check what was counted."
            )
        if self.effective_n is not None and not 0 <= self.effective_n <= self.n:
            raise MetricError(f"{self.n} cases have effective_n {self.effective_n}, expected 0 to {self.n}.")

    @classmethod
    def of(cls, flags: Tensor, clusters: Tensor | None = None) -> Rate:
        """Share of True in a bool tensor of any shape; an empty tensor of any type is 0 of 0.

        Args:
            clusters: (N,) integers, which of (N,) flags belong together; the interval is then that of `effective_size` cases.
        """
        if flags.dtype != torch.bool and flags.numel():
            raise MetricError(f"a rate is counted from a bool tensor, not from {flags.dtype}; decide by a rule first.")
        effective_n = None
        if clusters is not None and flags.numel() and len(clusters.unique()) < len(clusters):
            effective_n = round(effective_size(flags, clusters), 3)
        return cls(int(flags.sum()), flags.numel(), effective_n)

    @property
    def value(self) -> float:
        """hits / n in [0, 1], 0 for n = 0."""
        return self.hits / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval, (0, 1) for n = 0."""
        if self.effective_n is None:
            return wilson_interval(self.hits, self.n)
        return wilson_interval(self.value * self.effective_n, self.effective_n)

    @property
    def complement(self) -> Rate:
        """The share of the others: n - hits of n."""
        return Rate(self.n - self.hits, self.n, self.effective_n)

    def to_dict(self) -> dict[str, Any]:
        """{"rate", "hits", "n", "low", "high"}, shares rounded to four places; "effective_n" where it is not n."""
        low, high = (round(end, 4) for end in self.interval)
        record = {"rate": round(self.value, 4), "hits": self.hits, "n": self.n, "low": low, "high": high}
        return record if self.effective_n is None else {**record, "effective_n": self.effective_n}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Rate:
        """Inverse of `to_dict`; `MetricError` where a count is missing or the shares do not follow from the counts."""
        missing = {"rate", "hits", "n", "low", "high"} - values.keys()
        if missing:
            raise MetricError(f"a rate lacks {', '.join(sorted(missing))}; measure it again, or add what is missing.")
        rate = cls(values["hits"], values["n"], values.get("effective_n"))
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
    rank = math.ceil((n + 1) * (1 - false_positive_rate))
    if rank > n:
        return math.inf
    value = benign.float().sort().values[rank - 1]
    return float(torch.nextafter(value, torch.tensor(math.inf)))
