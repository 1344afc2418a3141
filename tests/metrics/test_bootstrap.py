"""Bootstrap intervals: against the normal approximation, in coverage, and over whole prompts."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from saferedir.errors import MetricError
from saferedir.metrics import Mean, Resampling, bootstrap_interval, bootstrap_mean, bootstrap_ratio

FEW = Resampling(resamples=400)


def test_interval_of_a_mean_agrees_with_scipy_and_the_normal_approximation() -> None:
    values = torch.randn(300, generator=torch.Generator().manual_seed(1)).double() + 2
    found = bootstrap_mean(values)
    theirs = bootstrap(
        (values.numpy(),), np.mean, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert found.value == pytest.approx(values.mean().item())
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    half = 1.959964 * values.std().item() / math.sqrt(300)
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.01)


def test_the_same_numbers_have_the_same_interval_whatever_happened_before() -> None:
    values = torch.arange(20.0)
    first = bootstrap_mean(values)
    torch.randn(7)
    assert bootstrap_mean(values) == first
    assert bootstrap_mean(values, how=Resampling(seed=1)) != first
    assert bootstrap_mean(torch.ones(5)) == Mean(1.0, 5, 1.0, 1.0)


def test_few_cases_still_cover() -> None:
    """Means of 6 and of 10 normal cases; one prompt has no interval at all."""
    generator = torch.Generator().manual_seed(0)
    for n in (6, 10):
        samples = torch.randn(400, n, generator=generator)
        covered = sum(found.low <= 0 <= found.high for found in (bootstrap_mean(one, how=FEW) for one in samples))
        assert 0.9 <= covered / 400 <= 0.99
    with pytest.raises(MetricError, match="one prompt has no interval"):
        bootstrap_mean(torch.ones(3), torch.zeros(3, dtype=torch.long))


def test_level_is_the_share_of_draws_inside() -> None:
    values = torch.arange(1000.0)
    low, high = bootstrap_interval(lambda rows: rows[:, 0].double(), 1000, Resampling(resamples=20_000, level=0.5))
    assert (low, high) == pytest.approx((249.75, 749.25), abs=15)
    with pytest.raises(MetricError, match="within"):
        Resampling(level=95)
    with pytest.raises(MetricError, match="resamples 0"):
        Resampling(resamples=0)
    assert values.mean() == bootstrap_mean(values, how=FEW).value


def test_coverage_by_prompt_holds_where_coverage_by_image_does_not() -> None:
    """150 worlds of 40 prompts x 5 images that share their prompt's effect; nominal 95 %, percentile intervals give less."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.arange(40).repeat_interleave(5)
    inside = {"prompt": 0, "image": 0}
    for _ in range(150):
        values = torch.randn(40, generator=generator)[prompts] + 0.3 * torch.randn(200, generator=generator)
        for name, clusters in (("prompt", prompts), ("image", None)):
            found = bootstrap_mean(values, clusters, FEW)
            inside[name] += found.low <= 0 <= found.high
    assert inside["prompt"] / 150 >= 0.88
    assert inside["image"] / 150 <= 0.75


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12), st.integers(1, 4))
def test_clusters_of_copies_are_as_wide_as_their_originals(values: list[float], copies: int) -> None:
    once = torch.tensor(values, dtype=torch.float64)
    again = once.repeat_interleave(copies)
    place = torch.arange(len(once)).repeat_interleave(copies) * 7 - 3
    single, clustered = bootstrap_mean(once, how=FEW), bootstrap_mean(again, place, FEW)
    assert (clustered.low, clustered.high) == pytest.approx((single.low, single.high), abs=1e-9)
    assert clustered.value == pytest.approx(single.value, abs=1e-9)
    assert clustered.n == copies * single.n


def test_unequal_clusters_weigh_by_their_images() -> None:
    found = bootstrap_mean(torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([5, 5, 5, 9]), FEW)
    assert found.value == 0.75
    assert (found.low, found.high) == (0.0, 1.0)


def test_a_ratio_is_of_sums_and_leaves_out_draws_without_a_denominator() -> None:
    found = bootstrap_ratio(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 1.0]), how=FEW)
    assert found == Mean(1.0, 3, 1.0, 1.0)
    assert bootstrap_ratio(torch.tensor([1.0, 5.0]), torch.tensor([2.0, 2.0]), how=FEW).value == 1.5
    with pytest.raises(MetricError, match="sum to zero"):
        bootstrap_ratio(torch.ones(3), torch.zeros(3))
    with pytest.raises(MetricError, match="no resample"):
        bootstrap_interval(lambda rows: torch.full((len(rows),), math.nan), 3, FEW)


def test_numbers_that_cannot_be_are_refused() -> None:
    for values, words in (
        (torch.tensor([]), "at least one"),
        (torch.zeros(2, 2), "expected \\(N,\\)"),
        (torch.tensor([0.0, math.nan]), "1 of 2 numbers are not finite"),
    ):
        with pytest.raises(MetricError, match=words):
            bootstrap_mean(values)
    with pytest.raises(MetricError, match="3 entries, expected 2"):
        bootstrap_mean(torch.zeros(2), torch.arange(3))
    with pytest.raises(MetricError, match="expected integers"):
        bootstrap_mean(torch.zeros(2), torch.zeros(2))


def test_a_mean_survives_the_disk() -> None:
    mean = Mean(0.25, 4, 0.125, 0.5)
    assert mean.to_dict() == {"mean": 0.25, "n": 4, "low": 0.125, "high": 0.5}
    assert Mean.from_dict(mean.to_dict()) == mean
    assert str(mean) == "0.250 [0.125, 0.500]"
    with pytest.raises(MetricError, match="lacks high, low"):
        Mean.from_dict({"mean": 1.0, "n": 2})
