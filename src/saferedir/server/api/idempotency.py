"""Answers kept for a while under an Idempotency-Key: the same request again gets the same answer, and costs nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from saferedir.server.errors import ApiError, bad_request

MOST = 1024
#: of all kept answers together, as their bodies count them
MOST_BYTES = 256_000_000
_LONGEST = 255


@dataclass
class _Kept:
    digest: str
    task: asyncio.Task[object]
    until: float
    size: int = 0


class Answers:
    """Kept in this process's memory, the oldest goes first; an answer of 429 or 5xx is not kept.

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
        self._forget_old()
        kept = self._kept.get((caller, key))
        if kept is None:
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
        while sum(entry.size for entry in self._kept.values()) > MOST_BYTES:
            self._kept.pop(next(name for name, entry in self._kept.items() if entry.size))

    def _forget_old(self) -> None:
        now = time.monotonic()
        for key in [key for key, kept in self._kept.items() if kept.until < now and kept.task.done()]:
            del self._kept[key]
        while len(self._kept) >= MOST:
            self._kept.pop(next(iter(self._kept)))
