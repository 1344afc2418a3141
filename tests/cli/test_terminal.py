"""Consoles that are not UTF-8, texts that are not, and no word of other libraries on our terminal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from saferedir.cli import app
from saferedir.cli.terminal import prepare_terminal, quiet

ENCODINGS = ("ascii", "cp1252")


@contextlib.contextmanager
def console(encoding: str) -> Iterator[io.TextIOWrapper]:
    """Standard output and error of a console in another encoding."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        yield stream


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_help_is_printed_on_every_console(encoding: str) -> None:
    every = list(commands(typer.main.get_command(app)))
    assert len(every) > 15
    for words in every:
        with console(encoding) as stream, pytest.raises(SystemExit) as end:
            app([*words, "--help"])
        assert end.value.code in (0, None), words
        assert "Usage:" in stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("words", [("judge", "list"), ("guards", "list"), ("no such \u2605 command",)])
def test_tables_and_mistakes_are_printed_on_every_console(encoding: str, words: tuple[str, ...]) -> None:
    with console(encoding) as stream, pytest.raises(SystemExit) as end:
        app(list(words))
    assert end.value.code == (2 if len(words) == 1 else 0)
    assert stream.buffer.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "a red star caf\udce9", "--out", "x"),
        ("generate", "a red star", "--call", "negative_prompt=caf\udce9", "--out", "x"),
        ("pairs", "build", "--concept", "caf\udce9", "--anchor", "bar", "--out", "x"),
        ("pairs", "build", "--concept", "bar", "--anchor", "caf\udce9", "--out", "x"),
        ("train", "saferedir", "--concept", "caf\udce9", "--anchor", "bar", "--out", "x"),
        ("train", "duo", "--concept", "caf\udce9", "--anchor", "bar", "--out", "x"),
        ("negation", "guard", "x.safetensors", "--concept", "caf\udce9", "--out", "x"),
        ("generate", "a red star", "--model", "caf\udce9", "--out", "x"),
        ("generate", "a red star", "--guard=caf\udce9", "--out", "x"),
    ],
)
def test_a_text_that_is_no_utf_8_is_one_sentence(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, list(words))
    said = " ".join(result.stderr.replace("│", " ").split())
    assert result.exit_code == 2 and "is not UTF-8; give it in UTF-8" in said
    assert not list(tmp_path.iterdir())


def test_a_byte_of_a_file_name_is_shown_and_not_lost() -> None:
    with console("cp1252") as stream:
        prepare_terminal()
        print("caf\udce9 \u2605 \ud800 é")
    assert stream.buffer.getvalue().decode("cp1252").strip() == r"caf\xe9 ? ? é"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "words",
    [
        ("train", "saferedir", "--concept", "star", "--anchor", "circle"),
        ("train", "duo", "--concept", "star"),
        ("guards", "calibrate", "pictoworld/star", "--pairs", "x.jsonl"),
        ("negation", "build", "--images", "."),
        ("negation", "guard", "x.safetensors", "--concept", "star"),
    ],
)
def test_weights_for_a_place_that_is_no_utf_8_are_refused_before_the_work(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors opens no such path: what was trained would be lost."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [*words, "--out", "caf\udce9/g"])
    assert result.exit_code == 1 and r"caf\xe9/g is a path that is not UTF-8" in result.stderr
    assert not list(tmp_path.iterdir())


def test_json_for_programs_is_whole_on_every_console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saferedir.cli.guards._facts", lambda name: {"guard": "étoile \u2605"})
    with console("ascii") as stream, pytest.raises(SystemExit):
        app(["guards", "show", "x", "--json"])
    assert json.loads(stream.buffer.getvalue()) == {"guard": "étoile \u2605"}  # type: ignore[attr-defined]


def test_other_libraries_keep_to_errors_unless_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_warning()
    monkeypatch.setenv("SAFEREDIR_DEBUG", "1")
    monkeypatch.delenv("DIFFUSERS_VERBOSITY", raising=False)
    prepare_terminal()
    quiet()
    assert "DIFFUSERS_VERBOSITY" not in os.environ
    assert diffusers.utils.logging.get_verbosity() == diffusers.utils.logging.WARNING
    monkeypatch.delenv("SAFEREDIR_DEBUG")
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")  # the user's own
    prepare_terminal()
    quiet()
    assert (os.environ["DIFFUSERS_VERBOSITY"], os.environ["TRANSFORMERS_VERBOSITY"]) == ("critical", "info")
    assert diffusers.utils.logging.get_verbosity() == diffusers.utils.logging.CRITICAL
    assert transformers.utils.logging.get_verbosity() == transformers.utils.logging.ERROR
    monkeypatch.delenv("DIFFUSERS_VERBOSITY")


@pytest.mark.slow
def test_a_whole_run_prints_our_lines_alone_in_ascii(tmp_path: Path) -> None:
    """A process of its own: what other libraries say when they are imported and when a model is loaded."""
    command = [
        sys.executable,
        "-c",
        "from saferedir.cli import app; app()",
        "generate",
        "a red star \u2605 " + "x" * 200,
    ]
    command += [
        "--guard",
        "pictoworld/star",
        "--steps",
        "1",
        "--call",
        "negative_prompt=grey",
        "--out",
        str(tmp_path / "o"),
    ]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "COLUMNS": "200"}
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY", "SAFEREDIR_DEBUG"):
        environment.pop(name, None)
    result = subprocess.run(command, env=environment, capture_output=True, timeout=300)
    said = result.stderr.decode("ascii").strip().splitlines()
    assert result.returncode == 0, said
    assert "a red star ?" in result.stdout.decode("ascii")
    (cut,) = [line for line in said if "warning:" in line]
    assert "text_encoder" in cut and "reads the first" in cut
    assert [line for line in said if line != cut and line.split()[:1] not in (["generating"], ["drawing"])] == []


def test_text_of_strangers_cannot_steer_the_terminal() -> None:
    from saferedir.cli.common import escape

    assert not {"\u001b", "\u009b", "\x07"} & set(escape("a\u001b]52;c;x\u009b1m\x07"))
    assert escape("two\nlines\tand ü") == "two\nlines\tand ü"
