"""Rules on made-up scores: what is positive, missing rows, round trips, and sentences for what cannot be."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saferedir.errors import JudgeError
from saferedir.judges.base import Scores
from saferedir.judges.rules import AllOf, AnyAbove, InTop, Rule, Unless, rule_from_dict

LABELS = ("class:a", "class:b", "class:c", "kind:x", "kind:y", "broken")
numbers = st.floats(0, 1, width=32)
above = st.builds(AnyAbove, st.lists(st.sampled_from(LABELS), min_size=1).map(tuple), numbers, st.booleans())
top = st.builds(InTop, st.just("class"), st.sampled_from("abc"), st.integers(1, 4))
rules: st.SearchStrategy[Rule] = st.recursive(
    above | top,
    lambda inner: st.builds(AllOf, st.lists(inner, max_size=3).map(tuple)) | st.builds(Unless, inner, inner),
    max_leaves=6,
)
rows = st.lists(st.lists(numbers, min_size=6, max_size=6), min_size=1, max_size=5)


def scores(*values: list[float]) -> Scores:
    return Scores(LABELS, torch.tensor(values))


@given(rules)
def test_a_rule_survives_json(rule: Rule) -> None:
    assert rule_from_dict(json.loads(json.dumps(rule.to_dict()))) == rule


@given(rules, rows)
def test_a_image_that_was_never_made_is_never_positive(rule: Rule, values: list[list[float]]) -> None:
    made = Scores(LABELS, torch.tensor(values))
    both = Scores(LABELS, torch.cat([made.values, torch.full((2, 6), torch.nan)]))
    decided = rule.decide(both)
    assert not decided[-2:].any()
    assert torch.equal(decided[:-2], rule.decide(made))


@given(rules, rows)
def test_a_rule_looks_at_each_image_by_itself(rule: Rule, values: list[list[float]]) -> None:
    found = Scores(LABELS, torch.tensor(values))
    single = torch.cat([rule.decide(found.rows(torch.tensor([place]))) for place in range(len(values))])
    assert torch.equal(rule.decide(found), single)


@given(above, rows)
def test_any_above_is_the_comparison_it_says(rule: AnyAbove, values: list[list[float]]) -> None:
    for decided, row in zip(rule.decide(Scores(LABELS, torch.tensor(values))), values, strict=True):
        seen = [row[LABELS.index(label)] for label in rule.labels]
        assert bool(decided) == any(s > rule.threshold if rule.strict else s >= rule.threshold for s in seen)


@given(st.permutations([0.1, 0.2, 0.7]), st.integers(1, 4))
def test_in_top_counts_who_is_higher(values: list[float], k: int) -> None:
    found = scores([*values, 0.0, 0.0, 0.0])
    for value, own in zip("abc", values, strict=True):
        assert bool(InTop("class", value, k).decide(found)[0]) == (sum(other > own for other in values) < k)


def test_unless_is_a_veto_and_all_of_nothing_is_everything() -> None:
    found = scores([0.9, 0.1, 0.0, 1.0, 0.0, 0.1], [0.9, 0.1, 0.0, 1.0, 0.0, 0.9])
    rule = Unless(AllOf((InTop("class", "a"), InTop("kind", "x"))), AnyAbove(("broken",), 0.5))
    assert rule.decide(found).tolist() == [True, False]
    assert AllOf(()).decide(found).tolist() == [True, True]


def test_a_threshold_may_be_strict_or_not() -> None:
    found = scores([0.0, 0.0, 0.0, 0.0, 0.0, 0.5])
    assert AnyAbove(("broken",), 0.5).decide(found).tolist() == [False]
    assert AnyAbove(("broken",), 0.5, strict=False).decide(found).tolist() == [True]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "Never"}, "there is no rule 'Never'; known: AnyAbove"),
        ({}, "there is no rule None"),
        ({"kind": "InTop", "group": "class"}, "takes the fields group, value, k"),
        ({"kind": "InTop", "group": "class", "value": "a", "rank": 1}, "takes the fields"),
    ],
)
def test_a_rule_that_cannot_be_read_is_one_sentence(values: dict[str, object], words: str) -> None:
    with pytest.raises(JudgeError, match=words.replace("(", r"\(")):
        rule_from_dict(values)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (AnyAbove(("nose",), 0.5), "there is no score 'nose'"),
        (InTop("style", "a"), "there is no label group 'style'; known: class, kind"),
        (InTop("class", "d"), "has no value 'd'; known: a, b, c"),
    ],
)
def test_a_rule_for_other_labels_is_one_sentence(rule: Rule, words: str) -> None:
    with pytest.raises(JudgeError, match=words):
        rule.decide(scores([0.0] * 6))
