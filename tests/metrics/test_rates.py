"""Rates against independent computations: scipy's intervals, a brute-force AUROC, and the promise of the threshold."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from saferedir.errors import MetricError
from saferedir.metrics import Rate, auroc, conformal_threshold, effective_size, wilson_interval


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
    """Mean realised rate over 200 resamples of n = 199 at a = 5 % lies in [3.5 %, 6.5 %]."""
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


@given(n=st.integers(0, 500), data=st.data())
def test_a_rate_is_its_counts_and_survives_the_disk(n: int, data: st.DataObject) -> None:
    rate = Rate(data.draw(st.integers(0, n)), n)
    assert Rate.from_dict(json.loads(json.dumps(rate.to_dict()))) == rate
    assert rate.interval == wilson_interval(rate.hits, n)
    assert rate.interval[0] <= rate.value <= rate.interval[1]
    assert rate.complement.hits + rate.hits == n and rate.complement.complement == rate
    assert Rate.of(torch.arange(n) < rate.hits) == rate


def test_a_rate_in_words_and_as_plain_data() -> None:
    """The reference widths at 20 %, n = 50 and 1000."""
    assert Rate(10, 50).to_dict() == {"rate": 0.2, "hits": 10, "n": 50, "low": 0.1124, "high": 0.3304}
    assert str(Rate(200, 1000)) == "0.200 [0.176, 0.226]"


@pytest.mark.parametrize("hits, n", [(3, 2), (-1, 2), (0, -1), (0.5, 1), (True, 1)])
def test_impossible_counts_are_refused(hits: int, n: int) -> None:
    with pytest.raises(MetricError, match="expected"):
        Rate(hits, n)


def test_a_rate_changed_by_hand_is_refused() -> None:
    plain = Rate(3, 10).to_dict()
    with pytest.raises(MetricError, match="its counts give"):
        Rate.from_dict({**plain, "rate": 0.2})
    with pytest.raises(MetricError, match="lacks hits"):
        Rate.from_dict({name: value for name, value in plain.items() if name != "hits"})
    with pytest.raises(MetricError, match="bool tensor"):
        Rate.of(torch.tensor([0.2, 0.7]))
    assert Rate.of(torch.tensor([])) == Rate(0, 0)


def test_agreeing_clusters_are_worth_one_case_each_and_singletons_what_they_are() -> None:
    flags = torch.tensor([True, False, False, True, False, False, True])
    many, owner = flags.repeat_interleave(5), torch.arange(7).repeat_interleave(5)
    assert effective_size(many, owner) == pytest.approx(7)
    assert Rate.of(many, owner).interval == pytest.approx(Rate.of(flags).interval)
    assert Rate.of(flags, torch.arange(7)) == Rate.of(flags)
    assert Rate.of(many, torch.zeros(35, dtype=torch.long)).interval == pytest.approx(wilson_interval(3 / 7, 1))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=60))
def test_clusters_never_narrow_an_interval_nor_move_the_rate(rows: list[tuple[bool, int]]) -> None:
    flags, owner = torch.tensor([flag for flag, _ in rows]), torch.tensor([place for _, place in rows])
    plain, clustered = Rate.of(flags), Rate.of(flags, owner)
    assert (clustered.hits, clustered.n) == (plain.hits, plain.n)
    assert clustered.interval[0] <= plain.interval[0] + 1e-12
    assert clustered.interval[1] >= plain.interval[1] - 1e-12
    assert clustered.complement.interval == pytest.approx([1 - end for end in reversed(clustered.interval)])
    assert Rate.from_dict(json.loads(json.dumps(clustered.to_dict()))) == clustered


def test_clustered_intervals_cover_where_plain_ones_do_not() -> None:
    """600 draws of 40 prompts with 5 images each, the share of each prompt from a beta distribution of mean 0.8."""
    generator = torch.Generator().manual_seed(0)
    owner, covered, plainly = torch.arange(40).repeat_interleave(5), 0, 0
    for _ in range(600):
        prompts = (torch.rand(40, 5, generator=generator).amax(dim=1)) ** 1.25  # P(u_max^1.25 <= x) = x^4: Beta(4, 1)
        flags = torch.rand(200, generator=generator) < prompts.repeat_interleave(5)
        low, high = Rate.of(flags, owner).interval
        covered += low <= 0.8 <= high
        low, high = Rate.of(flags).interval
        plainly += low <= 0.8 <= high
    assert covered / 600 >= 0.93
    assert plainly < covered


def test_more_hits_never_lower_the_interval() -> None:
    """60 prompts with 5 attributes each, misses one by one in prompts of their own: no jump at 100 %, on either side."""
    owner, flags = torch.arange(60).repeat_interleave(5), torch.ones(300, dtype=torch.bool)
    before = Rate.of(flags, owner).interval
    for place in range(0, 300, 5):
        flags[place] = False
        now = Rate.of(flags, owner).interval
        assert now[0] <= before[0] and now[1] <= before[1]
        mirrored = Rate.of(~flags, owner).interval
        assert mirrored == pytest.approx([1 - end for end in reversed(now)])
        before = now


@pytest.mark.parametrize(("prompts", "draws"), [(3, 10), (8, 5)])
def test_few_prompts_still_cover(prompts: int, draws: int) -> None:
    generator, owner, covered = torch.Generator().manual_seed(1), torch.arange(prompts).repeat_interleave(draws), 0
    for _ in range(800):
        shares = torch.rand(prompts, generator=generator)  # mean 1/2
        flags = torch.rand(prompts * draws, generator=generator) < shares.repeat_interleave(draws)
        low, high = Rate.of(flags, owner).interval
        covered += low <= 0.5 <= high
    assert covered / 800 >= 0.94


def test_effective_sizes_that_cannot_be() -> None:
    with pytest.raises(MetricError, match="effective_n 9"):
        Rate(1, 3, 9)
    with pytest.raises(MetricError, match="expected 3"):
        Rate.of(torch.tensor([True, False, True]), torch.tensor([0, 0]))
