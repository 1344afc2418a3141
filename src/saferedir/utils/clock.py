"""Seconds of work over all sessions of a run that may be killed and gone on with."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saferedir.utils.files import write_text

#: a kill costs the clock so many seconds at most, and what one piece of work takes
_EVERY = 5.0


class WorkClock:
    """Counts the seconds of this session and of earlier ones, which it reads from the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._started = self._saved = time.monotonic()
        self._earlier = 0.0
        if path.is_file():
            try:
                self._earlier = float(json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError):  # a damaged file costs an account of time, and nothing else
                self._earlier = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of all sessions until now."""
        return self._earlier + time.monotonic() - self._started

    def ticking(self, log: Callable[[dict[str, Any]], None] | None) -> Callable[[dict[str, Any]], None]:
        """`log` with a tick before each of its lines; without one, the ticks alone."""

        def logged(numbers: dict[str, Any]) -> None:
            self.tick()
            if log is not None:
                log(numbers)

        return logged

    def tick(self) -> None:
        """Keep the count, if the last time is a while ago."""
        if time.monotonic() - self._saved >= _EVERY:
            self._saved = time.monotonic()
            write_text(self.path, json.dumps(round(self.seconds, 1)))
