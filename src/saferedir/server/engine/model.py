"""What the engine asks of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from saferedir.server.config import ModelSettings
from saferedir.server.engine.facts import ModelFacts
from saferedir.server.engine.rows import CallKey, Outcome, Row


class ImageModel(Protocol):
    """A guarded model; one thread uses it."""

    facts: ModelFacts

    def run(self, key: CallKey, rows: Sequence[Row]) -> list[Outcome]:
        """One outcome a row, in order.

        Raises:
            Exception: nothing may be shown.
        """
        ...

    def close(self) -> None:
        """Let go of the weights."""
        ...


#: loads a model and its guards, in the thread that will use it
Loader = Callable[[ModelSettings], ImageModel]
