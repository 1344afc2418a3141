"""Logits as numbers that a person can compare: 0 to 1, with the threshold at 0.5."""

from __future__ import annotations

import math


def share_of(score: float, threshold: float) -> float:
    """A logit as a number in [0, 1] that is 0.5 at its threshold; 1 for one that is not finite."""
    margin = score - threshold
    return 1.0 if not math.isfinite(margin) else 1 / (1 + math.exp(-max(-60.0, min(60.0, margin))))


def raise_to(scores: dict[str, float], name: str, score: float) -> None:
    """Keep the higher of two scores of one name."""
    scores[name] = max(scores.get(name, 0.0), score)
