"""`saferedir pairs build` and `train saferedir --concept … --anchor …`: what they write, show and refuse."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from saferedir.cli import app, common
from saferedir.guards.saferedir.guard import SafeRedir
from saferedir.training.saferedir.dataset import read_pairs

Run = Callable[..., Any]
WORD = ("--concept", "umbrella", "--anchor", "lantern")
TOY = ("--count", 100, "--steps", 2, "--rollouts", 6, "--rollout-steps", 1)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    for screen in (common.console, common.errors):  # pytest's workers fix the width before any test runs
        monkeypatch.setattr(screen, "_width", 200)

    def invoke(*words: object) -> Any:
        return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})

    return invoke


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def said(result: Any) -> str:
    return " ".join(result.stderr.replace("│", " ").split())


def test_help_teaches_with_an_example(run: Run) -> None:
    result = run("pairs", "build", "--help")
    assert result.exit_code == 0 and "saferedir pairs build" in " ".join(result.output.split())


def test_build_writes_shows_and_reports(run: Run, tmp_path: Path) -> None:
    (tmp_path / "synonyms.json").write_text('{"synonyms": ["parasol"], "near": ["tent"]}')
    (tmp_path / "captions.txt").write_text("an umbrella [bold] on a bench\na cat\n")
    (tmp_path / "test.csv").write_text("prompt\nA cat.\n")
    out = tmp_path / "deep" / "pairs.jsonl"
    files = ("--synonyms", tmp_path / "synonyms.json", "--captions", tmp_path / "captions.txt")
    words = (*WORD, *files, "--evaluation", tmp_path / "test.csv", "--count", 120, "--show", 30)
    result = run("pairs", "build", *words, "--out", out)
    assert result.exit_code == 0, result.output
    rows = read_pairs(out)
    assert len(rows) == 200 and sum(row.unsafe is None for row in rows) == 80
    assert leftovers(out.parent) == ["pairs.jsonl"]
    assert rows[0].unsafe == "an umbrella [bold] on a bench" and rows[0].safe == "a lantern [bold] on a bench"
    assert all(row.safe != "a cat" for row in rows)
    for text in (
        "Samples",
        "hard negatives",
        "leak: 'a cat' is 'A cat.'",
        "duplicates removed",
        "equal length in words",
        "neutral word in unsafe, safe, benign prompts",
    ):
        assert text in result.output
    assert not result.stderr
    again = run("pairs", "build", *words, "--out", tmp_path / "again.jsonl")
    assert again.exit_code == 0 and (tmp_path / "again.jsonl").read_text() == out.read_text()


def test_what_was_not_given_is_warned_of(run: Run, tmp_path: Path) -> None:
    result = run("pairs", "build", *WORD, "--out", tmp_path / "pairs.jsonl")
    assert result.exit_code == 0
    warnings = result.stderr.strip().splitlines()
    assert len(warnings) == 2 and all(line.startswith("warning: ") for line in warnings)
    assert '{"synonyms": [...], "near": [...]}' in warnings[0]
    assert "leaks not checked: give --evaluation" in warnings[1]


def test_an_earlier_file_is_replaced_by_force_only(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    out.write_text("mine")
    refused = run("pairs", "build", *WORD, "--out", out)
    assert refused.exit_code == 1 and "--force" in refused.stderr and out.read_text() == "mine"
    forced = run("pairs", "build", *WORD, "--out", out, "--force", "--count", 20)
    assert forced.exit_code == 0 and len(read_pairs(out)) == 33
    assert "are few" in forced.stderr and leftovers(tmp_path) == ["pairs.jsonl"]


def test_several_anchors_and_the_models_tokenizer(run: Run, tmp_path: Path) -> None:
    anchors = ("--anchor", "box with a lid", "--anchor", "circle")
    words = ("--concept", "star", *anchors, "--model", "pictoworld", "--no-padding", "--count", 50)
    result = run("pairs", "build", *words, "--out", tmp_path / "pairs.jsonl")
    assert result.exit_code == 0 and "equal length in tokens" in result.output and "50 (100 %)" in result.output
    assert all("box" not in row.safe for row in read_pairs(tmp_path / "pairs.jsonl") if row.unsafe)


def test_paraphrases_of_a_stubbed_model(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from saferedir.training.saferedir.pairs import paraphrase

    def load(name: str, **settings: Any) -> Callable[[Sequence[str]], list[str]]:
        assert name == "my-model"
        return lambda prompts: [f"kindly show {prompt}" for prompt in prompts]

    monkeypatch.setattr(paraphrase, "load_paraphraser", load)
    result = run(
        "pairs", "build", *WORD, "--paraphrase-model", "my-model", "--count", 50, "--out", tmp_path / "p.jsonl"
    )
    assert result.exit_code == 0 and "17 from paraphrases" in result.output
    assert sum(row.safe.startswith("kindly") for row in read_pairs(tmp_path / "p.jsonl")) == 17


def test_writing_that_fails_leaves_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("saferedir.utils.files.os.fsync", full)
    result = run("pairs", "build", *WORD, "--out", tmp_path / "pairs.jsonl")
    assert result.exit_code == 1 and "no space is left" in result.stderr and leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--concept", "star", "--anchor", "Stars"), 1, "contains 'star'"),
        (("--concept", "star", "--anchor", "a star"), 1, "is the concept itself"),
        (("--concept", " ", "--anchor", "circle"), 2, "needs a name"),
        (("--concept", "star"), 2, "what should take the concept's place"),
        ((*WORD, "--kind", "mood"), 1, "the kinds are object"),
        ((*WORD, "--synonyms", "EMPTY"), 1, "is empty"),
        ((*WORD, "--captions", "TABLE"), 1, "expected one called caption"),
        ((*WORD, "--evaluation", "MISSING"), 1, "cannot be read"),
        ((*WORD, "--captions", "FOLDER"), 1, "cannot be read"),
        ((*WORD, "--count", 1_000_000), 1, "at most"),
        ((*WORD, "--count", 0), 2, "count"),
        ((*WORD, "--model", "FOLDER"), 1, "no tokenizer could be loaded"),
        ((*WORD, "--paraphrase-model", "FOLDER"), 1, "no text model could be loaded"),
        ((*WORD, "--out", "FOLDER"), 1, "is a folder"),
        ((*WORD, "--captions", "OUT", "--force"), 1, "also read from"),
    ],
)
def test_bad_input(run: Run, tmp_path: Path, words: tuple[object, ...], code: int, says: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "table.csv").write_text("id,label\n1,a\n")
    places = {"EMPTY": "empty", "TABLE": "table.csv", "MISSING": "no", "FOLDER": "folder", "OUT": "x/out.jsonl"}
    before = leftovers(tmp_path)
    out = () if "--out" in words else ("--out", tmp_path / "x" / "out.jsonl")
    result = run("pairs", "build", *(tmp_path / places[w] if w in places else w for w in words), *out)
    assert result.exit_code == code, result.output
    assert says in said(result) and "Traceback" not in result.output
    if code == 1:
        assert len(result.stderr.strip().splitlines()) == 1
    assert leftovers(tmp_path) == before and leftovers(tmp_path / "folder") == []


def test_training_from_a_word(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "guard"
    words = ("train", "saferedir", "--concept", "star", "--anchor", "circle", "--out", out, *TOY)
    result = run(*words, "--anchor-prompt", "a blue circle on white")
    assert result.exit_code == 0, result.output
    assert leftovers(tmp_path) == ["guard"] and "pairs.jsonl" in result.output
    rows = read_pairs(out / "pairs.jsonl")
    assert sum(row.unsafe is not None for row in rows) == 100
    config = SafeRedir.from_pretrained(out).config
    assert config.training["pairs"] == 100 and config.training["anchor"] == "a blue circle on white"
    assert json.loads((out / "summary.json").read_text())["concept"] == "star"
    # a finished guard is replaced only when told
    before = (out / "model.safetensors").stat().st_mtime_ns
    refused = run(*words)
    assert refused.exit_code == 1 and "finished work" in refused.stderr and "--force" in refused.stderr
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    assert run(*words, "--force").exit_code == 0
    assert (out / "model.safetensors").stat().st_mtime_ns > before
    assert leftovers(tmp_path) == ["guard"] and read_pairs(out / "pairs.jsonl") == rows


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "give --pairs, or --anchor"),
        (("--anchor", "stars"), 1, "contains 'star'"),
        (("--anchor", "circle", "--count", 20), 2, "too few"),
        (("--anchor", "circle", "--synonyms", "none"), 1, "cannot be read"),
        (("--pairs", "PAIRS", "--anchor", "a circle on white"), 2, "--anchor-prompt"),
        (("--pairs", "PAIRS", "--captions", "none"), 2, "--captions is for making pairs"),
    ],
)
def test_bad_training_input_leaves_nothing(
    run: Run, tmp_path: Path, words: tuple[object, ...], code: int, says: str
) -> None:
    (tmp_path / "pairs").write_text('{"unsafe": "a star", "safe": "a circle"}\n')
    words = tuple(tmp_path / "pairs" if word == "PAIRS" else word for word in words)
    result = run("train", "saferedir", "--concept", "star", "--out", tmp_path / "guard", *words)
    assert result.exit_code == code, result.output
    assert says in said(result) and leftovers(tmp_path) == ["pairs"]
