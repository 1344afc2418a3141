"""The room keeps to itself: torch, the standard library, errors and extras; heavy packages only inside functions."""

import ast
import sys
from pathlib import Path

import pytest

import saferedir.metrics as metrics

FILES = sorted(Path(metrics.__file__).parent.glob("*.py"))
OURS = ("saferedir.errors", "saferedir.utils.extras", "saferedir.utils.renamed", "saferedir.metrics")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports(path: Path) -> None:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    for name in names:
        assert name.startswith(OURS) or name.split(".")[0] in {"torch", *sys.stdlib_module_names}, name


def test_every_public_name_is_there_once_and_documented() -> None:
    assert len(set(metrics.__all__)) == len(metrics.__all__)
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    for name in metrics.__all__:
        thing = getattr(metrics, name)
        if name != "Choices":
            assert thing.__doc__, name
        assert f"`{name}" in page, f"docs/metrics.md does not mention {name}"
