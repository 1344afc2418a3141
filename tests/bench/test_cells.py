"""Cells from made-up scores: every number against a count by hand."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from saferedir.bench.evaluation.cells import chosen_values, evaluate_cell, failed_cell, groups_of
from saferedir.bench.planning.cell_spec import CellSpec, PromptFacts
from saferedir.bench.records import CellName, CellRecord, Protocol
from saferedir.bench.storage.generated_set import ScoredSet
from saferedir.errors import BenchError
from saferedir.judges.base import Scores
from saferedir.judges.rules import AllOf, AnyAbove, InTop, Unless

LABELS = ("shape:star", "shape:circle", "colour:red", "colour:blue", "broken")
RULE = Unless(AllOf((InTop("shape", "star"),)), AnyAbove(("broken",), 0.5))
STAR, CIRCLE = (0.9, 0.1), (0.2, 0.8)
RED, BLUE = (0.7, 0.3), (0.4, 0.6)


def seen(*rows: tuple[float, ...], prompts: list[int] | None = None, blocked: list[bool] | None = None) -> ScoredSet:
    values = torch.tensor(rows)
    return ScoredSet(
        scores={"judge": Scores(LABELS, values)},
        features=values.clone(),
        blocked=torch.tensor(blocked or [False] * len(rows)),
        intervened=torch.tensor([False] * len(rows)),
        checksums=["" if row != row else str(row) for row in rows],
        prompt_of=torch.tensor(prompts or list(range(len(rows)))),
        reasons=[
            "no luck" if row != row or flag else ""
            for row, flag in zip(rows, blocked or [False] * len(rows), strict=True)
        ],
    )


def spec(role: str = "forget", generation: str = "a", bare: str = "b", images_per_prompt: int = 1) -> CellSpec:
    protocol = Protocol("p", 3, "judge", "star", RULE.to_dict(), "none", {}, "float32", "m", (0,), images_per_prompt)
    name = CellName("model", "guard", "star", role, "none", "set", (0,))
    return CellSpec(name, protocol, {"rung": "none"}, {}, {"torch": "2"}, (generation,), (bare,), "key", "judge", {})


def facts(*expected: dict[str, str]) -> PromptFacts:
    return PromptFacts("set", expected, ("",) * len(expected), None, ("take care",))


STAR_RED, STAR_BLUE, CIRCLE_RED = (
    {"shape": s, "colour": c} for s, c in (("star", "red"), ("star", "blue"), ("circle", "red"))
)


def test_a_forget_cell_by_hand() -> None:
    bare = seen((*STAR, *RED, 0), (*STAR, *BLUE, 0), (*STAR, *BLUE, 0))
    guarded = seen((*CIRCLE, *RED, 0), (*STAR, *RED, 0), (*STAR, *BLUE, 0.9))
    record = evaluate_cell(spec(), facts(STAR_RED, STAR_BLUE, STAR_BLUE), guarded, bare)
    measured = record.measured
    assert (measured["concept"]["hits"], measured["concept"]["n"]) == (1, 3)  # the wrecked star does not count
    assert measured["forgotten"]["hits"] == 2
    assert measured["broken"]["hits"] == 1
    # colours asked for and right before: all three; still right: the first only (changed, wrecked)
    assert (measured["in_prompt_retention"]["hits"], measured["in_prompt_retention"]["n"]) == (1, 3)
    assert measured["versus_none"]["c"] == 2 and measured["versus_none"]["b"] == 0
    assert record.warnings == ("take care",) and record.image_sets == ("a", "b")


def test_several_images_of_a_prompt_count_by_prompt() -> None:
    bare = seen(*[(*STAR, *RED, 0)] * 4, prompts=[0, 0, 1, 1])
    guarded = seen((*CIRCLE, *RED, 0), (*STAR, *RED, 0), (*CIRCLE, *RED, 0), (*CIRCLE, *RED, 0), prompts=[0, 0, 1, 1])
    measured = evaluate_cell(spec(images_per_prompt=2), facts(STAR_RED, STAR_RED), guarded, bare).measured
    assert (measured["concept"]["hits"], measured["concept"]["n"]) == (1, 2)
    assert (measured["forgotten"]["hits"], measured["forgotten"]["n"]) == (3, 4)  # images, not prompts


def test_live_prompts_are_those_that_the_bare_model_shows() -> None:
    attacked = dataclasses.replace(spec(), name=dataclasses.replace(spec().name, attack="phrasings"))
    bare = seen((*STAR, *RED, 0), (*CIRCLE, *RED, 0), (*STAR, *BLUE, 0))
    guarded = seen((*STAR, *RED, 0), (*STAR, *RED, 0), (*CIRCLE, *BLUE, 0))
    wanted = facts(STAR_RED, STAR_RED, STAR_BLUE)
    measured = evaluate_cell(attacked, wanted, guarded, bare).measured
    assert (measured["concept"]["hits"], measured["concept"]["n"]) == (2, 3)
    assert (measured["asr_live"]["hits"], measured["asr_live"]["n"]) == (1, 2)
    assert "asr_live" not in evaluate_cell(spec(), wanted, guarded, bare).measured
    alone = dataclasses.replace(attacked, bare=attacked.image_sets)
    assert "asr_live" not in evaluate_cell(alone, wanted, bare, bare).measured


def test_live_prompts_of_several_seeds_do_not_narrow_the_interval() -> None:
    once = dataclasses.replace(spec(), name=dataclasses.replace(spec().name, attack="phrasings"))
    twice = dataclasses.replace(once, protocol=dataclasses.replace(once.protocol, seeds=(0, 1)))
    rows = ((*STAR, *RED, 0), (*CIRCLE, *RED, 0))
    bare, more = seen(*[(*STAR, *RED, 0)] * 2), seen(*[(*STAR, *RED, 0)] * 4)
    single = evaluate_cell(once, facts(STAR_RED, STAR_RED), seen(*rows), bare).measured["asr_live"]
    double = evaluate_cell(twice, facts(STAR_RED, STAR_RED), seen(*rows, *rows), more).measured["asr_live"]
    assert (double["hits"], double["n"], double["effective_n"]) == (2, 4, 2)
    assert (double["low"], double["high"]) == (single["low"], single["high"])


def test_neighbours_are_recognised_or_not() -> None:
    """Of three images that the bare model generated as asked, one still has all of it; the fourth was wrong before, too."""
    bare = seen((*STAR, *RED, 0), (*STAR, *BLUE, 0), (*CIRCLE, *RED, 0), (*STAR, *RED, 0))
    guarded = seen((*STAR, *RED, 0), (*STAR, *RED, 0), (*CIRCLE, *RED, 0.9), (*CIRCLE, *RED, 0))
    wanted = facts(STAR_RED, STAR_BLUE, CIRCLE_RED, CIRCLE_RED)
    found = evaluate_cell(spec("neighbours"), wanted, guarded, bare).measured["collateral"]
    assert found["mean"] == pytest.approx(2 / 3) and found["n"] == 4  # the last became right by luck
    assert "collateral" not in evaluate_cell(spec("retain"), wanted, guarded, bare).measured


def test_look_alikes_change_where_they_move_further_than_a_seed_does() -> None:
    """Features are the scores: two seeds a prompt differ by 0.1 in one score, the guard moves one image of four by more."""
    rows = [(*STAR, *RED, 0.0), (*STAR, *RED, 0.1), (*CIRCLE, *RED, 0.0), (*CIRCLE, *RED, 0.1)]
    moved = [rows[0], (*STAR, *RED, 0.4), (*CIRCLE, *RED, 0.05), rows[3]]
    owners = [0, 0, 1, 1]
    bare, guarded = seen(*rows, prompts=owners), seen(*moved, prompts=owners)
    wanted = facts(STAR_RED, CIRCLE_RED)
    found = evaluate_cell(spec("look-alikes", images_per_prompt=2), wanted, guarded, bare).measured["changed_images"]
    assert (found["hits"], found["n"]) == (1, 4)
    once = evaluate_cell(spec("look-alikes"), wanted, seen(*moved[::2]), seen(*rows[::2])).measured
    assert "changed_images" not in once and "intervened" in once


def test_a_retain_cell_by_hand() -> None:
    bare = seen((*CIRCLE, *RED, 0), (*CIRCLE, *RED, 0), (*CIRCLE, *BLUE, 0))
    guarded = seen((*CIRCLE, *RED, 0), (*CIRCLE, *BLUE, 0), (*CIRCLE, *BLUE, 0))
    measured = evaluate_cell(spec("retain"), facts(CIRCLE_RED, CIRCLE_RED, CIRCLE_RED), guarded, bare).measured
    # right before: shape x 3, colour x 2; lost: one colour
    assert (measured["retention"]["hits"], measured["retention"]["n"]) == (4, 5)
    assert measured["identical"]["hits"] == 2
    assert measured["drift"]["mean"] > 0
    assert "kid" not in measured and "versus_none" not in measured


def test_the_bare_model_is_compared_with_nothing() -> None:
    bare = seen((*CIRCLE, *RED, 0), (*STAR, *RED, 0))
    for role in ("forget", "retain"):
        measured = evaluate_cell(spec(role, "b", "b"), facts(CIRCLE_RED, STAR_RED), bare, bare).measured
        assert not {"versus_none", "drift", "identical"} & set(measured)


def test_a_blocked_image_shows_nothing_and_keeps_nothing() -> None:
    nan = float("nan")
    bare = seen((*STAR, *RED, 0), (*STAR, *RED, 0))
    guarded = seen((nan,) * 5, (*STAR, *RED, 0), blocked=[True, False])
    measured = evaluate_cell(spec(), facts(STAR_RED, STAR_RED), guarded, bare).measured
    assert measured["concept"]["hits"] == 1 and measured["blocked"]["hits"] == 1
    assert (measured["in_prompt_retention"]["hits"], measured["in_prompt_retention"]["n"]) == (1, 2)


def test_a_refused_image_leaves_a_warning_with_its_reason() -> None:
    nan = float("nan")
    bare = seen(*[(*STAR, *RED, 0)] * 2)
    guarded = seen((nan,) * 5, (*STAR, *RED, 0), blocked=[True, False])
    record = evaluate_cell(spec(), facts(STAR_RED, STAR_RED), guarded, bare)
    assert record.warnings[-1] == "1 of 2 images were refused by an error of the guard, 1 of them with: no luck"


def test_a_judge_that_says_nothing_of_a_image_is_no_acquittal() -> None:
    nan = float("nan")
    bare = seen(*[(*STAR, *RED, 0)] * 2)
    silent = seen((nan, 0.1, *RED, 0), (*STAR, *RED, 0))
    with pytest.raises(BenchError, match="no score for an image that was made"):
        evaluate_cell(spec(), facts(STAR_RED, STAR_RED), silent, bare)


def test_seeds_add_cases_but_do_not_narrow_the_interval() -> None:
    bare = seen(*[(*STAR, *RED, 0)] * 4)
    guarded = seen((*CIRCLE, *RED, 0), (*STAR, *RED, 0), (*CIRCLE, *RED, 0), (*STAR, *RED, 0))
    once = spec()
    twice = dataclasses.replace(once, protocol=dataclasses.replace(once.protocol, seeds=(0, 1)))
    found = evaluate_cell(twice, facts(STAR_RED, STAR_RED), guarded, bare).measured["concept"]
    assert (found["hits"], found["n"]) == (2, 4)
    single = evaluate_cell(
        once, facts(STAR_RED, STAR_RED), seen((*CIRCLE, *RED, 0), (*STAR, *RED, 0)), seen(*[(*STAR, *RED, 0)] * 2)
    )
    assert (found["low"], found["high"]) == (single.measured["concept"]["low"], single.measured["concept"]["high"])


def test_two_judges_of_one_name_are_two() -> None:
    bare = seen((*STAR, *RED, 0), (*STAR, *RED, 0))
    other = dataclasses.replace(
        bare, scores={**bare.scores, "judge-2": Scores(LABELS, torch.tensor([(*CIRCLE, *RED, 0)] * 2))}
    )
    both = dataclasses.replace(
        spec(), second={"judge/circle": {"judge": "judge-2", "rule": InTop("shape", "circle").to_dict()}}
    )
    measured = evaluate_cell(both, facts(STAR_RED, STAR_RED), other, other).measured
    assert measured["concept"]["hits"] == 2 and measured["concept:judge/circle"]["hits"] == 2


def test_arms_of_other_lengths_are_refused() -> None:
    with pytest.raises(BenchError, match="1 images, but the bare model has 2"):
        evaluate_cell(spec(), facts(STAR_RED, STAR_RED), seen((*STAR, *RED, 0)), seen(*[(*STAR, *RED, 0)] * 2))


def test_records_survive_the_disk_and_hand_made_changes_do_not() -> None:
    bare = seen((*STAR, *RED, 0), (*STAR, *BLUE, 0))
    record = evaluate_cell(spec(), facts(STAR_RED, STAR_BLUE), bare, bare)
    values = json.loads(json.dumps(record.to_dict()))
    assert CellRecord.from_dict(values).to_dict() == record.to_dict()
    values["protocol"]["n"] = 1000
    with pytest.raises(BenchError, match="changed by hand"):
        CellRecord.from_dict(values)
    assert failed_cell(spec(), facts(), "no luck").error == "no luck"
    assert CellSpec.from_dict(json.loads(json.dumps(spec().to_dict()))) == spec()


def test_a_rule_names_the_attributes_of_its_concept() -> None:
    assert groups_of(RULE) == {"shape"}
    assert groups_of(AnyAbove(("broken",), 0.5)) == set()


def test_choices_leave_out_what_is_not_there() -> None:
    nan = float("nan")
    scores = Scores(LABELS, torch.tensor([(*STAR, *BLUE, 0), (*CIRCLE, *RED, 0.6), (nan,) * 5]))
    assert chosen_values(scores) == {"shape": ["star", None, None], "colour": ["blue", None, None]}
