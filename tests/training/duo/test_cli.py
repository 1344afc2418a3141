"""`saferedir train duo`: from a model folder to a guard, and one sentence for everything that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.tiny_pipelines import PIPELINES
from typer.testing import CliRunner

import saferedir as sr
from saferedir.cli import app

QUICK = ["--steps", "2", "--batch", "2", "--rank", "2", "--sampling-steps", "3", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    PIPELINES["sd"].build().save_pretrained(folder)
    return folder


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["train", "duo", *map(str, arguments)])


def never(pictures: list[Image.Image]) -> list[bool]:
    return [False] * len(pictures)


def make_folder(folder: Path, count: int = 2) -> Path:
    for side in ("unsafe", "safe"):
        (folder / side).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (32, 32), (60 * index, 0, 255 * (side == "safe"))).save(folder / side / f"{index}.png")
    return folder


def test_pairs_drawn_by_the_model(model: Path, tmp_path: Path) -> None:
    result = invoke(
        "--model", model, "--concept", "star", "--anchor", "circle", "--count", 2, "--out", tmp_path / "star", *QUICK
    )
    assert result.exit_code == 0, result.output
    assert "2 of 2 pairs" in result.output and "Guard written to" in result.output and "No judge" in result.output
    guard = sr.Guard.from_pretrained(tmp_path / "star")
    assert (guard.method, guard.config.concept, guard.config.training["pairs"]) == ("duo", "star", 2)
    assert (tmp_path / "star.pairs" / "manifest.json").is_file()
    assert json.loads((tmp_path / "star" / "summary.json").read_text())["method"] == "duo"


def test_pairs_given(model: Path, tmp_path: Path) -> None:
    pairs = make_folder(tmp_path / "pairs")
    result = invoke(
        "--model",
        model,
        "--concept",
        "star",
        "--pairs",
        pairs,
        "--out",
        tmp_path / "star",
        "--variant",
        "as-coded",
        *QUICK,
    )
    assert result.exit_code == 0, result.output
    training = sr.Guard.from_pretrained(tmp_path / "star").config.training
    assert (training["shared_t"], training["effective_learning_rate"]) == (False, pytest.approx(6e-5))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--concept", "dog"], "give --anchor, --prompts or --pairs"),
        (["--concept", " "], "the concept needs a name"),
        (["--concept", "star", "--pairs", "{one}"], "1 valid pairs; DUO needs at least 2"),
        (["--concept", "star", "--pairs", "{pairs}", "--anchor", "x"], "--anchor is for generating pairs"),
        (["--concept", "star", "--pairs", "{pairs}", "--variant", "both"], "no DUO variant 'both'"),
        (["--concept", "star", "--pairs", "{pairs}", "--beta", "0"], "beta is 0.0; expected a finite number > 0"),
        (["--concept", "star", "--pairs", "{pairs}", "--conditioning", "prompt"], "come without prompts"),
        (
            ["--concept", "star", "--anchor", "x", "--judge", "nowhere:f"],
            "the module 'nowhere' of 'nowhere:f' cannot be",
        ),
        (
            ["--concept", "star", "--anchor", "x", "--judge", "{judge}", "--count", "2"],
            "the judge found 'star' in none of",
        ),
        (["--concept", "star", "--pairs", "{pairs}", "--out", "{pairs}"], "is not empty and holds no guard"),
    ],
)
def test_refusals_are_one_sentence(arguments: list[str], sentence: str, model: Path, tmp_path: Path) -> None:
    values = {
        "one": make_folder(tmp_path / "one", 1), "pairs": make_folder(tmp_path / "pairs"), "judge": f"{__name__}:never",
    }  # fmt: skip
    given = [argument.format(**values) for argument in arguments]
    if "--out" not in given:
        given += ["--out", str(tmp_path / "out")]
    result = invoke("--model", model, *given, *QUICK)
    assert result.exit_code in (1, 2) and sentence in " ".join(result.output.replace("│", " ").split()), result.output
    assert not (tmp_path / "out").exists()


def test_a_judge_may_be_a_file_of_the_current_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_duo_judge.py").write_text("def never(pictures):\n    return [False] * len(pictures)\n")
    monkeypatch.chdir(tmp_path)
    result = invoke(
        "--model", model, "--concept", "star", "--anchor", "x", "--judge", "own_duo_judge:never", "--count", 2,
        "--out", tmp_path / "out", *QUICK,
    )  # fmt: skip
    assert result.exit_code == 1 and "the judge found 'star' in none of" in " ".join(result.output.split())
