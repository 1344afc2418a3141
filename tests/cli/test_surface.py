"""The command line as a person meets it: lists, prompts and options from files, LoRAs, tables that read at 80 columns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import make_pipeline
from typer.testing import CliRunner

from saferedir.cli import app, common, generate
from saferedir.guards.catalogue import METHODS
from saferedir.guards.registry import guard_class, methods

RUNNER = CliRunner()
STEPS = ("--steps", "2")


def call(*words: str, code: int = 0) -> str:
    result = RUNNER.invoke(app, list(words))
    assert result.exit_code == code, result.output
    return " ".join(result.output.replace("│", " ").split())


def summary(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return record


def test_the_catalogue_names_the_registered_classes() -> None:
    assert sorted(method.name for method in METHODS) == methods()
    for method in METHODS:
        module, _, name = method.target.partition(":")
        found = guard_class(method.name)
        assert (found.__module__, found.__name__) == (module, name) or name in vars(sys.modules[module])
        assert found.method == method.name


def test_methods_as_a_table_and_as_json() -> None:
    shown = call("methods")
    for method in METHODS:
        assert method.name in shown
    rows = json.loads(RUNNER.invoke(app, ["methods", "--json"]).output)
    assert [row["name"] for row in rows] == [method.name for method in METHODS]
    assert {row["paper"] for row in rows if row["name"] == "saferedir"} == {"2601.08623"}


@pytest.mark.parametrize(
    "words", [("guards", "list"), ("judge", "list"), ("pictoworld", "words"), ("methods",), ("attack", "list")]
)
def test_lists_speak_json(words: tuple[str, ...]) -> None:
    assert json.loads(RUNNER.invoke(app, [*words, "--json"]).output)


def test_an_old_option_is_taken_and_not_in_the_help(tmp_path: Path) -> None:
    for command in ("run", "resume", "report", "rejudge"):
        shown = call("bench", command, "--help")
        assert "--images" in shown and "--pictures" not in shown
    assert "No such option" not in call("bench", "report", str(tmp_path), "--pictures", code=1)
    assert "No such option" in call("bench", "report", str(tmp_path), "--paintings", code=2)


def test_help_and_lists_do_not_wait_for_torch() -> None:
    code = (
        "import sys; from saferedir.cli import app\n"
        "for words in (['--help'], ['generate', '--help'], ['guards', 'list'], ['methods'], ['attack', 'list'], ['--version']):\n"
        "    try: app(words)\n"
        "    except SystemExit as end: assert not end.code, words\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_prompts_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle on white\na blue heart over the sky\na red circle on white\n", encoding="utf-8")
    call("generate", "--prompts", str(file), "--out", str(tmp_path / "out"), *STEPS, "--quiet")
    record = summary(tmp_path / "out")
    assert [row["prompt"] for row in record["images"]] == file.read_text().splitlines()
    assert "sha1" in record["prompts_file"]
    assert "not both" in call("generate", "a", "--prompts", str(file), "--out", str(tmp_path / "b"), code=2)
    assert not (tmp_path / "b").exists()


def test_quiet_prints_what_must_be_known_and_nothing_else(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["generate", "a red circle", "--out", str(tmp_path / "out"), *STEPS, "--quiet"])
    assert result.exit_code == 0 and result.stdout == "" and not common.console.quiet
    assert "These images are unguarded" in result.stderr


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("style.safetensors:much", "is no scale"),
        ("style.safetensors:nan", "is no scale"),
        (":0.5", "there is no LoRA at"),
        ("./nothing.safetensors", "there is no LoRA at ./nothing.safetensors"),
    ],
)
def test_a_wrong_lora_is_one_sentence(value: str, sentence: str, tmp_path: Path) -> None:
    assert sentence in call("generate", "a", "--lora", value, "--out", str(tmp_path / "out"), code=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("has_checker", [False, True])
def test_one_file_without_its_safety_checker_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_checker: bool
) -> None:
    pipe = make_pipeline()
    if has_checker:
        vars(pipe)["safety_checker"] = object()
    monkeypatch.setattr(generate, "load_model", lambda *args, **more: pipe)
    monkeypatch.setattr(generate, "_generate", lambda *args, **more: (one for one in ()))
    words = ("generate", "a", "--steps", "1", "--out")
    text = call(*words, str(tmp_path / "out"), "--model", str(tmp_path / "model.safetensors"))
    assert ("without its safety checker, so only the guards check these images" in text) is not has_checker
    assert "safety checker" not in call(*words, str(tmp_path / "folder"), "--model", str(tmp_path))
