"""`saferedir train uce` and `train esd`: from words to a guard, and one sentence for everything that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_pipelines import PIPELINES
from typer.testing import CliRunner

import saferedir as sr
from saferedir.cli import app
from saferedir.training.esd.train_config import TrainConfig as ESDTrainConfig
from saferedir.training.uce.train import TrainConfig as UCETrainConfig

QUICK = ["--steps", "2", "--sampling-steps", "3", "--batch", "2", "--rank", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    PIPELINES["sd"].build().save_pretrained(folder)
    return folder


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["train", *map(str, arguments)], env={"COLUMNS": "200"})


def pairs_in(folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    rows = [{"unsafe": "a star", "safe": "a ring"}, {"unsafe": "my star", "safe": "my ring"}, {"safe": "the moon"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_uce_from_an_anchor_and_from_a_file(model: Path, tmp_path: Path) -> None:
    words = ("--model", model, "--concept", "star", "--device", "cpu")
    made = invoke("uce", *words, "--anchor", "circle", "--count", 12, "--out", tmp_path / "one")
    assert made.exit_code == 0 and "Guard written to" in made.output, made.output
    training = sr.Guard.from_pretrained(tmp_path / "one").config.training
    defaults = UCETrainConfig()
    assert training["pairs"] == 12 and training["preserved"] > 0
    assert {name: training[name] for name in ("ridge", "tokens", "erase_scale")} == {
        "ridge": defaults.ridge, "tokens": defaults.tokens, "erase_scale": defaults.erase_scale
    }  # fmt: skip
    given = invoke(
        "uce", *words, "--pairs", pairs_in(tmp_path), "--out", tmp_path / "two", "--ridge", 3, "--tokens", "last"
    )
    assert given.exit_code == 0, given.output
    guard = sr.Guard.from_pretrained(tmp_path / "two")
    assert (guard.method, guard.config.training["ridge"], guard.config.training["tokens"]) == ("uce", 3.0, "last")
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["training"] == guard.config.training


def test_esd_from_a_word_and_from_a_file(model: Path, tmp_path: Path) -> None:
    words = ("--model", model, "--concept", "star", "--device", "cpu", *QUICK)
    made = invoke("esd", *words, "--out", tmp_path / "one")
    assert made.exit_code == 0 and "Guard written to" in made.output, made.output
    training = sr.Guard.from_pretrained(tmp_path / "one").config.training
    defaults = ESDTrainConfig()
    assert (training["prompts"], training["reference"], training["eta"]) == (1, "empty", defaults.eta)
    given = invoke(
        "esd", *words, "--pairs", pairs_in(tmp_path), "--reference", "safe", "--variant", "u", "--out", tmp_path / "two"
    )
    assert given.exit_code == 0, given.output
    guard = sr.Guard.from_pretrained(tmp_path / "two")
    assert (guard.method, guard.config.training["prompts"], guard.config.training["variant"]) == ("esd", 2, "u")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("uce",), 2, "give --anchor or --pairs"),
        (("esd", "--reference", "safe"), 2, "these prompts have no counterparts"),
        (("uce", "--pairs", "PAIRS", "--anchor", "circle"), 2, "--anchor is for making pairs"),
        (("uce", "--pairs", "PAIRS", "--tokens", "some"), 1, "tokens"),
        (("esd", "--variant", "z"), 1, "variant"),
    ],
)
def test_refusals(arguments: tuple[str, ...], code: int, sentence: str, model: Path, tmp_path: Path) -> None:
    words = [str(pairs_in(tmp_path)) if word == "PAIRS" else word for word in arguments]
    result = invoke(*words, "--model", model, "--concept", "star", "--out", tmp_path / "guard")
    output = " ".join(result.output.replace("│", " ").split())
    assert result.exit_code == code and sentence in output, result.output
    assert not (tmp_path / "guard").exists()
