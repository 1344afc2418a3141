"""A progress that remembers what it was told."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from saferedir.utils.progress import Advance


class Watched:
    """Remembers (label, total, how much is done) of every step; `on_step` sees each as it comes."""

    def __init__(self, on_step: Callable[[str, int | None, int], None] = lambda label, total, done: None) -> None:
        self.steps: list[tuple[str, int | None, int]] = []
        self._on_step = on_step

    @contextmanager
    def task(self, label: str, total: int | None = None, done: int = 0) -> Iterator[Advance]:
        """One piece of work."""
        name, count = label, done

        def advance(n: int = 1, label: str = "") -> None:
            nonlocal name, count
            name, count = label or name, count + n
            self.steps.append((name, total, count))
            self._on_step(name, total, count)

        self.steps.append((label, total, done))
        yield advance
