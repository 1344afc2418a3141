"""`saferedir attack`: a record and a sheet of images, and sentences for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from saferedir.attacks.catalogue import ATTACK_ROWS
from saferedir.cli import app

PROMPT = "an image of a red star on grass"
SHORT = ("--set", "n=1", "--steps", "2")


def call(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["attack", *words], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return " ".join(result.output.replace("│", " ").split())


def test_an_attack_leaves_a_record_and_a_sheet(tmp_path: Path) -> None:
    out = tmp_path / "run"
    shown = call("best-of-n", PROMPT, "--guard", "pictoworld/star", "--out", str(out), *SHORT)
    assert "untouched prompts" in shown and "pictoworld-template" in shown
    record = json.loads((out / "attack.json").read_text())
    assert record["attack"] == "best-of-n" and record["guards"][0]["concept"] == "star"
    assert (out / "images.png").is_file() and PROMPT not in (out / "attack.json").read_text()
    assert "holds finished work" in call(
        "best-of-n", PROMPT, "--guard", "pictoworld/star", "--out", str(out), *SHORT, code=1
    )


@pytest.mark.parametrize("row", ATTACK_ROWS, ids=lambda row: row.name)
def test_every_attack_teaches_its_threat_model(row: object) -> None:
    shown = call(row.name, "--help")  # type: ignore[attr-defined]
    for words in ("Threat model T", "Attack the bare model first", "Example:", "--guard", "--set"):
        assert words in shown


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ((PROMPT,), 2, "say who decides"),
        ((PROMPT, "--judge", "star", "--set", "colour=red"), 1, "found colour"),
        ((PROMPT, "--judge", "star", "--set", "n=0"), 1, "whole number >= 1"),
        ((), 2, "give prompts in quotes"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, words: tuple[str, ...], code: int, sentence: str) -> None:
    shown = call("best-of-n", *words, "--out", str(tmp_path / "run"), code=code)
    assert sentence in shown and not (tmp_path / "run").exists()
