"""Two arms on the same prompts: the exact McNemar test, a difference with its interval, and Holm's correction.

What the arms are decided by: judges/rules.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from saferedir.errors import MetricError
from saferedir.metrics import checks
from saferedir.metrics.bootstrap import USUAL, Mean, Resampling, bootstrap_mean

Alternative = Literal["two-sided", "greater", "less"]


@dataclass(frozen=True)
class McNemar:
    """An exact McNemar test.

    Attributes:
        b: pairs where only the first arm is positive.
        c: where only the second is.
        p: its p-value.
        alternative: "greater" is "the first arm is positive more often".
    """

    b: int
    c: int
    p: float
    alternative: Alternative = "two-sided"

    def to_dict(self) -> dict[str, Any]:
        """{"b", "c", "p"}, p with four significant digits."""
        return {"b": self.b, "c": self.c, "p": float(f"{self.p:.4g}")}


def exact_mcnemar(b: int, c: int, alternative: Alternative = "two-sided") -> McNemar:
    """McNemar's test from its discordant counts: under the null B ~ Binomial(b + c, 1/2), no approximation (McNemar 1947).

    two-sided: min(1, 2 P(B <= min(b, c))) · greater: P(B >= b) · less: P(B <= b). No discordant pair: p = 1.
    """
    if min(b, c) < 0:
        raise MetricError(f"discordant pairs are b = {b} and c = {c}, expected counts >= 0.")
    if alternative not in get_args(Alternative):
        raise MetricError(f"alternative is {alternative!r}, expected one of {', '.join(get_args(Alternative))}.")
    if alternative == "two-sided":
        p = min(1.0, 2 * _half_binomial_cdf(min(b, c), b + c))
    else:  # symmetric in the two arms: P(B >= b) = P(B <= c)
        p = _half_binomial_cdf(c if alternative == "greater" else b, b + c)
    return McNemar(b, c, p, alternative)


def mcnemar(
    first: Tensor, second: Tensor, alternative: Alternative = "two-sided", clusters: Tensor | None = None
) -> McNemar:
    """`exact_mcnemar` of two (N,) bool arms over the same prompts; entry i of both belongs to prompt i.

    Args:
        clusters: (N,) integers, which pairs belong together (one prompt with several seeds). Under the null the arms of a whole
            cluster may be exchanged: p is exact over all signs of the clusters' differences Σ(first - second), which for
            clusters of one pair is McNemar's own.
    """
    hits_a = checks.flags("the first arm", first)
    hits_b = checks.flags("the second arm", second, len(hits_a))
    b, c = int((hits_a & ~hits_b).sum()), int((~hits_a & hits_b).sum())
    plain = exact_mcnemar(b, c, alternative)
    if clusters is None:
        return plain
    cluster = checks.groups("the clusters", clusters, len(hits_a))
    sums = torch.zeros(int(cluster.max()) + 1 if len(cluster) else 0, dtype=torch.long)
    sums = sums.index_add(0, cluster, hits_a.long() - hits_b.long())
    return McNemar(b, c, _exchanged(sums.tolist(), alternative), alternative)


def _exchanged(differences: Sequence[int], alternative: Alternative) -> float:
    """P under random signs that the sum of differences is as extreme as it is, in whole numbers until the last division."""
    ways = Counter({0: 1})
    sizes = [abs(difference) for difference in differences if difference]
    for size in sizes:
        ways = Counter({total: ways[total - size] + ways[total + size] for total in _reached(ways, size)})
    observed = sum(differences)
    at_least = sum(
        count for total, count in ways.items() if total >= (abs(observed) if alternative == "two-sided" else observed)
    )
    if alternative == "two-sided":  # the distribution is symmetric
        extreme = at_least * 2 if observed else 2 ** len(sizes)
    else:
        extreme = at_least if alternative == "greater" else sum(ways[total] for total in ways if total <= observed)
    return float(extreme / 2 ** len(sizes))


def _reached(ways: Mapping[int, int], size: int) -> set[int]:
    return {total + step for total in ways for step in (-size, size)}


def _half_binomial_cdf(k: int, n: int) -> float:
    """P(X <= k) for X ~ Binomial(n, 1/2), in whole numbers until the last division."""
    term = total = 1
    for i in range(k):
        term = term * (n - i) // (i + 1)
        total += term
    return float(total / 2**n)


def paired_difference(first: Tensor, second: Tensor, clusters: Tensor | None = None, how: Resampling = USUAL) -> Mean:
    """mean(first) - mean(second) of two (N,) arms of numbers or flags, with the paired bootstrap interval.

    Pairs are resampled together, or all pairs of a prompt where `clusters` (N,) integers name it.
    """
    values_a = checks.numbers("the first arm", first)
    values_b = checks.numbers("the second arm", second, len(values_a))
    return bootstrap_mean(values_a - values_b, clusters, how)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p-values (Holm 1979), in the given order; family-wise error <= a where adjusted p <= a.

    With p sorted upwards: adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j)).
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise MetricError(f"p-value {name!r} is {p}, expected a number from 0 to 1.")
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}
