"""Published figures of the usual guards belong to the usual guards that are packaged: weights and thresholds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saferedir.guards.saferedir import SafeRedir
from saferedir.pictoworld.evaluation import guard_digest
from saferedir.pictoworld.tasks import TASKS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["saferedir-results", "saferedir-scales"])
@pytest.mark.parametrize("task", list(TASKS))
def test_the_page_was_measured_with_the_packaged_guard(page: str, task: str) -> None:
    figures = json.loads((DOCS / f"{page}.json").read_text())[task]
    assert figures["weights"] == guard_digest(SafeRedir.from_pretrained(f"pictoworld/{task}-usual"))
