"""How far a long job is: one protocol for every call of the library that takes long.

`Progress.task` begins a piece of work and gives a function that counts it. The library shows nothing by itself (`SILENT`); the
command line brings bars, and a program of your own may bring whatever it likes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Counts `n` more; `label` replaces the task's label, "" leaves it."""

    def __call__(self, n: int = 1, label: str = "") -> None: ...


class Progress(Protocol):
    """Whoever wants to know how far a job is."""

    def task(self, label: str, total: int | None = None, done: int = 0) -> AbstractContextManager[Advance]:
        """Begin a piece of work; it ends with the context.

        Args:
            label: what it is, in words.
            total: how much there is to do, None where that is not known.
            done: how much of it was done before.
        """
        ...


class Silent:
    """Shows nothing."""

    @contextmanager
    def task(self, label: str, total: int | None = None, done: int = 0) -> Iterator[Advance]:
        """Begin a piece of work without showing it."""
        yield lambda n=1, label="": None


#: the default of every call
SILENT = Silent()
