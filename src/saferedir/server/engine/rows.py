"""Images that wait to be generated, of all clients of one model, and which of them may share a pipeline call."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from PIL import Image

from saferedir.decisions import Decision
from saferedir.server.engine.facts import ModelFacts


class CallKey(NamedTuple):
    """Rows with equal keys may share one call.

    Attributes:
        kind: "generate" from noise, "edit" an image, "check" a prompt (the guards' verdicts), "score" images, or "bare": an image
            without guards, for the playground where the configuration allows it.
        policy: of `saferedir.protect`.
        retries: under "verify".
        size: (width, height), or None for the pipeline's own.
    """

    kind: Literal["generate", "edit", "check", "score", "bare"]
    policy: str
    retries: int
    size: tuple[int, int] | None = None


@dataclass
class Row:
    """One image that somebody waits for.

    Attributes:
        deadline: in seconds of `time.monotonic`; it is not begun afterwards.
        image: what an edit starts from.
        images: that are to be scored.
        future: gets the `Outcome`.
    """

    key: CallKey
    prompt: str
    seed: int
    deadline: float
    image: Image.Image | None = None
    images: tuple[Image.Image, ...] = ()
    future: Future[Outcome] = field(default_factory=Future)


@dataclass(frozen=True)
class Outcome:
    """What came of a row.

    Attributes:
        image: None for a check, and for a blocked image.
        blocked: whether the policy withholds it.
        decisions: one of each guard.
        facts: of the model that made it.
        scores: of each image to be scored, concept -> score in [0, 1], flagged from 0.5 on; {} where nothing reads images.
        tokens: of a check: the prompt's tokens as the pipeline's tokenizer cuts it; "" for marks, () where that is not known.
    """

    image: Image.Image | None
    blocked: bool
    decisions: tuple[Decision, ...]
    tokens: tuple[str, ...] = ()
    facts: ModelFacts | None = None
    scores: tuple[dict[str, float], ...] = ()


class QueueFull(Exception):
    """More rows wait than may."""


class RowQueue:
    """First come, first served; rows of the same key overtake to ride in a call that begins anyway."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rows: deque[Row] = deque()
        self._changed = threading.Condition()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, rows: Sequence[Row]) -> None:
        """Append all of them or, with `QueueFull`, none."""
        with self._changed:
            self._rows = deque(row for row in self._rows if not row.future.cancelled())
            if self._is_closed or len(self._rows) + len(rows) > self._limit:
                raise QueueFull
            self._rows.extend(rows)
            self._changed.notify_all()

    def take(self, most: int, wait: float, idle: float) -> list[Row]:
        """The next rows of one key, at most `most`; [] if none came in `idle` seconds, or the queue was closed.

        Args:
            wait: seconds for which it waits for more, once there is a first.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._rows or self._is_closed, idle) or self._is_closed:
                return []
            key, end = self._rows[0].key, time.monotonic() + wait
            while self._count(key) < most and (left := end - time.monotonic()) > 0 and not self._is_closed:
                self._changed.wait(left)
            taken = [row for row in self._rows if row.key == key][:most]
            chosen = set(map(id, taken))
            self._rows = deque(row for row in self._rows if id(row) not in chosen)
            return taken

    def _count(self, key: CallKey) -> int:
        return sum(row.key == key for row in self._rows)

    def close(self) -> None:
        """Take no more, and cancel all that wait."""
        with self._changed:
            self._is_closed = True
            for row in self._rows:
                row.future.cancel()
            self._rows.clear()
            self._changed.notify_all()
