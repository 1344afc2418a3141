"""Figures of an earlier report: each is kept by a checksum of all that it is made from, so that only new ones are made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from saferedir.utils.extras import require_extra
from saferedir.utils.files import write_text

#: beside report.html
FIGURES = "figures.json"


class KeptFigures:
    """SVG texts by checksum.

    Args:
        path: where they are kept; None for nowhere.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._earlier = {} if path is None else _read(path)
        self._used: dict[str, str] = {}

    def get(self, make: Callable[..., str], *given: Any) -> str:
        """`make(*given)`, or what it gave before. What is given is frozen data, whose `repr` says all of it."""
        facts = [_made_by(), make.__module__, make.__qualname__, repr(given)]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
        kept = self._used.get(key, self._earlier.get(key))
        self._used[key] = make(*given) if kept is None else kept
        return self._used[key]

    def save(self) -> None:
        """Write those that this report has; nothing is written where the file has the same."""
        if self._path is not None and self._used.keys() != self._earlier.keys():
            write_text(self._path, json.dumps(self._used))


def _read(path: Path) -> dict[str, str]:
    """Nothing where the file is missing or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    is_ours = isinstance(values, dict) and all(isinstance(text, str) for text in values.values())
    return values if is_ours else {}


@cache
def _made_by() -> str:
    """Checksum of matplotlib's version and of the code that makes figures."""
    matplotlib = require_extra("matplotlib", "bench", "a figure of the report")
    report = Path(__file__).parents[1]
    paths = sorted([*(report / "plots").glob("*.py"), *(report / "content").glob("*.py")])
    digest = hashlib.sha256(str(matplotlib.__version__).encode())
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
