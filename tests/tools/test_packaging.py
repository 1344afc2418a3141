"""Wheel and sdist, the list of extras, and the list of licences."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.documentation.pages import ROOT
from tools.licences import PAGE, closure, groups, installed, licence_of
from tools.package_check import check


@pytest.mark.slow
def test_the_wheel_runs_the_demo_in_an_environment_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert os.path.commonpath([check(tmp_path, shared=True), tmp_path]) == str(tmp_path)


def test_every_extra_is_on_the_page() -> None:
    text = (ROOT / "docs" / "extras.md").read_text(encoding="utf-8")
    assert [name for name in groups() if name != "core" and f"| `{name}` |" not in text] == []


def test_every_direct_dependency_has_its_licence_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    for group, requirements in groups().items():
        for name in closure(requirements):
            assert name in lines, f"{name} of {group}: run python -m tools.licences"
    package = installed("numpy")
    assert package is not None and licence_of(package) in lines["numpy"]
