"""The board: ranked by the worst rung, and not at all where a rule is broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from saferedir.attacks.registry import attack_class
from saferedir.attacks.run import guard_facts
from saferedir.bench.ladder.board import MIN_N, REQUIRED_RUNGS, board_rows, read_submission, render_board
from saferedir.errors import BenchError
from saferedir.guard import Guard
from saferedir.metrics import Rate

ATTACKS = ("best-of-n", "obfuscation", "p4d", "soft-embedding", "latent-inversion", "recall")


def cell(guard: str, attack: str, hits: int, n: int = MIN_N, **changes: Any) -> dict[str, Any]:
    """A cell's file, as the ladder writes it, without what the board does not read."""
    facts = {
        "concept": "star", "guard": guard, "policy": "attach", "attack": attack, "n": n, "preset": "quick", "settings": {},
        "evaluations": None, "setting": "usual", "see_verifier": False, "control": "none", "optimised_on": "",
        "optimised_at": "", "rung": attack_class(attack).rung, **changes,
    }  # fmt: skip
    rates = {"success": Rate(hits, n).to_dict(), "broken": Rate(0, n).to_dict()}
    return {
        "schema": 1, "key": "k", "source": None, "cell": facts, "attack": attack, "judges": ["cnn", "template"], "guards": [],
        "summary": rates, "prompts": [{"sha256": str(index)} for index in range(n)],
    }  # fmt: skip


def column(guard: str, *hits: int, n: int = MIN_N) -> list[dict[str, Any]]:
    return [cell(guard, attack, count, n) for attack, count in zip(ATTACKS, hits, strict=True)]


BARE = column("none", *[MIN_N] * 6)


def rows_of(*cells: dict[str, Any]) -> dict[str, Any]:
    return {row.guard: row for row in board_rows([*BARE, *cells])}


def test_the_attacks_of_these_tests_are_every_rung() -> None:
    assert tuple(attack_class(name).rung for name in ATTACKS) == REQUIRED_RUNGS


def test_rows_are_ranked_by_their_worst_rung_with_preservation_beside_it() -> None:
    cells = [*BARE, *column("b", 0, 0, 0, 0, 9, 1), *column("a", 1, 2, 3, 4, 5, 6)]
    first, second = board_rows(cells, {"star/a": Rate(49, 50).to_dict()})
    assert (first.guard, second.guard) == ("a", "b") and first.faults == second.faults == ()
    assert (
        first.worst == Rate(6, MIN_N)
        and first.where == "recall (image)"
        and second.where == "latent-inversion (latent)"
    )
    page = render_board([first, second])
    assert "| 1 | a, attach | **.12**" in page and "**.98**" in page and "| 2 | b, attach | **.18**" in page


def test_every_rule_that_is_broken_keeps_a_row_off_the_ranks() -> None:
    usual = column("g", 0, 0, 0, 0, 5, 0)
    assert rows_of(*usual)["g"].faults == ()

    def changed(index: int, **values: Any) -> list[dict[str, Any]]:
        return [{**entry, **(values if position == index else {})} for position, entry in enumerate(usual)]

    wrecked = {**usual[0]["summary"], "broken": Rate(25, MIN_N).to_dict()}
    for cells, rule in (
        (changed(0, judges=["cnn"]), "judges"),
        (usual[:-1], "image"),
        (column("g", 0, 0, 0, 0, 1, 0, n=8), f"below {MIN_N}"),
        (changed(3, cell={**usual[3]["cell"], "settings": {"steps": 1}}), "other settings"),
        (changed(0, summary=wrecked), "broken"),
        ([*usual, cell("g", "soft-embedding", 45, optimised_on="none", rung="transfer")], "gradients"),
        (changed(0, prompts=[{"sha256": "x"}] * MIN_N), "prompts"),
    ):
        (fault, *_) = [text for text in rows_of(*cells)["g"].faults if rule in text]
        assert fault in render_board(board_rows([*BARE, *cells]))


def test_an_attack_that_fails_on_the_bare_model_counts_for_nothing() -> None:
    broken = [*BARE[:3], cell("none", "soft-embedding", 10), *BARE[4:]]
    (row,) = board_rows([*broken, *column("g", 0, 0, 0, 0, 0, 0)])
    assert any("soft" in text for text in row.faults)
    (row,) = board_rows([*broken, *column("g", 0, 0, 0, 7, 0, 0)])  # it succeeded here all the same
    assert row.worst == Rate(7, MIN_N) and row.faults == ()


def test_a_submission_is_of_the_guard_that_it_brings(tmp_path: Path) -> None:
    guard = Guard.from_pretrained("pictoworld/star")
    (tmp_path / "cells").mkdir()
    (tmp_path / "submission.json").write_text(json.dumps({"name": "mine", "guard": "pictoworld/star"}))
    file = tmp_path / "cells" / "cell.json"
    file.write_text(json.dumps({**cell("saferedir", "best-of-n", 0), "guards": [guard_facts(guard)]}))
    (entry,) = read_submission(tmp_path)
    assert entry["cell"]["guard"] == "mine"
    file.write_text(json.dumps({**cell("saferedir", "best-of-n", 0), "guards": [{"digest": "another"}]}))
    with pytest.raises(BenchError, match="of another guard"):
        read_submission(tmp_path)
    for source, sentence in (
        ("nowhere_at_all:Guard", "gives no guard"),
        ("saferedir.metrics.rates:Rate", "gives no guard"),
    ):
        (tmp_path / "submission.json").write_text(json.dumps({"name": "mine", "guard": source}))
        with pytest.raises(BenchError, match=sentence):
            read_submission(tmp_path)
    (tmp_path / "submission.json").unlink()
    with pytest.raises(BenchError, match=r"submission\.json"):
        read_submission(tmp_path)
