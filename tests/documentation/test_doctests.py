"""The docstrings of the public names: an example that runs, a first line that stands alone, one argument a line."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import saferedir
from saferedir import guard

TRAIN_CONFIGS = (
    "saferedir.training.saferedir.train_config",
    "saferedir.training.duo.train_config",
    "saferedir.training.uce.train",
    "saferedir.training.esd.train_config",
)
PUBLIC: dict[str, Any] = {
    **{f"saferedir.{name}": getattr(saferedir, name) for name in saferedir.__all__ if name != "__version__"},
    **{f"saferedir.guard.{name}": getattr(guard, name) for name in guard.__all__ if name != "Guard"},
    **{f"{module}.TrainConfig": importlib.import_module(module).TrainConfig for module in TRAIN_CONFIGS},
}


def documented(text: str, section: str) -> set[str]:
    """Names that a section of a docstring lists, one a line."""
    body = re.search(rf"^{section}:\n((?:(?: +.*)?\n)*)", inspect.cleandoc(text) + "\n", re.MULTILINE)
    return set(re.findall(r"^    (\w+): \S", body[1] if body else "", re.MULTILINE))


#: their examples compute for minutes; tests of their own run them at other sizes
LONG = {
    "saferedir.Bench", "saferedir.train_saferedir", "saferedir.train_duo", "saferedir.train_esd", "saferedir.train_verifier",
}  # fmt: skip


def test_every_example_runs_but_for_the_long_ones() -> None:
    skipped = {
        name
        for name, thing in PUBLIC.items()
        for test in doctest.DocTestFinder(exclude_empty=True).find(thing, name, globs={})
        if test.name == name and all(example.options.get(doctest.SKIP) for example in test.examples[1:])
    }
    assert skipped == LONG


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_runs(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    tests = doctest.DocTestFinder(exclude_empty=True).find(PUBLIC[name], name, globs={})
    assert any(test.examples and test.name == name for test in tests), f"{name} has no example"
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    failed = [test.name for test in tests if doctest.DocTestRunner(optionflags=flags).run(test).failed]
    assert not failed


@pytest.mark.parametrize("name", PUBLIC)
def test_first_lines_stand_alone(name: str) -> None:
    members = vars(PUBLIC[name]).values() if inspect.isclass(PUBLIC[name]) else ()
    functions = [member for member in members if inspect.isfunction(member) and member.__name__[0] != "_"]
    for thing in (PUBLIC[name], *functions):
        first, *rest = inspect.getdoc(thing).splitlines()  # type: ignore[union-attr]
        assert re.search(r"[.;:)]$", first) and (not rest or not rest[0]), f"{name}, {thing.__name__}: {first!r}"


RECORDS = [name for name, thing in PUBLIC.items() if dataclasses.is_dataclass(thing) or hasattr(thing, "_fields")]


@pytest.mark.parametrize("name", [*RECORDS, *(name for name, thing in PUBLIC.items() if inspect.isfunction(thing))])
def test_every_argument_has_its_line(name: str) -> None:
    thing, text = PUBLIC[name], inspect.getdoc(PUBLIC[name]) or ""
    if inspect.isfunction(thing):
        expected, listed = set(inspect.signature(thing).parameters), documented(text, "Args")
    else:
        fields = dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ()
        expected, listed = {field.name for field in fields} or set(thing._fields), documented(text, "Attributes")
    assert listed >= expected, f"{name}: {sorted(expected - listed)} have no line"
