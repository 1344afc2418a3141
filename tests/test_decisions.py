"""Decisions are plain data: they survive JSON, and refuse what they do not know."""

from __future__ import annotations

import json

import pytest

from saferedir import Decision

FULL = Decision(
    guard="saferedir", concept="star", image=1, fired=True,
    action="redirected", prompt_score=2.5, image_score=-1.0,
    thresholds={"prompt": 0.0}, first_fired_step=0, steps_redirected=3, token_strengths=(0.0, 0.5),
    tokens=("a", "star"), prompt_scores=(2.5, 2.0), image_scores=(-1.0,), message="redirected from step 0",
)  # fmt: skip


@pytest.mark.parametrize("decision", [FULL, Decision(guard="g", concept="c", image=0)])
def test_a_decision_survives_json(decision: Decision) -> None:
    assert Decision.from_dict(json.loads(json.dumps(decision.to_dict()))) == decision


def test_unknown_fields_and_actions_are_errors() -> None:
    with pytest.raises(ValueError, match="sco"):
        Decision.from_dict({"guard": "g", "concept": "c", "image": 0, "sco": 1})
    with pytest.raises(ValueError, match="redirected"):
        Decision(guard="g", concept="c", image=0, action="shrugged")


def test_the_dict_is_a_copy() -> None:
    FULL.to_dict()["thresholds"]["prompt"] = 9.0
    assert FULL.thresholds == {"prompt": 0.0}
