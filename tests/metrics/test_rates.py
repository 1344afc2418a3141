"""Rates against independent computations: scipy's intervals, a brute-force AUROC, and the promise of the threshold (P17)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from saferedir.metrics import auroc, conformal_threshold, wilson_interval


@given(n=st.integers(1, 500), share=st.floats(0, 1))
def test_wilson_interval_agrees_with_scipy(n: int, share: float) -> None:
    k = round(n * share)
    expected = binomtest(k, n).proportion_ci(method="wilson")
    assert wilson_interval(k, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_wilson_interval_of_nothing_is_everything() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="successes is 3"):
        wilson_interval(3, 2)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_the_share_of_ordered_pairs(rows: list[tuple[int, bool]]) -> None:
    scores = torch.tensor([float(score) for score, _ in rows])
    labels = torch.tensor([label for _, label in rows])
    positive, negative = scores[labels], scores[~labels]
    if len(positive) == 0 or len(negative) == 0:
        assert math.isnan(auroc(scores, labels))
        return
    wins = (positive[:, None] > negative).double() + 0.5 * (positive[:, None] == negative).double()
    assert auroc(scores, labels) == pytest.approx(wins.mean().item())


def test_conformal_threshold_keeps_its_rate_on_fresh_scores() -> None:
    """P17: mean realised rate over 200 resamples of n = 199 at a = 5 % lies in [3.5 %, 6.5 %]."""
    generator = torch.Generator().manual_seed(0)
    realised = []
    for _ in range(200):
        tau = conformal_threshold(torch.randn(199, generator=generator), 0.05)
        realised.append((torch.randn(2000, generator=generator) >= tau).float().mean().item())
    assert 0.035 <= sum(realised) / len(realised) <= 0.065


def test_conformal_threshold_needs_enough_scores() -> None:
    assert conformal_threshold(torch.randn(50), 0.01) == math.inf
    scores = torch.arange(99).float()
    assert (scores >= conformal_threshold(scores, 0.01)).sum() == 0
