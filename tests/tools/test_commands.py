"""`python -m tools.pictoworld`: its commands behave as those of `saferedir` do, and none of it is in the package."""

from __future__ import annotations

import shutil
import tomllib
from collections import namedtuple
from pathlib import Path

import pytest
from setuptools import find_packages
from tools.pictoworld.commands import app
from typer.testing import CliRunner

import saferedir as sr
from saferedir.guards.spell import SPELL
from saferedir.pictoworld import methods
from saferedir.pictoworld.methods import WITH_DATA
from saferedir.pictoworld.tasks import TASKS
from saferedir.utils.locks import output_lock

ROOT = Path(__file__).parents[2]
COMMANDS = ("train", "guards", "report")


def test_the_package_holds_nothing_of_it() -> None:
    where = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["where"]
    found = {name for folder in where for name in find_packages(str(ROOT / folder))}
    assert "saferedir.pictoworld" in found and all(name.split(".")[0] == "saferedir" for name in found)
    rooms = {name for name in found if name.startswith("saferedir.pictoworld.")}
    assert rooms == {"saferedir.pictoworld.world2"}  # the second world's content, which users need


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches_with_an_example(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert f"Example: python -m tools.pictoworld {name}" in " ".join(result.output.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_an_out_that_cannot_be_is_refused_before_the_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(out: Path) -> str:
        result = CliRunner().invoke(app, [name, "--out", str(out)])
        assert result.exit_code == 1 and result.stderr.startswith("error: ") and "Traceback" not in result.output
        return result.stderr

    with output_lock(tmp_path / "taken"):
        assert "another run is writing to" in refusal(tmp_path / "taken")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    assert "is not empty" in refusal(tmp_path / "mine")
    if name != "report":
        assert "is a path that is not UTF-8" in refusal(tmp_path / "caf\udce9")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    assert "MB free, but this needs about" in refusal(tmp_path / "x" / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "letter.txt"]


def test_report(tmp_path: Path) -> None:
    few = "--images 2 --concept-images 1 --judge-images 20 --steps 1".split()
    result = CliRunner().invoke(app, ["report", "--out", str(tmp_path / "report"), *few])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "pictoworld.md", "pictoworld.png", "report.json",
    ]  # fmt: skip
    assert "missed" in result.output  # one sampling step draws nothing


def test_guards_are_written_and_other_folders_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods.negation_set, "__defaults__", (6, 0))
    out = tmp_path / "guards"
    first = CliRunner().invoke(app, ["guards", "--out", str(out), "--device", "cpu"])
    assert first.exit_code == 0, first.output
    found = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert found == sorted(f"{name}-{method}" for name in TASKS for method in WITH_DATA)
    guard = sr.Guard.from_pretrained(out / "emblem-spell")
    assert type(guard) is SPELL and guard.negation is not None and len(guard.negation) == 6
    again = CliRunner().invoke(app, ["guards", "--out", str(out)])
    assert again.exit_code == 1 and "is not empty" in again.output
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    foreign = CliRunner().invoke(app, ["guards", "--out", str(tmp_path / "mine"), "--force"])
    assert foreign.exit_code == 1 and (tmp_path / "mine" / "letter.txt").read_text() == "keep"
    forced = CliRunner().invoke(app, ["guards", "--out", str(out), "--device", "cpu", "--force"])
    assert forced.exit_code == 0, forced.output
