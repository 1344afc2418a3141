"""Paired tests: McNemar against scipy's binomial test, Holm against closed testing, differences against scipy."""

from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap

from saferedir.errors import MetricError
from saferedir.metrics import Resampling, exact_mcnemar, holm, mcnemar, paired_difference


@given(b=st.integers(0, 400), c=st.integers(0, 400), alternative=st.sampled_from(["two-sided", "greater", "less"]))
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(b: int, c: int, alternative: str) -> None:
    expected = binomtest(b, b + c, 0.5, alternative).pvalue if b + c else 1.0
    assert exact_mcnemar(b, c, alternative).p == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_mcnemar_of_many_pairs_stays_exact() -> None:
    assert exact_mcnemar(5200, 4800).p == pytest.approx(binomtest(5200, 10_000).pvalue, rel=1e-9)
    assert exact_mcnemar(0, 100).p == 2 * 0.5**100


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_mcnemar_counts_pairs_and_mirrors(rows: list[tuple[bool, bool]]) -> None:
    first, second = (torch.tensor(arm) for arm in zip(*rows, strict=True))
    found = mcnemar(first, second, "greater")
    assert (found.b, found.c) == (rows.count((True, False)), rows.count((False, True)))
    assert mcnemar(second, first, "less").p == found.p
    assert mcnemar(first, second).p == mcnemar(second, first).p
    assert mcnemar(first, first).p == 1.0


def test_clusters_of_one_pair_are_mcnemars_own_and_copies_count_once() -> None:
    generator = torch.Generator().manual_seed(4)
    first, second = (torch.rand(40, generator=generator) < share for share in (0.3, 0.6))
    for alternative in ("two-sided", "greater", "less"):
        plain = mcnemar(first, second, alternative)  # type: ignore[arg-type]
        assert mcnemar(first, second, alternative, torch.arange(40)).p == pytest.approx(plain.p)  # type: ignore[arg-type]
        copied = mcnemar(
            first.repeat_interleave(3),
            second.repeat_interleave(3),
            alternative,
            torch.arange(40).repeat_interleave(3),  # type: ignore[arg-type]
        )
        assert copied.p == pytest.approx(plain.p)
        assert (copied.b, copied.c) == (3 * plain.b, 3 * plain.c)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 4)), min_size=1, max_size=14))
def test_clustered_mcnemar_is_every_exchange_of_whole_clusters(rows: list[tuple[bool, bool, int]]) -> None:
    first, second, place = (torch.tensor(arm) for arm in zip(*rows, strict=True))
    sums = [int((first.long() - second.long())[place == k].sum()) for k in place.unique()]
    totals = [sum(s * x for s, x in zip(signs, sums, strict=True)) for signs in product((-1, 1), repeat=len(sums))]
    for alternative, extreme in (
        ("two-sided", [abs(x) >= abs(sum(sums)) for x in totals]),
        ("greater", [x >= sum(sums) for x in totals]),
        ("less", [x <= sum(sums) for x in totals]),
    ):
        assert mcnemar(first, second, alternative, place).p == pytest.approx(sum(extreme) / len(totals))  # type: ignore[arg-type]


def test_mcnemar_as_plain_data_and_its_refusals() -> None:
    assert exact_mcnemar(1, 11).to_dict() == {"b": 1, "c": 11, "p": 0.006348}
    with pytest.raises(MetricError, match="b = -1"):
        exact_mcnemar(-1, 2)
    with pytest.raises(MetricError, match="'larger'"):
        exact_mcnemar(1, 2, "larger")  # type: ignore[arg-type]
    with pytest.raises(MetricError, match="second arm has 2 entries, expected 3"):
        mcnemar(torch.ones(3, dtype=torch.bool), torch.ones(2, dtype=torch.bool))
    with pytest.raises(MetricError, match="expected bool"):
        mcnemar(torch.ones(3), torch.ones(3, dtype=torch.bool))


def test_difference_agrees_with_scipys_paired_bootstrap() -> None:
    generator = torch.Generator().manual_seed(2)
    first = torch.rand(250, generator=generator) < 0.6
    second = first & (torch.rand(250, generator=generator) < 0.5)
    found = paired_difference(first, second)
    theirs = bootstrap(
        (first.double().numpy(), second.double().numpy()),
        lambda x, y, axis: np.mean(x, axis=axis) - np.mean(y, axis=axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert found.value == pytest.approx((first.double().mean() - second.double().mean()).item())
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_pairing_removes_what_both_arms_share() -> None:
    shared = 100 * torch.randn(50, generator=torch.Generator().manual_seed(0)).double()
    found = paired_difference(shared + 1, shared, torch.arange(50) // 2, Resampling(resamples=200))
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_closed_testing_with_bonferroni(values: list[float]) -> None:
    """Adjusted p of a hypothesis = the largest Bonferroni p of any set of hypotheses with it (Marcus et al. 1976)."""
    found = holm({str(place): p for place, p in enumerate(values)})
    for place in range(len(values)):
        sets = [
            chosen
            for size in range(1, len(values) + 1)
            for chosen in combinations(range(len(values)), size)
            if place in chosen
        ]
        expected = max(min(1.0, len(chosen) * min(values[i] for i in chosen)) for chosen in sets)
        assert found[str(place)] == pytest.approx(expected)


def test_holm_keeps_the_order_and_refuses_what_is_no_probability() -> None:
    assert holm({"b": 0.04, "a": 0.01}) == {"b": 0.04, "a": 0.02}
    assert list(holm({"b": 0.04, "a": 0.01})) == ["b", "a"]
    assert holm({}) == {}
    with pytest.raises(MetricError, match=r"'a' is 1\.5"):
        holm({"a": 1.5})
