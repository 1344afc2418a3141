"""Jackknife intervals: closed forms for means, the plain distances on everything, loops over groups, and coverage."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student
from torch import Tensor

from saferedir.errors import MetricError
from saferedir.metrics import cmmd, frechet_distance, kernel_distance
from saferedir.metrics.jackknife import Distance, distance_with_interval, jackknife_interval, prompt_groups

PLAIN: dict[Any, Any] = {"fid": frechet_distance, "kid": kernel_distance, "cmmd": cmmd}


def paired_kid(a: Tensor, b: Tensor) -> float:
    """Mean of h over the pairs i != j, in a loop."""

    def k(x: Tensor, y: Tensor) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    n = len(a)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    return sum(k(a[i], a[j]) + k(b[i], b[j]) - k(a[i], b[j]) - k(a[j], b[i]) for i, j in pairs) / len(pairs)


PAIRED = {**PLAIN, "kid": paired_kid}


def normal(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).double() + shift


def mean_of(values: Tensor, groups: Tensor) -> Any:
    return lambda kept: float(values[kept[groups]].mean())


@settings(max_examples=20, deadline=None)
@given(values=st.lists(st.floats(-100, 100), min_size=2, max_size=30))
def test_a_mean_of_single_cases_has_its_classic_standard_error(values: list[float]) -> None:
    cases, groups = torch.tensor(values).double(), torch.arange(len(values))
    low, high = jackknife_interval(mean_of(cases, groups), groups)
    error = float(cases.std()) / math.sqrt(len(values))
    reach = float(student.ppf(0.975, len(values) - 1)) * error
    assert (low, high) == pytest.approx((float(cases.mean()) - reach, float(cases.mean()) + reach), abs=1e-6)


def test_groups_of_one_size_give_the_formula_of_the_books() -> None:
    values, groups = normal(40, 1, 0)[:, 0], torch.arange(40) % 8
    without = torch.stack([values[groups != g].mean() for g in range(8)])
    error = float((7 / 8 * (without - without.mean()).square().sum()).sqrt())
    low, high = jackknife_interval(mean_of(values, groups), groups, level=0.9)
    assert high - low == pytest.approx(2 * float(student.ppf(0.95, 7)) * error)


def test_groups_of_unequal_size_are_unbiased_for_a_mean() -> None:
    """sigma² / n on average, though two of the three groups have one case each."""
    groups = torch.tensor([0, 1, 2, 2, 2, 2])
    found = []
    for seed in range(3000):
        low, high = jackknife_interval(mean_of(normal(6, 1, seed)[:, 0], groups), groups)
        found.append(((high - low) / 2 / float(student.ppf(0.975, 2))) ** 2)
    assert sum(found) / len(found) == pytest.approx(1 / 6, rel=0.1)


def test_two_independent_samples_add_their_variances() -> None:
    a, b = normal(12, 1, 0)[:, 0], normal(30, 1, 1)[:, 0]
    one, two = torch.arange(12), torch.arange(30)
    low, high = jackknife_interval(lambda x, y: float(a[x].mean() - b[y].mean()), one, two)
    error = math.sqrt(float(a.var()) / 12 + float(b.var()) / 30)
    assert high - low == pytest.approx(2 * float(student.ppf(0.975, 11)) * error)
    assert (low + high) / 2 == pytest.approx(float(a.mean() - b.mean()))


@pytest.mark.parametrize("kind", get_args(Distance))
def test_the_value_is_the_plain_distance_and_the_interval_that_of_a_loop(kind: Distance) -> None:
    a, b, prompts = normal(33, 3, 0), normal(33, 3, 1, 0.4), torch.arange(33) // 2
    groups, plain = prompt_groups(prompts, 5), PAIRED[kind]
    found = distance_with_interval(kind, a, b, groups)
    assert found.value == pytest.approx(plain(a, b), rel=1e-9) and found.n == 33
    low, high = jackknife_interval(lambda kept: plain(a[kept[groups]], b[kept[groups]]), groups)
    assert (found.low, found.high) == pytest.approx((low if kind == "kid" else max(0, low), high), rel=1e-6)


@pytest.mark.parametrize("kind", get_args(Distance))
def test_independent_sets_lose_their_groups_one_by_one(kind: Distance) -> None:
    a, b = normal(24, 3, 0), normal(31, 3, 1, 0.4)
    one, two, plain = torch.arange(24) % 6, torch.arange(31) % 7, PLAIN[kind]
    found = distance_with_interval(kind, a, b, one, two)
    low, high = jackknife_interval(lambda x, y: plain(a[x[one]], b[y[two]]), one, two)
    assert (found.low, found.high) == pytest.approx((low if kind == "kid" else max(0, low), high), rel=1e-6)


def test_a_set_is_at_no_distance_from_itself() -> None:
    a = normal(30, 3, 0)
    for kind in get_args(Distance):
        found = distance_with_interval(kind, a, a, torch.arange(30) % 10)
        assert (found.value, found.low, found.high) == pytest.approx((0, 0, 0), abs=1e-9)


def test_kid_of_paired_sets_is_unbiased_however_alike_partners_are() -> None:
    """Two arms of one distribution, partners correlated by 0.9: 0 on average, where the distance for independent sets is not."""
    found, plain = [], []
    for seed in range(300):
        a, fresh = normal(20, 3, 2 * seed), normal(20, 3, 2 * seed + 1)
        b = 0.9 * a + math.sqrt(1 - 0.81) * fresh
        found.append(distance_with_interval("kid", a, b, torch.arange(20)).value)
        plain.append(kernel_distance(a, b))
    values = torch.tensor(found)
    assert abs(float(values.mean())) < 3 * float(values.std()) / math.sqrt(300)
    assert sum(plain) / 300 < -0.1


def test_many_rows_are_summed_in_pieces() -> None:
    a, b = normal(1500, 2, 0), normal(1500, 2, 1)
    groups = torch.arange(1500) % 6
    for kind in ("kid", "cmmd"):
        found = distance_with_interval(kind, a, b, groups, groups)  # type: ignore[arg-type]
        assert found.value == pytest.approx(PLAIN[kind](a, b), rel=1e-7)


@pytest.mark.parametrize(
    ("kind", "truth"),
    [
        ("kid", None),  # from a large sample, below
        ("fid", 4 * 0.8**2),
    ],
)
def test_intervals_cover_the_truth(kind: Distance, truth: float | None) -> None:
    """Gaussians of identity covariance, shifted by 0.8 in each of 4 directions; FID's bias is small at this n."""
    if truth is None:
        truth = kernel_distance(normal(6000, 4, 10_001), normal(6000, 4, 10_002, 0.8))
    covered, runs = 0, 120
    for seed in range(runs):
        a, b = normal(200, 4, 2 * seed), normal(200, 4, 2 * seed + 1, 0.8)
        found = distance_with_interval(kind, a, b, torch.arange(200) % 20, torch.arange(200) % 20)
        covered += found.low <= truth <= found.high
    assert 0.88 <= covered / runs <= 0.99


@pytest.mark.parametrize("prompts", [5, 8])
def test_few_prompts_still_cover(prompts: int) -> None:
    """KID of two arms of one distribution, five images a prompt that share its effect: the truth is 0."""
    covered, runs, groups = 0, 200, torch.arange(prompts).repeat_interleave(5)
    for seed in range(runs):
        shared = normal(prompts, 3, 3 * seed)[groups]
        a, b = (shared + normal(len(groups), 3, 3 * seed + arm) for arm in (1, 2))
        found = distance_with_interval("kid", a, b, groups)
        covered += found.low <= 0 <= found.high
    assert covered / runs >= 0.9


def test_prompt_groups_are_fixed_and_keep_a_prompts_images_together() -> None:
    prompts = torch.tensor([0, 0, 1, 20, 41, 39])
    assert prompt_groups(prompts).tolist() == [0, 0, 1, 0, 1, 2]
    assert prompt_groups(torch.tensor([5, 7])).tolist() == [0, 1]


def test_what_cannot_be_done_is_refused() -> None:
    a = normal(12, 2, 0)
    with pytest.raises(MetricError, match="at least two groups"):
        jackknife_interval(lambda kept: 0.0, torch.zeros(5, dtype=torch.long))
    with pytest.raises(MetricError, match="none of them empty"):
        jackknife_interval(lambda kept: 0.0, torch.tensor([0, 2]))
    with pytest.raises(MetricError, match="level is 1"):
        jackknife_interval(lambda kept: 0.0, torch.arange(3), level=1)
    with pytest.raises(MetricError, match="at least 5 prompts, found 2"):
        distance_with_interval("kid", torch.cat([a, a]), torch.cat([a, a]), torch.tensor([0] * 23 + [1]))
    with pytest.raises(MetricError, match="the distance is 'kidd'"):
        distance_with_interval("kidd", a, a, torch.arange(12))  # type: ignore[arg-type]
    with pytest.raises(MetricError, match="has 3 entries, expected 12"):
        distance_with_interval("kid", a, a, torch.arange(3))
    with pytest.raises(MetricError, match="most is 1"):
        prompt_groups(torch.arange(3), 1)
