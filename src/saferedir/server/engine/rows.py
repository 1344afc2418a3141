"""Images that wait to be generated, of all clients of one model: whose turn it is, and which may share a pipeline call."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Literal, NamedTuple

from PIL import Image

from saferedir.decisions import Decision
from saferedir.server.engine.facts import ModelFacts


class CallKey(NamedTuple):
    """Rows with equal keys may share one call.

    Attributes:
        kind: "generate" from noise, "edit" an image, "check" a prompt (the guards' verdicts), "score" images, or "bare": an image
            without guards, for the playground where the configuration allows it.
        policy: of `saferedir.protect`; of a model with a policy file the stricter action that a request names for all concepts,
            or "" for what the file says.
        retries: under "verify".
        size: (width, height), or None for the pipeline's own.
        profile: of the model's policy file; "" for none.
    """

    kind: Literal["generate", "edit", "check", "score", "bare"]
    policy: str
    retries: int
    size: tuple[int, int] | None = None
    profile: str = ""


@dataclass
class Row:
    """One image that somebody waits for.

    Attributes:
        deadline: in seconds of `time.monotonic`; it is not begun afterwards.
        image: what an edit starts from, or what is to be scored.
        caller: name of the key that it is for.
        future: gets the `Outcome`.
    """

    key: CallKey
    prompt: str
    seed: int
    deadline: float
    image: Image.Image | None = None
    caller: str = ""
    future: Future[Outcome] = field(default_factory=Future)


@dataclass(frozen=True)
class Outcome:
    """What came of a row.

    Attributes:
        image: None for a check, and for a blocked image.
        blocked: whether the policy withholds it.
        decisions: one of each guard.
        facts: of the model that made it.
        scores: of an image to be scored, concept -> score in [0, 1], flagged from 0.5 on; {} where nothing reads images.
        blocked_by: what blocked it: concepts of guards, and presets of judges.
        expected: decisions that were due, one for each rule of a policy file; 0: one for each guard.
        tokens: of a check: the prompt's tokens as the pipeline's tokenizer cuts it; "" for marks, () where that is not known.
    """

    image: Image.Image | None
    blocked: bool
    decisions: tuple[Decision, ...]
    tokens: tuple[str, ...] = ()
    facts: ModelFacts | None = None
    scores: dict[str, float] = field(default_factory=dict)
    blocked_by: tuple[str, ...] = ()
    expected: int = 0


class QueueFull(Exception):
    """More rows wait than may.

    Attributes:
        is_callers: whether it is the caller's share that is full, and others may still put rows.
    """

    def __init__(self, is_callers: bool = False) -> None:
        super().__init__()
        self.is_callers = is_callers


class RowQueue:
    """Callers take turns; of one caller: first come, first served. Rows of the same key fill up a call that begins anyway.

    Args:
        limit: rows that may wait.
        share: of them, those that one caller may have.
    """

    def __init__(self, limit: int, share: int | None = None) -> None:
        self._limit, self._share = limit, limit if share is None else share
        self._rows: deque[Row] = deque()
        self._last: dict[str, int] = {}  # number of the latest call that began with a row of a caller's
        self._calls = 0
        self._changed = threading.Condition()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, rows: Sequence[Row]) -> None:
        """Append all of them, which are of one caller, or, with `QueueFull`, none."""
        with self._changed:
            self._rows = deque(row for row in self._rows if not row.future.cancelled())
            if self._is_closed or len(self._rows) + len(rows) > self._limit:
                raise QueueFull
            if sum(row.caller == rows[0].caller for row in self._rows) + len(rows) > self._share:
                raise QueueFull(is_callers=True)
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
            first, end = self._next(), time.monotonic() + wait
            while self._count(first.key) < most and (left := end - time.monotonic()) > 0 and not self._is_closed:
                self._changed.wait(left)
            taken = _in_turn([row for row in self._rows if row.key == first.key], first.caller)[:most]
            chosen = set(map(id, taken))
            self._rows = deque(row for row in self._rows if id(row) not in chosen)
            self._calls += 1
            self._last[first.caller] = self._calls
            return taken

    def _next(self) -> Row:
        """The first row of the caller whose turn was longest ago."""
        return min(self._rows, key=lambda row: self._last.get(row.caller, 0))  # of equals the one that came first

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


def _in_turn(rows: Sequence[Row], first: str) -> list[Row]:
    """The rows with callers taking turns, beginning with `first`."""
    by_caller: dict[str, list[Row]] = {first: []}
    for row in rows:
        by_caller.setdefault(row.caller, []).append(row)
    rounds = zip_longest(*by_caller.values())
    return [row for turn in rounds for row in turn if row is not None]
