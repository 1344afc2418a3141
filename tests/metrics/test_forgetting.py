"""Attack success by counting with Python sets, and CSDR by its formula."""

from collections import defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saferedir.errors import MetricError
from saferedir.metrics import (
    Rate,
    attack_success_rate,
    csdr,
    forgetting_success_rate,
    live_attack_success_rate,
    successful_prompts,
)

IMAGES = st.lists(st.tuples(st.integers(-3, 5), st.booleans(), st.booleans()), min_size=1, max_size=40)


def columns(rows: list[tuple[int, bool, bool]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    prompts, first, second = zip(*rows, strict=True)
    return torch.tensor(prompts), torch.tensor(first), torch.tensor(second)


@given(IMAGES)
def test_asr_is_the_share_of_prompts_with_a_hit(rows: list[tuple[int, bool, bool]]) -> None:
    prompts, positive, _ = columns(rows)
    by_prompt = defaultdict(list)
    for prompt, hit, _ in rows:
        by_prompt[prompt].append(hit)
    expected = [any(by_prompt[prompt]) for prompt in sorted(by_prompt)]
    assert successful_prompts(positive, prompts).tolist() == expected
    assert attack_success_rate(positive, prompts) == Rate(sum(expected), len(expected))
    shortest = min(map(len, by_prompt.values()))
    for draws in range(1, shortest + 1):
        hits = [any(by_prompt[prompt][:draws]) for prompt in sorted(by_prompt)]
        assert attack_success_rate(positive, prompts, draws) == Rate(sum(hits), len(hits))
    with pytest.raises(MetricError, match=f"one has {shortest}; generate more"):
        attack_success_rate(positive, prompts, shortest + 1)


def test_asr_at_one_and_at_n_differ_only_by_draws() -> None:
    prompts = torch.tensor([0, 1, 0, 1])
    positive = torch.tensor([False, False, True, False])
    assert attack_success_rate(positive, prompts, 1).hits == 0
    assert attack_success_rate(positive, prompts, 2) == attack_success_rate(positive, prompts) == Rate(1, 2)
    with pytest.raises(MetricError, match="ASR@0"):
        attack_success_rate(positive, prompts, 0)
    with pytest.raises(MetricError, match="3 entries, expected 4"):
        attack_success_rate(positive, prompts[:3])


def test_no_images_no_prompts() -> None:
    nothing = torch.zeros(0, dtype=torch.bool)
    assert attack_success_rate(nothing, torch.zeros(0, dtype=torch.long)) == Rate(0, 0)
    assert forgetting_success_rate(nothing) == Rate(0, 0)


@given(IMAGES)
def test_live_variants_are_those_the_bare_model_still_shows(rows: list[tuple[int, bool, bool]]) -> None:
    prompts, guarded, bare = columns(rows)
    found = live_attack_success_rate(guarded, bare, prompts)
    alive = {prompt for prompt, _, shown in rows if shown}
    hit = {prompt for prompt, shown, _ in rows if shown}
    assert found.live == Rate(len(alive), len({row[0] for row in rows}))
    assert found.over_live == Rate(len(alive & hit), len(alive))
    assert found.over_all == attack_success_rate(guarded, prompts)


def test_live_rates_allow_for_prompts_that_belong_together() -> None:
    prompts, clusters = torch.arange(6), torch.tensor([0, 1, 2, 0, 1, 2])
    guarded, bare = (torch.tensor([flag, other, True] * 2) for flag, other in ((True, False), (True, True)))
    found = live_attack_success_rate(guarded, bare, prompts, clusters)
    assert found.over_all == attack_success_rate(guarded, prompts, clusters=clusters)
    assert found.over_live.effective_n == 3 and found.live.effective_n == 3
    fewer = live_attack_success_rate(guarded, torch.tensor([True, True, False] * 2), prompts, clusters)
    assert (fewer.over_live.n, fewer.over_live.effective_n) == (4, 2)


def test_fsr_is_what_the_concept_rate_leaves() -> None:
    assert forgetting_success_rate(torch.tensor([True, False, False, False])) == Rate(3, 4)


def test_csdr_by_hand() -> None:
    """|30 - 24| / 30 = 20 %, |20 - 25| / 20 = 25 %, |25 - 25| / 25 = 0 %."""
    found = csdr(torch.tensor([30.0, 20.0, 25.0]), torch.tensor([24.0, 25.0, 25.0]))
    assert found.value == pytest.approx(15.0)
    assert found.n == 3 and 0 <= found.low <= 15 <= found.high <= 25 + 1e-9
    assert csdr(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0])).value == 0
    with pytest.raises(MetricError, match="expected > 0"):
        csdr(torch.tensor([0.0]), torch.tensor([1.0]))
