"""`saferedir guards test`: its page, its refusals, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Run


@pytest.fixture
def prompts(tmp_path: Path) -> tuple[Any, ...]:
    """Options of a small test."""
    (tmp_path / "forget.txt").write_text("a red star on white\na blue circle\n")
    (tmp_path / "retain.txt").write_text("a green square\na yellow star over the sky\n")
    files = ("--forget", tmp_path / "forget.txt", "--retain", tmp_path / "retain.txt")
    return (*files, "--out", tmp_path / "out", "--steps", 2)


def test_a_guard_without_a_word_of_its_own_needs_a_judge(run: Run, tmp_path: Path, prompts: tuple[Any, ...]) -> None:
    result = run("guards", "test", "pictoworld/star-duo", *prompts)
    assert result.exit_code == 1 and "give a verifier" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_the_page_begins_with_the_failures(run: Run, tmp_path: Path, prompts: tuple[Any, ...]) -> None:
    result = run("guards", "test", "pictoworld/star", *prompts)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "guard_test.json").read_text())
    failures = [case["prompt"] for case in record["cases"] if case["failure"]]
    assert failures == ["a blue circle", "a yellow star over the sky"]
    assert [case["prompt"] for case in record["cases"][:2]] == failures
    page = (tmp_path / "out" / "index.html").read_text()
    order = [page.index(f"<p>{prompt}</p>") for prompt in (*failures, "a red star on white")]
    assert order == sorted(order) and "No judge" in page
    for case in record["cases"]:
        assert (tmp_path / "out" / case["before"]).is_file() and (tmp_path / "out" / case["after"]).is_file()
    assert "a blue circle: the guard did not act" in " ".join(result.output.split())


def test_room_on_the_disk_is_asked_for_every_frame(run: Run, tmp_path: Path, prompts: tuple[Any, ...]) -> None:
    result = run("guards", "test", "pictoworld/star", *prompts, "--call", "num_frames=1000000000")
    needs = 2 * 4 * 4 * 1_000_000_000
    assert result.exit_code == 1 and f"this needs about {needs} MB" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()
