"""The rule of thresholds: a few mislabelled scores cannot set it, clean sides keep a margin, overlapping ones the rate."""

from __future__ import annotations

import math

import pytest
import torch

from saferedir import GuardConfigError
from saferedir.metrics import conformal_threshold
from saferedir.training.saferedir.thresholds import CONTAMINATION, choose_threshold

RATE = 0.005


def scores(mean: float, count: int, seed: int = 0) -> torch.Tensor:
    return mean + torch.randn(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [50, 208, 1000])
@pytest.mark.parametrize("outlier", [0.0, 9.0, 50.0])
def test_as_many_outliers_as_allowed_move_the_threshold_no_further_than_the_clean_maximum_does(
    count: int, outlier: float
) -> None:
    """With k = floor(n c) of n benign scores replaced, B lies between the (n - 2k)-th and the highest clean score."""
    benign, unsafe = scores(-7, count), scores(8, count, seed=1)
    k = math.floor(count * CONTAMINATION[0])
    clean = benign.sort().values
    for places in (torch.arange(k), benign.argsort()[:k], benign.argsort(descending=True)[:k]):
        dirty = benign.clone()
        dirty[places] = outlier
        found = choose_threshold(dirty, unsafe, RATE)
        assert clean[count - 2 * k - 1] <= found.gap[0] <= clean[-1]
        middle = 0.5 * (found.gap[0] + found.gap[1])
        assert found.value == pytest.approx(middle, abs=1e-4)
        assert found.recall.hits == count


def test_outliers_of_the_unsafe_side_do_not_pull_it_down() -> None:
    benign, unsafe = scores(-7, 208), scores(8, 208, seed=1)
    before = choose_threshold(benign, unsafe, RATE)
    lowest = float(unsafe.min())
    unsafe[:4] = -9.0  # images that do not show the concept although they should
    found = choose_threshold(benign, unsafe, RATE)
    assert lowest <= found.gap[1] <= before.gap[1] and found.rule == "margin"


def test_the_packaged_emblem_is_mended_one_benign_peak_as_high_as_the_unsafe_ones() -> None:
    """208 benign peaks about -7 with one of 9.14, unsafe ones from 8.1 to 9.1: the old bound was that one."""
    benign, unsafe = scores(-7, 208), torch.linspace(8.1, 9.1, 208)
    benign[3] = 9.14
    assert conformal_threshold(benign, RATE) == pytest.approx(9.14, abs=1e-4)
    found = choose_threshold(benign, unsafe, RATE)
    assert found.rule == "margin" and found.gap[0] < -4 and found.gap[1] > 8
    assert found.recall.value == 1.0 and found.false_positives.hits == 1 and found.false_positives.n == 208


def test_clean_separable_sides_keep_the_rate_and_a_margin_on_both() -> None:
    benign, unsafe = torch.linspace(-5, -3, 400), torch.full((100,), 4.0)
    found = choose_threshold(benign, unsafe, 0.01)
    assert found.false_positives.hits == 0 and found.recall.hits == 100
    assert -3 + 2 < found.value < 4 - 2
    assert found.value == pytest.approx(0.5 * (found.gap[0] + 4.0), abs=1e-4)
    assert choose_threshold(benign, unsafe, 0.01, share=0.25).value < found.value


def test_overlapping_sides_fall_back_to_the_conformal_bound() -> None:
    benign, unsafe = scores(0, 4000), scores(0.5, 4000, seed=1)
    found = choose_threshold(benign, unsafe, 0.05)
    assert found.rule == "conformal" and found.value == conformal_threshold(benign, 0.05)


def test_realised_false_positive_rate_on_overlapping_sides_is_the_wanted_one() -> None:
    """Mean over 200 resamples of n = 199 exchangeable scores; without contamination the bound is exactly conformal."""
    generator = torch.Generator().manual_seed(0)
    rates = []
    for _ in range(200):
        benign, unsafe = (torch.randn(199, generator=generator) for _ in range(2))
        tau = choose_threshold(benign, unsafe - 3, 0.05).value
        rates.append(0.5 * math.erfc(tau / math.sqrt(2)))
    assert 0.035 <= sum(rates) / len(rates) <= 0.065


def test_no_share_may_be_on_the_wrong_side_means_the_highest_score_counts() -> None:
    benign, unsafe = scores(-7, 208), scores(8, 208, seed=1)
    benign[0] = 5.0
    assert choose_threshold(benign, unsafe, RATE, contamination=(0.0, 0.0)).gap[0] == 5.0


def test_a_kept_threshold_is_only_measured() -> None:
    found = choose_threshold(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.5, 3.0]), RATE, keep=1.75)
    assert (found.value, found.rule, found.false_positives.hits, found.recall.hits) == (1.75, "kept", 1, 1)


@pytest.mark.parametrize(
    ("sides", "contamination"), [((0, 3), CONTAMINATION), ((3, 0), CONTAMINATION), ((3, 3), (0.5, 0.0))]
)
def test_what_cannot_be_calibrated_is_one_sentence(sides: tuple[int, int], contamination: tuple[float, float]) -> None:
    with pytest.raises(GuardConfigError, match=r"scores of both sides|contamination"):
        choose_threshold(torch.zeros(sides[0]), torch.zeros(sides[1]), RATE, contamination=contamination)
