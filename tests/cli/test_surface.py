"""The command line as a person meets it: lists, prompts and options from files, LoRAs, tables that read at 80 columns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from saferedir.cli import app, common, decisions_table
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


@pytest.mark.parametrize("words", [("guards", "list"), ("judge", "list"), ("pictoworld", "words"), ("methods",)])
def test_lists_speak_json(words: tuple[str, ...]) -> None:
    assert json.loads(RUNNER.invoke(app, [*words, "--json"]).output)


def test_help_and_lists_do_not_wait_for_torch() -> None:
    code = (
        "import sys; from saferedir.cli import app\n"
        "for words in (['--help'], ['generate', '--help'], ['guards', 'list'], ['methods'], ['--version']):\n"
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


def test_a_stopped_run_does_not_go_on_with_other_options_or_another_guard(tmp_path: Path) -> None:
    from saferedir.cli.resuming import digest_of_json, guard_digests

    assert digest_of_json({"steps": 2}) != digest_of_json({"steps": 2, "negative_prompt": "blue"})
    folder = tmp_path / "guard"
    folder.mkdir()
    (folder / "guard_config.json").write_text("{}")
    first = guard_digests([str(folder), "pictoworld/star", "owner/name"])
    (folder / "guard_config.json").write_text('{"a": 1}')
    second = guard_digests([str(folder), "pictoworld/star", "owner/name"])
    assert first.keys() == second.keys() == {str(folder), "pictoworld/star"}
    assert first[str(folder)] != second[str(folder)] and first["pictoworld/star"] == second["pictoworld/star"]


def test_options_come_from_a_file_and_what_is_typed_wins(tmp_path: Path) -> None:
    file = tmp_path / "saferedir.toml"
    file.write_text('[generate]\nsteps = 3\nseed = 5\ncall = {eta = 0.5}\nguard = ["pictoworld/star"]\n')
    call("--config", str(file), "generate", "a blue heart", "--seed", "7", "--out", str(tmp_path / "out"))
    record = summary(tmp_path / "out")
    assert (record["num_inference_steps"], record["seed"], record["eta"]) == (3, 7, 0.5)
    assert record["guards"] == ["pictoworld/star"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[generates]\nsteps = 3\n", "a table of one of the commands"),
        ("[generate]\nstep = 3\n", "has no option 'step'"),
        ('[generate]\nguard = "pictoworld/star"\n', "expected a list"),
        ("[generate\n", "cannot be read as TOML"),
        ("[train.saferedir]\nrollout = 3\n", "has no option 'rollout'"),
        ("[generate]\nsteps = 30.7\n", "unable to parse string as an integer"),
        ("[generate]\nnum_images = true\n", "num_images is True; expected a value"),
        ("[generate]\nguard = {a = 1}\n", "expected a list"),
        ("[bench.run]\nno-report = true\n", "has no option 'no-report'"),
        ('[generate]\nsteps = "many"\n', "unable to parse string as an integer"),
    ],
)
def test_a_wrong_file_of_options_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "saferedir.toml"
    file.write_text(text)
    assert sentence in call("--config", str(file), "generate", "a", "--out", str(tmp_path / "out"), code=2)
    assert not (tmp_path / "out").exists()


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


def test_guards_test_wants_a_judge_for_a_guard_without_a_word_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "forget.txt").write_text("a red star on white\n")
    (tmp_path / "retain.txt").write_text("a green square\n")
    words = [
        "--forget",
        str(tmp_path / "forget.txt"),
        "--retain",
        str(tmp_path / "retain.txt"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert "give a verifier" in call("guards", "test", "pictoworld/star-duo", *words, *STEPS, code=1)
    assert not (tmp_path / "out").exists()


def test_guards_test_begins_with_the_failures(tmp_path: Path) -> None:
    (tmp_path / "forget.txt").write_text("a red star on white\na blue circle\n")
    (tmp_path / "retain.txt").write_text("a green square\na yellow star over the sky\n")
    call(
        "guards", "test", "pictoworld/star", "--forget", str(tmp_path / "forget.txt"), "--retain", str(tmp_path / "retain.txt"),
        "--out", str(tmp_path / "out"), *STEPS,
    )  # fmt: skip
    record = json.loads((tmp_path / "out" / "guard_test.json").read_text())
    failures = [case["prompt"] for case in record["cases"] if case["failure"]]
    assert (
        failures == ["a blue circle", "a yellow star over the sky"] == [case["prompt"] for case in record["cases"][:2]]
    )
    page = (tmp_path / "out" / "index.html").read_text()
    places = [
        page.index(f"<p>{prompt}</p>")
        for prompt in ("a blue circle", "a yellow star over the sky", "a red star on white")
    ]
    assert places == sorted(places) and "No judge" in page
    for case in record["cases"]:
        assert (tmp_path / "out" / case["before"]).is_file() and (tmp_path / "out" / case["after"]).is_file()
