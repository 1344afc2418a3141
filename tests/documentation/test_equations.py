"""The pages of equations: every method has one, and each equation is computed where the page says; what cites one finds it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from tests.documentation.pages import ROOT, blocks, name_of, text_of

from saferedir.guards.registry import methods

EQUATIONS = sorted((ROOT / "docs" / "methods").glob("*.md"))
_ROW = re.compile(r"^\| (\(\d+\)(?:, \(\d+\))*) \| \[`[^`]+`\]\(([^)]+)\) \| (.+) \|$", re.MULTILINE)
_CITED = re.compile(r"docs/methods/(\w+)\.md((?:(?:,| to| and)? ?\(\d+\))*)")
by_page = pytest.mark.parametrize("page", EQUATIONS, ids=name_of)


def numbers_in(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\((\d+)\)", text)]


def equations_of(page: Path) -> list[int]:
    """Numbers at the beginning of a line of the page's formulas, in order."""
    return [
        int(number)
        for block in blocks(page, "text")
        for number in re.findall(r"^\((\d+)\)", block.source, re.MULTILINE)
    ]


def names_in(path: Path) -> set[str]:
    """`name` and `Class.name` of every function and class of a module."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


def test_every_method_has_a_page() -> None:
    assert {page.stem for page in EQUATIONS} == {re.sub("_r[12]$|_many$", "", method) for method in methods()}


@by_page
def test_equations_are_numbered_in_order_and_each_is_computed_somewhere(page: Path) -> None:
    numbers = equations_of(page)
    assert numbers == list(range(1, len(numbers) + 1)) and numbers
    placed = {number for row in _ROW.finditer(text_of(page)) for number in numbers_in(row[1])}
    assert placed == set(numbers)


@by_page
def test_functions_that_compute_them_exist(page: Path) -> None:
    for row in _ROW.finditer(text_of(page)):
        names = re.findall(r"`([A-Za-z_][\w.]*)`", row[3].split(":")[0])
        assert names and set(names) <= names_in((page.parent / row[2]).resolve()), row[0]


def test_what_the_code_cites_is_there() -> None:
    numbers = {page.stem: set(equations_of(page)) for page in EQUATIONS}
    cited = set()
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        for found in _CITED.finditer(re.sub(r"\s+", " ", path.read_text(encoding="utf-8"))):
            assert set(numbers_in(found[2])) <= numbers[found[1]], f"{name_of(path)} cites {found[0]}"
            cited.add(found[1])
    assert cited <= set(numbers)


def test_no_docstring_cites_a_text_that_is_not_here() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")}
    assert not [name_of(path) for path, text in texts.items() if re.search(r"(our|its|the) specification", text)]
