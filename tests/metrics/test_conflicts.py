"""Conflicts of guards on made-up images: every number against a count by hand."""

from __future__ import annotations

import json
from math import comb

import pytest
import torch

from saferedir.errors import MetricError
from saferedir.metrics import guard_conflicts


def flags(*on: int, n: int = 20) -> torch.Tensor:
    return torch.isin(torch.arange(n), torch.tensor(on, dtype=torch.long))


def test_a_guard_that_leads_into_another_concept_is_told_from_one_that_does_not() -> None:
    bare = {"star": flags(*range(10)), "ring": flags(18, 19), "fox": flags(17)}
    guarded = {
        "star": {
            "star": flags(),
            "ring": flags(*range(8), 19),
            "fox": flags(17),
        },  # eight stars became rings, one ring went
        "ring": {"star": flags(*range(10)), "ring": flags(), "fox": flags(17)},
    }
    acted = {"star": flags(*range(10), 18), "ring": flags(18, 19)}
    conflicts = {(each.guarded, each.concept): each for each in guard_conflicts(bare, guarded, acted)}
    assert list(conflicts) == [("star", "ring"), ("star", "fox"), ("ring", "star"), ("ring", "fox")]
    raised = conflicts["star", "ring"]
    assert (raised.test.b, raised.test.c) == (8, 1)
    exact = sum(comb(9, k) for k in (8, 9)) / 2**9
    assert raised.test.p == exact and raised.p == pytest.approx(min(1.0, 4 * exact))
    assert (raised.before.hits, raised.after.hits, raised.after.n) == (2, 9, 20)
    assert (raised.led_into.hits, raised.led_into.n) == (8, 10)  # image 18 showed a ring before
    assert not raised.is_raised() and raised.is_raised(alpha=0.1)
    assert all(each.p == 1 and not each.led_into.hits for pair, each in conflicts.items() if pair != ("star", "ring"))
    assert json.loads(json.dumps(raised.to_dict()))["led_into"]["hits"] == 8


def test_many_images_that_lead_astray_are_a_conflict_and_fewer_than_before_never_are() -> None:
    bare, after = {"a": flags(*range(20)), "b": flags()}, flags(*range(12))
    (raised,) = guard_conflicts(bare, {"a": {"b": after}})
    assert raised.p == 0.5**12 and raised.is_raised() and raised.led_into.n == 20
    (lowered,) = guard_conflicts({"a": flags(), "b": after}, {"a": {"b": flags()}})
    assert lowered.p == 1.0 and not lowered.is_raised()


def test_seeds_of_one_prompt_are_no_more_evidence_than_the_prompt() -> None:
    bare, guarded = {"a": flags(), "b": flags()}, {"a": {"b": flags(*range(12))}}
    (plain,) = guard_conflicts(bare, guarded)
    (by_prompt,) = guard_conflicts(bare, guarded, clusters=torch.arange(20) // 4)
    assert plain.p == 0.5**12 and by_prompt.p == 0.5**3
    assert by_prompt.led_into.effective_n is not None and by_prompt.led_into.effective_n < 20


def test_what_is_missing_is_one_sentence() -> None:
    bare = {"a": flags(), "b": flags()}
    with pytest.raises(MetricError, match="no images judged for 'b'"):
        guard_conflicts(bare, {"a": {"a": flags()}})
    with pytest.raises(MetricError, match="expected 20"):
        guard_conflicts(bare, {"a": {"b": flags(n=19)}})
    with pytest.raises(MetricError, match="nothing says"):
        guard_conflicts(bare, {"a": {"b": flags()}}, {"b": flags()})
    with pytest.raises(MetricError, match="no pair"):
        guard_conflicts({"a": flags()}, {"a": {}})
