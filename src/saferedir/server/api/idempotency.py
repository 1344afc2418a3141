"""Answers kept for a while under an Idempotency-Key: the same request again gets the same answer, and costs nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from saferedir.server.errors import ApiError, bad_request

MOST = 1024
_LONGEST = 255


@dataclass
class _Kept:
    digest: str
    task: asyncio.Task[object]
    until: float


class Answers:
    """Kept in this process's memory, at most `MOST` of them; an answer of 429 or 5xx is not kept."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
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
            task.add_done_callback(lambda done: self._drop_failure(caller, key, done))
        elif kept.digest != digest:
            raise ApiError(
                409, "This Idempotency-Key came with another request before; use a new one.", "idempotency_conflict"
            )
        return await asyncio.shield(kept.task)

    def _drop_failure(self, caller: str, key: str, task: asyncio.Task[object]) -> None:
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or (error is not None and not (isinstance(error, ApiError) and error.status == 400)):
            self._kept.pop((caller, key), None)

    def _forget_old(self) -> None:
        now = time.monotonic()
        for key in [key for key, kept in self._kept.items() if kept.until < now and kept.task.done()]:
            del self._kept[key]
        while len(self._kept) >= MOST:
            self._kept.pop(next(iter(self._kept)))
