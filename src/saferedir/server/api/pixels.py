"""A bound on the decoded images of all clients together: a small file may hold many pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from saferedir.server.errors import too_many


class PixelBudget:
    """Pixels that are decoded at one time. Used by the event loop's thread alone."""

    def __init__(self, most: int) -> None:
        self.most, self.used = most, 0

    @contextmanager
    def reserved(self, count: int) -> Iterator[None]:
        """Within it, `count` pixels more are counted; ApiError 429 where that is too many."""
        if self.used + count > self.most:
            raise too_many("Too many images of clients are being worked on; try again.", "queue_full", 1.0)
        self.used += count
        try:
            yield
        finally:
            self.used -= count
