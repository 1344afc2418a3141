"""Rates, thresholds and separability: closed forms on plain numbers and tensors. Imports torch and math only."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def wilson_interval(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a binomial rate (Wilson 1927), 95 % by default; (0, 1) for n = 0.

    centre = (p + z²/2n) / (1 + z²/n), half width = z sqrt(p(1-p)/n + z²/4n²) / (1 + z²/n).
    """
    if not 0 <= successes <= max(n, 0):
        raise ValueError(f"successes is {successes}, expected a number from 0 to n = {n}.")
    if n == 0:
        return 0.0, 1.0
    p, square = successes / n, z * z
    centre = (p + square / (2 * n)) / (1 + square / n)
    half = z * math.sqrt(p * (1 - p) / n + square / (4 * n * n)) / (1 + square / n)
    return max(0.0, centre - half), min(1.0, centre + half)


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
