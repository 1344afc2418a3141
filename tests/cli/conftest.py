"""The command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from saferedir.cli import app

Run = Callable[..., Any]


@pytest.fixture
def run() -> Run:
    """`saferedir` with these words; the result has exit_code, output, stdout and stderr."""

    def invoke(*words: object) -> Any:
        return CliRunner().invoke(app, [str(word) for word in words])

    return invoke
