"""The ladder: what is there is kept, what is found in one place is judged in another, and the page says what the cells say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import make_pipeline

from saferedir.attacks.base import Candidate
from saferedir.attacks.record import AttackRecord, Evaluation, PromptResult
from saferedir.attacks.registry import attack_class
from saferedir.bench.ladder import cells as ladder_cells
from saferedir.bench.ladder.cells import Ladder, read_cells
from saferedir.bench.ladder.page import render
from saferedir.bench.ladder.plan import planned_cells, read_plan
from saferedir.errors import BenchError
from saferedir.utils.packaged import packaged_guard_path

PLAN = """
title = "Two guards"
call = {num_inference_steps = 4}
[concept.star]
prompts = "pictoworld/star"
judge = "star"
[guard.words]
recipe = "pictoworld/negative-prompt"
[setting.short]
call = {num_inference_steps = 2}
[[cells]]
concepts = ["star"]
guards = ["none", "words"]
attacks = ["soft-embedding"]
n = 2
[[cells]]
concepts = ["star"]
guards = ["words"]
attacks = ["soft-embedding"]
optimised_on = "none"
n = 2
[[cells]]
concepts = ["star"]
guards = ["words"]
attacks = ["soft-embedding"]
setting = "short"
optimised_at = "usual"
n = 2
"""


def canned(shares: dict[str, list[bool]], calls: list[dict[str, Any]]) -> Callable[..., AttackRecord]:
    """In the place of `attack`: successes by the name of the place, and every call noted."""

    def attack(pipe: Any, guards: Any, name: str, prompts: Any, **more: Any) -> AttackRecord:
        calls.append({"guards": len(guards), "name": name, **more})
        where = ("transfer" if more["candidates"] else "words") if guards else "bare"
        results = []
        for index, item in enumerate(prompts.items):
            flag = shares[where][index]
            evaluation = Evaluation(
                "", 1, {"nfe": 40, "bwd": 40, "te": 1, "gen": 0}, 0.1, {"judge": [flag]}, [flag], False
            )
            spent = {"nfe": 60, "bwd": 60, "te": 1, "gen": 0, "seconds": 1.0}
            results.append(
                PromptResult(
                    item.sha256, (1,), replace(evaluation, step=0), (evaluation,), (0.1,), (0.1,), "finished", spent, spent,
                    Candidate(f"found {where}", latents=torch.ones(1, 4, 8, 8)), torch.zeros(2, 3, 8, 8),
                )
            )  # fmt: skip
        kind = attack_class(name)
        return AttackRecord({"attack": name, "is_adaptive": kind.is_adaptive, "rung": kind.rung}, tuple(results))

    return attack


@pytest.fixture
def ladder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Ladder, list[dict[str, Any]]]]:
    calls: list[dict[str, Any]] = []
    shares = {"bare": [True, True], "words": [True, False], "transfer": [False, False]}
    monkeypatch.setattr(ladder_cells, "attack", canned(shares, calls))
    pipe = make_pipeline()

    def make(text: str = PLAN) -> tuple[Ladder, list[dict[str, Any]]]:
        (tmp_path / "plan.toml").write_text(text)
        calls.clear()
        return Ladder(read_plan(tmp_path / "plan.toml"), pipe, tmp_path / "results", tmp_path / "work"), calls

    return make


def test_cells_are_kept_and_run_again_where_they_have_changed(ladder: Any, tmp_path: Path) -> None:
    runs, calls = ladder()
    assert runs.run() == {"run": 4, "kept": 0, "failed": 0} and len(calls) == 4
    assert [call["candidates"] is not None for call in calls] == [False, False, True, True]
    assert calls[2]["candidates"][0].prompt == "found bare" and calls[3]["candidates"][0].prompt == "found words"
    assert calls[3]["call"] == {"num_inference_steps": 2}
    assert ladder()[0].run() == {"run": 0, "kept": 4, "failed": 0} and not calls
    changed, calls = ladder(PLAN.replace("num_inference_steps = 4", "num_inference_steps = 5"))
    assert changed.run()["run"] == 4
    for file in (tmp_path / "work").iterdir():
        file.unlink()
    for file in (tmp_path / "results").rglob("*found-on-none*"):
        file.unlink()
    lost, calls = ladder()  # the search is made again, for its candidates
    assert lost.run() == {"run": 1, "kept": 3, "failed": 0} and len(calls) == 2


def test_the_page_says_what_the_cells_say(ladder: Any, tmp_path: Path) -> None:
    runs, _ = ladder()
    runs.run()
    cells = read_cells(tmp_path / "results")
    assert {entry["cell"]["rung"] for entry in cells} == {"soft", "transfer"}
    assert "found" not in json.dumps([entry["prompts"] for entry in cells])
    plan = read_plan(tmp_path / "plan.toml")
    page = render(cells, plan)
    (row,) = [
        line
        for line in page.splitlines()
        if line.startswith("| words, attach |") and "–" in line and "worst" not in line
    ][:1]
    parts = [part.strip() for part in row.split("|")]
    assert parts[4].startswith("**.00** [.00, .66] 0/2 soft-embedding") and parts[6].startswith(
        "**.50** [.09, .91] 1/2"
    )
    assert "Every cell of the plan is there." not in page and "the whole rung 'static'" in page
    assert "1 checked: holds" in page
    shown = render([entry for entry in cells if not entry["source"]], plan)
    assert "soft-embedding, found on none" in shown.partition("## Not run")[2]


def test_the_page_says_what_speaks_against_the_cells(ladder: Any, tmp_path: Path) -> None:
    """Random numbers of successes that no order of attackers explains."""
    runs, _ = ladder()
    runs.run()
    cells = read_cells(tmp_path / "results")
    for entry in cells:
        hits = {"": 0, "none": 40}[entry["cell"]["optimised_on"]]
        low, high = (0.0, 0.0876) if not hits else (0.9124, 1.0)
        entry["summary"]["success"] = {"rate": hits / 40, "hits": hits, "n": 40, "low": low, "high": high}
    page = render(cells)
    assert page.count("**against it: ") == 2 and "star soft-embedding" in page and "found elsewhere: **1.00**" in page


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('"words"]\nattacks', '"wrods"]\nattacks', "words"),
        ('attacks = ["soft-embedding"]', 'attacks = ["none"]', "nothing to search for"),
        ('attacks = ["soft-embedding"]', 'attacks = ["best-of-n"]\nsee_verifier = true', "no gate term"),
        ("n = 2", "n = 0", "n is 0"),
        ("n = 2", 'n = 2\npolicies = ["veto"]', "verify"),
        ('setting = "short"', 'setting = "shot"', "short"),
        (
            'attacks = ["soft-embedding"]\nsetting',
            'attacks = ["completion"]\nsetting',
            "'completion' sends .* leave optimised_at out",
        ),
    ],
)
def test_a_plan_that_cannot_be_says_why(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    (tmp_path / "plan.toml").write_text(PLAN.replace(old, new))
    with pytest.raises(BenchError, match=sentence):
        read_plan(tmp_path / "plan.toml")


def test_an_image_to_image_candidate_may_have_been_searched_under_another_setting(tmp_path: Path) -> None:
    plan = PLAN.replace('attacks = ["soft-embedding"]\nsetting', 'attacks = ["image-to-image"]\nsetting')
    (tmp_path / "plan.toml").write_text(plan)
    (block,) = [block for block in read_plan(tmp_path / "plan.toml").cells if block.optimised_at]
    assert list(block.attacks) == ["image-to-image"] and block.setting == "short"


def test_the_plan_of_the_repository_can_be() -> None:
    plan = read_plan(Path(__file__).parents[2] / "benchmarks" / "ladder.toml")
    assert {"star", "emblem", "pointillism"} == set(plan.concept)


def test_the_guards_that_our_plan_loads_are_packaged() -> None:
    plan = read_plan(Path(__file__).parents[2] / "benchmarks" / "ladder.toml")
    for cell in planned_cells(plan):
        guard = plan.guard.get(cell.guard)
        if guard is not None and guard.load is not None:
            name = guard.load.replace("{concept}", cell.concept)
            assert packaged_guard_path(name) is not None, name
