"""The site and the contributor's files: what they name exists, and every page has its place. Building the site: `make docs`."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.documentation.pages import PAGES, ROOT, blocks, name_of, text_of

import saferedir

REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))
GUIDE = ROOT / "CONTRIBUTING.md"
by_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml without making the Python objects that it names."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def read_yaml(path: str) -> Any:
    return yaml.load((ROOT / path).read_text(encoding="utf-8"), Loader)


def in_navigation(entry: Any) -> list[str]:
    """Every page below an entry of the navigation."""
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in in_navigation(part)]


def resolved(name: str) -> Any:
    """What a dotted name stands for; ImportError or AttributeError where it stands for nothing."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ImportError(name)


def test_every_page_is_in_the_navigation() -> None:
    pages = in_navigation(read_yaml("mkdocs.yml")["nav"])
    docs = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert len(pages) == len(set(pages))
    assert {page for page in pages if not page.startswith("repository/")} == docs | {"index.md"}
    assert all((ROOT / page.removeprefix("repository/")).is_file() for page in pages if page.startswith("repository/"))


@pytest.mark.parametrize("page", REFERENCE, ids=name_of)
def test_names_of_the_reference_exist_and_are_documented(page: Path) -> None:
    names = re.findall(r"^::: (\S+)$", text_of(page), re.MULTILINE)
    assert names
    assert not [name for name in names if not resolved(name).__doc__]


def test_the_reference_has_every_public_name() -> None:
    names = re.findall(r"^::: saferedir\.(\w+)$", text_of(ROOT / "docs" / "reference" / "saferedir.md"), re.MULTILINE)
    assert sorted(names) == sorted(set(saferedir.__all__) - {"__version__"})


@by_page
def test_links_lead_somewhere(page: Path) -> None:
    text = text_of(page)
    for block in blocks(page):
        text = text.replace(block.source, "")
    links = re.findall(r"\]\((?![a-z]+:|#)([^)\s#]+)", text)
    assert not [link for link in links if not (page.parent / link).exists()]


def test_files_that_contributing_names_exist() -> None:
    """But for those that a reader is to write, which the page calls after its examples."""
    text = text_of(GUIDE)
    for block in blocks(GUIDE, "python"):
        text = text.replace(block.source, "")
    own = re.compile(r"fade|brightness|capitals|^tests/attacks/$")
    paths = {
        path
        for path in re.findall(r"`((?:src|tests|docs|benchmarks)/[^`\s]*|\.[a-z][^`\s]*)`", text)
        if not own.search(path)
    }
    assert len(paths) > 10
    assert not [path for path in paths if not (ROOT / path).exists()]
    bare = {name for name in re.findall(r"`(\w+\.py)`", text) if not own.search(name)}
    known = {path.name for folder in ("src", "tests") for path in (ROOT / folder).rglob("*.py")}
    assert bare <= known


def test_tables_that_contributing_names_exist() -> None:
    """`NAME` in the guide is a constant of src or tests, so that a reader finds it."""
    source = "\n".join(
        path.read_text(encoding="utf-8") for folder in ("src", "tests") for path in (ROOT / folder).rglob("*.py")
    )
    names = set(re.findall(r"`(_?[A-Z]{4,}[A-Z_]*)`", text_of(GUIDE))) - {"NAME", "FILE"}
    assert {"FAMILIES", "SCHEDULER_KINDS"} <= names
    assert not [name for name in names if not re.search(rf"^{name}\b.*=", source, re.MULTILINE)]


def test_templates_workflow_and_hooks_are_read() -> None:
    hooks = {
        hook["id"]: hook for repository in read_yaml(".pre-commit-config.yaml")["repos"] for hook in repository["hooks"]
    }
    assert set(hooks) == {"ruff-check", "ruff-format", "codespell"}
    jobs = read_yaml(".github/workflows/ci.yml")["jobs"]
    commands = {step["run"] for job in jobs.values() for step in job["steps"] if "run" in step}
    assert commands == {".ci/run", "make docs", "make test-oldest"}
    for form in ("bug", "addition"):
        assert all(
            {"type", "attributes"} <= set(field) for field in read_yaml(f".github/ISSUE_TEMPLATE/{form}.yml")["body"]
        )


def test_the_citation_is_of_this_version() -> None:
    citation = read_yaml("CITATION.cff")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
