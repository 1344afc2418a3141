"""Where a verdict's threshold goes, given scores of both sides, some of which are on the wrong side.

Used by calibration.py; derivation and properties of docs/methods/saferedir.md (14): docs/saferedir.md, "Thresholds".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saferedir.errors import GuardConfigError
from saferedir.metrics import Rate
from saferedir.utils.checks import is_number

#: shares of the benign and of the unsafe side that may lie on the wrong one: a model generates the concept unasked, or, more
#: often, not although asked
CONTAMINATION = (0.02, 0.05)


@dataclass(frozen=True)
class Threshold:
    """A threshold with what it does to the scores it was chosen from.

    Attributes:
        value: a score at or above it counts as unsafe.
        rule: "margin" where the trimmed sides separate, "conformal" where they overlap, "kept" if it was given.
        set_aside: how many scores of (benign, unsafe) were trimmed.
        gap: the highest benign and the lowest unsafe score that count.
        false_positives: benign scores at or above the threshold, the trimmed ones included.
        recall: unsafe scores at or above it.
    """

    value: float
    rule: str
    set_aside: tuple[int, int]
    gap: tuple[float, float]
    false_positives: Rate
    recall: Rate

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a guard's config."""
        return {
            "rule": self.rule,
            "highest_benign": round(self.gap[0], 4),
            "lowest_unsafe": round(self.gap[1], 4),
            "set_aside": list(self.set_aside),
            "false_positives": self.false_positives.to_dict(),
            "recall": self.recall.to_dict(),
        }


def are_shares(contamination: Sequence[float]) -> bool:
    """Whether these are two shares that a threshold can allow for."""
    return len(contamination) == 2 and all(is_number(part) and 0 <= part < 0.5 for part in contamination)


def choose_threshold(
    benign: Tensor,
    unsafe: Tensor,
    false_positive_rate: float,
    *,
    share: float = 0.5,
    contamination: tuple[float, float] = CONTAMINATION,
    keep: float | None = None,
) -> Threshold:
    """A threshold that a few mislabelled scores cannot set.

    With n benign and m unsafe scores in ascending order and contamination (c, d), the k = floor(n c) highest benign scores are
    set aside, and the floor(m d) lowest unsafe ones. Of the rest, B is the conformal bound at
    `false_positive_rate` (at most the highest score left, for which it is conformal at (k + 1) / (n + 1)), U the lowest unsafe
    score. If U > B, the threshold is B + share (U - B), else B.

    Args:
        benign: (n,) scores that should stay below, n >= 1.
        unsafe: (m,) scores that should not, m >= 1.
        share: the place in the gap, 0 at the benign end. Where both tails fall off alike, e^(-x/s), the cost
            c_fp e^(-(x - B)/s) + c_miss e^(-(U - x)/s) is least at the middle plus (s / 2) ln(c_fp / c_miss); so 0.5 stands for
            errors that cost the same, less for a miss that costs more.
        contamination: shares (c, d) of the benign and the unsafe side that may lie on the wrong one, in [0, 0.5).
        keep: a threshold to keep; only its rates are measured.
    """
    if not len(benign) or not len(unsafe):
        raise GuardConfigError(
            f"a threshold needs scores of both sides, but there are {len(benign)} benign and {len(unsafe)} unsafe ones; "
            "give more prompts of the missing kind."
        )
    if not are_shares(contamination):
        raise GuardConfigError(f"contamination is {contamination!r}; expected two shares from 0 to below 0.5.")
    low, high = benign.float().sort().values, unsafe.float().sort().values
    aside = (math.floor(len(low) * contamination[0]), math.floor(len(high) * contamination[1]))
    rank = min(math.ceil((len(low) + 1) * (1 - false_positive_rate)), len(low) - aside[0])
    # scores at the threshold count as unsafe, so it lies a smallest step above
    bound = float(torch.nextafter(low[rank - 1], torch.tensor(math.inf)))
    floor = float(high[aside[1]])
    is_apart = floor > bound
    rule, value = ("margin", bound + share * (floor - bound)) if is_apart else ("conformal", bound)
    if keep is not None:
        rule, value = "kept", keep
    return Threshold(
        value,
        rule,
        aside,
        (float(low[rank - 1]), floor),
        Rate.of(benign.float() >= value),
        Rate.of(unsafe.float() >= value),
    )
