"""Loop: a pipeline's progress bar, which it holds open around its denoising loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any


class Loop:
    """Behaves as the `bar` it is given; as a context it calls `at_end` when the loop has come to its end."""

    def __init__(self, bar: Any, at_end: Callable[[], None]) -> None:
        self._bar, self._at_end = bar, at_end

    def __enter__(self) -> Any:
        return self._bar.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        answer = self._bar.__exit__(kind, error, trace)
        if kind is None:
            self._at_end()
        return answer

    def __iter__(self) -> Iterator[Any]:
        return iter(self._bar)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)
