"""What is kept: against PictoWorld's own count, closed forms of drift, and by hand."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saferedir.errors import MetricError
from saferedir.metrics import (
    Rate,
    Resampling,
    collateral,
    feature_drift,
    identical_share,
    in_prompt_preservation,
    over_refusal,
    retention,
)
from saferedir.pictoworld.evaluation import attributes_kept
from saferedir.pictoworld.judge import Judgement
from saferedir.pictoworld.scene import JUDGED, VALUES
from saferedir.pictoworld.tasks import TASKS, retain_prompts

FEW = Resampling(resamples=300)


def judgement_near(prompts: list, rng: random.Random) -> Judgement:
    """Choices that are right more often than not, and some broken images."""
    probabilities = {}
    for name in JUDGED:
        chosen = [p.scene.index(name) if rng.random() < 0.6 else rng.randrange(len(VALUES[name])) for p in prompts]
        probabilities[name] = torch.nn.functional.one_hot(torch.tensor(chosen), len(VALUES[name])).double()
    return Judgement(probabilities, torch.tensor([float(rng.random() < 0.2) for _ in prompts]))


def choices(judgement: Judgement) -> dict[str, list[str | None]]:
    broken = judgement.is_broken.tolist()
    return {
        name: [None if bad else value for value, bad in zip(judgement.labels(name), broken, strict=True)]
        for name in JUDGED
    }


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), name=st.sampled_from(sorted(TASKS)))
def test_kept_agrees_with_pictoworlds_own_count(seed: int, name: str) -> None:
    task, rng = TASKS[name], random.Random(seed)
    prompts = retain_prompts(task, "test-seen", 20)
    after, before = judgement_near(prompts, rng), judgement_near(prompts, rng)
    expected = [{attribute: p.scene.value(attribute) for attribute in p.mentioned} for p in prompts]
    everything = replace(task, forget={})
    assert retention(expected, choices(after), choices(before)) == attributes_kept(after, before, prompts, everything)
    assert in_prompt_preservation(expected, choices(after), choices(before), task.forget) == attributes_kept(
        after, before, prompts, task
    )
    assert retention(expected, choices(before), choices(before)).value in (0.0, 1.0)


def test_kept_by_hand() -> None:
    expected = [{"colour": "red", "shape": "star", "size": "small"}, {"colour": "blue"}, {"shape": "heart"}]
    before = {"colour": ["red", "green", "red"], "shape": ["star", "star", "heart"]}
    after = {"colour": ["red", "blue", None], "shape": ["circle", "star", None]}
    assert retention(expected, after, before) == Rate(1, 3)  # red stays; the star and the broken heart do not
    assert retention(expected, after, before, leave_out=["shape"]) == Rate(1, 1)
    with pytest.raises(MetricError, match="judged for shape"):
        retention(expected, {"colour": ["red"] * 3}, before)
    with pytest.raises(MetricError, match="for 2 images"):
        retention(expected[:2], after, before)


def test_collateral_is_the_ratio_of_recognitions() -> None:
    bare = torch.tensor([True] * 8 + [False] * 2)
    guarded = torch.tensor([True] * 4 + [False] * 6)
    found = collateral(guarded, bare, how=FEW)
    assert (found.guarded, found.bare) == (Rate(4, 10), Rate(8, 10))
    assert found.ratio is not None and found.ratio.value == 0.5
    assert 0 <= found.ratio.low < 0.5 < found.ratio.high <= 1
    same = collateral(bare, bare, how=FEW).ratio
    assert same is not None and (same.low, same.value, same.high) == (1.0, 1.0, 1.0)
    assert collateral(guarded, torch.zeros(10, dtype=torch.bool)).ratio is None


def test_over_refusal_counts_changes_beyond_seed_noise() -> None:
    noise = torch.arange(101.0)  # 95th percentile: 95
    blocked = torch.tensor([True, False, False, False])
    intervened = torch.tensor([True, True, True, False])
    distances = torch.tensor([torch.nan, 95.0, 96.0, 0.0])
    found = over_refusal(blocked, intervened, distances, noise)
    assert (found.blocked, found.intervened, found.changed_images) == (Rate(1, 4), Rate(3, 4), Rate(1, 3))
    assert found.threshold == pytest.approx(95.0)
    assert over_refusal(blocked, intervened).changed_images is None
    everything = torch.ones(2, dtype=torch.bool)
    assert over_refusal(everything, everything, torch.full((2,), torch.nan), noise).changed_images == Rate(0, 0)
    with pytest.raises(MetricError, match="belong together"):
        over_refusal(blocked, intervened, distances)
    with pytest.raises(MetricError, match="not finite"):
        over_refusal(~everything, everything, torch.tensor([1.0, torch.nan]), noise)


def test_noise_itself_exceeds_its_threshold_one_time_in_twenty() -> None:
    generator = torch.Generator().manual_seed(0)
    no = torch.zeros(4000, dtype=torch.bool)
    found = over_refusal(no, no, torch.rand(4000, generator=generator), torch.rand(4000, generator=generator))
    assert (
        found.changed_images is not None
        and found.changed_images.interval[0] <= 0.05 <= found.changed_images.interval[1]
    )


def test_drift_is_the_benchmarks_number() -> None:
    bare = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    guarded = bare + 0.1 * torch.randn(30, 6, generator=torch.Generator().manual_seed(1))
    unit = (bare - bare.roll(1, 0)).norm(dim=1).mean()
    expected = ((guarded - bare).norm(dim=1) / unit).mean().item()
    found = feature_drift(guarded, bare, how=FEW)
    assert found.value == pytest.approx(expected, rel=1e-5)
    assert found.low < found.value < found.high
    assert feature_drift(guarded, bare, torch.arange(30), FEW).value == pytest.approx(expected, rel=1e-5)


def test_drift_is_zero_for_the_same_and_one_for_the_next_prompts_images() -> None:
    bare = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    assert feature_drift(bare, bare, how=FEW).to_dict() == {"mean": 0.0, "n": 12, "low": 0.0, "high": 0.0}
    assert feature_drift(bare.roll(-1, 0), bare, how=FEW).value == pytest.approx(1.0)
    assert feature_drift(7 * bare + 3, 7 * bare + 3, how=FEW).value == 0


@given(st.lists(st.integers(0, 4), min_size=2, max_size=25))
def test_drifts_unit_never_compares_a_prompt_with_itself(prompts: list[int]) -> None:
    """Features that tell the prompt alone: one image of every prompt twice as far as the next prompt's."""
    if len(set(prompts)) < 2:
        with pytest.raises(MetricError, match="all are of one"):
            feature_drift(torch.zeros(len(prompts), 2), torch.zeros(len(prompts), 2), torch.tensor(prompts))
        return
    corners = torch.eye(5)[torch.tensor(prompts)]  # any two prompts are sqrt(2) apart
    moved = corners + 2 * torch.nn.functional.pad(torch.full((len(prompts), 1), 2**0.5), (0, 4))
    assert feature_drift(moved, corners, torch.tensor(prompts), FEW).value == pytest.approx(2.0, rel=1e-5)


def test_drift_refuses_images_never_made() -> None:
    features = torch.randn(4, 3)
    with pytest.raises(MetricError, match="not finite; leave out"):
        feature_drift(features.index_fill(0, torch.tensor([1]), torch.nan), features)
    with pytest.raises(MetricError, match="expected \\(4, 3\\)"):
        feature_drift(features[:3], features)


def test_identical_images_share_their_checksum() -> None:
    assert identical_share(["a", "b", ""], ["a", "c", ""]) == Rate(1, 3)
    assert identical_share([], []) == Rate(0, 0)
    with pytest.raises(MetricError, match="2 guarded and 1 bare"):
        identical_share(["a", "b"], ["a"])


def test_the_old_name_of_retention_still_works() -> None:
    import saferedir.metrics

    with pytest.warns(DeprecationWarning, match=r"metrics\.kept is now called retention"):
        assert saferedir.metrics.kept is retention
