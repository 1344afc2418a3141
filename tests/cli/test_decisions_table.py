"""The table of `generate`: the verdict first, scores beside their thresholds, and it reads at 80 columns."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from saferedir.cli import decisions_table
from saferedir.cli.decisions_table import scores, verdict


def row(prompt: str, **changes: Any) -> dict[str, Any]:
    decision = {
        "guard": "saferedir", "concept": "star", "action": "redirected", "fired": True, "unresolved": False, "attempts": 1,
        "prompt_score": 21.194, "image_score": -8.36, "thresholds": {"prompt": 3.01, "image": 10.61}, **changes,
    }  # fmt: skip
    return {
        "prompt": prompt,
        "file": "001.png",
        "blocked": False,
        "nsfw_content_detected": None,
        "decisions": [decision],
    }


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_of_generate_reads_at_80_columns(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = "masterpiece, best quality, a red star over the sky, sharp focus, 8k, trending, " * 2
    console = Console(width=width, record=True, force_terminal=False)
    monkeypatch.setattr(decisions_table, "console", console)
    monkeypatch.setattr(decisions_table, "errors", console)
    decisions_table.print_decisions([row(prompt), row("a star", unresolved=True), row("a star", attempts=3)])
    lines = console.export_text().splitlines()
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    for whole in (
        "redirected",
        "UNRESOLVED",
        "3 attempts",
        "001.png",
        "prompt 21.19 > 3.01",
        "image -8.36 ≤ 10.61",
        "quality,",
    ):
        assert whole in text
    heads = lines[2]
    assert heads.index("verdict") < heads.index("image") < heads.index("prompt")
    assert "Do not show 001.png" in text


@pytest.mark.parametrize(
    ("changes", "blocked", "text"),
    [
        ({"action": "none"}, False, "[green]untouched[/]"),
        ({}, False, "[yellow]redirected[/]"),
        ({"attempts": 2}, False, "[yellow]redirected[/]\n2 attempts"),
        ({"unresolved": True}, False, "[bold red]UNRESOLVED[/]"),
        ({"unresolved": True}, True, "[bold red]blocked[/]"),
    ],
)
def test_one_word_says_what_became_of_an_image(changes: dict[str, Any], blocked: bool, text: str) -> None:
    image = {**row("a", **changes), "blocked": blocked}
    assert verdict(image, image["decisions"][0]) == text


def test_scores_stand_beside_their_thresholds() -> None:
    decision = row("a")["decisions"][0]
    assert scores(decision).splitlines() == ["[bold]prompt 21.19 > 3.01[/]", "image -8.36 ≤ 10.61"]
    assert scores({**decision, "prompt_score": None, "image_score": None}) == "–"
