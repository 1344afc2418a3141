"""Attachment: what the seam asks of `attach.Attached`, which holds the seam and is above it."""

from __future__ import annotations

from typing import Any, Protocol

from saferedir.decisions import Decision
from saferedir.guards.base import Guard


class Attachment(Protocol):
    """Guards that were attached together."""

    guards: tuple[Guard[Any], ...]
    runs: int
    insist: tuple[int, ...]

    def detach(self) -> None: ...

    def clear(self) -> None: ...

    def record(self, decisions: list[Decision]) -> None: ...
