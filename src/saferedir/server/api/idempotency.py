"""Answers kept for a while under an Idempotency-Key: the same request again gets the same answer, and costs nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from saferedir.server.errors import ApiError, bad_request, too_many

#: answers of one caller
MOST = 256
#: of one caller's kept answers together, as their bodies count them
MOST_BYTES = 64_000_000
#: of those of all callers
MOST_BYTES_OF_ALL = 512_000_000
_LONGEST = 255


@dataclass
class _Kept:
    digest: str
    task: asyncio.Task[object]
    until: float
    size: int = 0


class Answers:
    """Kept in this process's memory; an answer of 429 or 5xx is not kept.

    Each caller has a share of its own, of which the oldest answer goes first; where all together are too many bytes, the oldest
    of the caller with the most goes. What is still being made is never dropped.

    Args:
        seconds: for which an answer is kept.
        size_of: bytes of an answer.
    """

    def __init__(self, seconds: float, size_of: Callable[[object], int] = lambda answer: 0) -> None:
        self._seconds, self._size_of = seconds, size_of
        self._kept: dict[tuple[str, str], _Kept] = {}

    async def once(self, caller: str, key: str, digest: str, work: Callable[[], Awaitable[object]]) -> object:
        """The answer of `work`, which is not called again for the same key.

        Args:
            digest: of the request; another one under the same key is refused with 409.
        """
        if not key.isascii() or not key.isprintable() or len(key) > _LONGEST:
            raise bad_request(
                f"Idempotency-Key is not 1 to {_LONGEST} printable ASCII characters.", param="Idempotency-Key"
            )
        kept = self._kept.get((caller, key))
        if kept is not None and kept.until < time.monotonic() and kept.task.done():
            kept = None
        if kept is None:
            self._make_room(caller)
            task = asyncio.ensure_future(work())
            kept = self._kept[caller, key] = _Kept(digest, task, time.monotonic() + self._seconds)
            task.add_done_callback(lambda done: self._settle(caller, key, done))
        elif kept.digest != digest:
            raise ApiError(
                409, "This Idempotency-Key came with another request before; use a new one.", "idempotency_conflict"
            )
        return await asyncio.shield(kept.task)

    def _settle(self, caller: str, key: str, task: asyncio.Task[object]) -> None:
        """Keep the answer, or drop a failure."""
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or (error is not None and not (isinstance(error, ApiError) and error.status == 400)):
            self._kept.pop((caller, key), None)
            return
        kept = self._kept.get((caller, key))
        if kept is not None and kept.task is task and error is None:
            kept.size = self._size_of(task.result())
        while self._bytes_of(caller) > MOST_BYTES:
            self._drop_oldest(caller)
        while self._bytes_of(None) > MOST_BYTES_OF_ALL:
            self._drop_oldest(max({name for name, _ in self._kept}, key=self._bytes_of))

    def _bytes_of(self, caller: str | None) -> int:
        """Of one caller's answers; None: of all."""
        return sum(kept.size for (name, _), kept in self._kept.items() if caller in (None, name))

    def _drop_oldest(self, caller: str) -> bool:
        """Drop the caller's oldest answer that is there; False where none is."""
        oldest = next((key for key, kept in self._kept.items() if key[0] == caller and kept.task.done()), None)
        if oldest is not None:
            del self._kept[oldest]
        return oldest is not None

    def _make_room(self, caller: str) -> None:
        """Forget what is too old, and the caller's oldest answer where there are too many; ApiError 429 where none is done."""
        now = time.monotonic()
        for key in [key for key, kept in self._kept.items() if kept.until < now and kept.task.done()]:
            del self._kept[key]
        if sum(name == caller for name, _ in self._kept) >= MOST and not self._drop_oldest(caller):
            raise too_many("Too many requests with an Idempotency-Key are under way for this key.", "queue_full", 1.0)
