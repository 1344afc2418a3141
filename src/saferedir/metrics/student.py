"""Quantiles of Student's t, for intervals from few prompts."""

from __future__ import annotations

import math
from functools import lru_cache

from saferedir.errors import MetricError

NORMAL_95 = 1.959964


@lru_cache(maxsize=4096)
def student_quantile(df: int, level: float = 0.95) -> float:
    """t with P(|T| <= t) = level for T of `df` >= 1 degrees of freedom; bisection of the exact finite sums for whole df.

    With theta = atan(t / sqrt(df)): odd df 2/pi (theta + sin theta (cos theta + 2/3 cos³ theta + …)), even df sin theta (1 +
    1/2 cos² theta + 3/8 cos⁴ theta + …) (Abramowitz & Stegun 26.7.3 and 26.7.4).
    """
    if df < 1 or not 0 < level < 1:
        raise MetricError(f"Student's t was asked for df = {df} and level {level}, expected df >= 1 and 0 < level < 1.")
    low, high = 0.0, 1.0
    while _within(high, df) < level:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, df) < level else (low, middle)
    return (low + high) / 2


def _within(t: float, df: int) -> float:
    """P(|T| <= t)."""
    theta = math.atan(t / math.sqrt(df))
    cosine, sine = math.cos(theta), math.sin(theta)
    if df == 1:
        return 2 * theta / math.pi
    term = total = cosine if df % 2 else 1.0
    for term_index in range(3 if df % 2 else 2, df - 1, 2):
        term *= cosine * cosine * (term_index - 1) / term_index
        total += term
    return 2 / math.pi * (theta + sine * total) if df % 2 else sine * total
