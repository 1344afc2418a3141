"""Appends for many requests at once: one thread, one transaction for all that wait."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import sqlalchemy as sa

from saferedir.server.audit.store import AuditStore

_MOST = 256  # requests in one transaction
#: what a record can be at fault for; any other error is the database's, and each try may take its whole time limit
FAULTS_OF_ONE = (sa.exc.IntegrityError, sa.exc.DataError, TypeError, ValueError)


class AuditWriter(threading.Thread):
    """Owns the writing side of a store.

    Attributes:
        store: also for reading, by anybody.
        failed: whether the last transaction did.
    """

    def __init__(self, store: AuditStore) -> None:
        super().__init__(name="saferedir-audit", daemon=True)
        self.store, self.failed = store, False
        self._waiting: queue.SimpleQueue[tuple[Sequence[Mapping[str, Any]], Future[None]] | None] = queue.SimpleQueue()

    def append(self, records: Sequence[Mapping[str, Any]]) -> Future[None]:
        """Done once the records are on the disk; fails with what the database raised, and then none of them is."""
        future: Future[None] = Future()
        self._waiting.put((records, future))
        return future

    def close(self, seconds: float = 10.0) -> None:
        """Write what waits, and end."""
        self._waiting.put(None)
        if self.is_alive():
            self.join(seconds)

    def run(self) -> None:
        is_open = True
        while is_open:
            items = [self._waiting.get()]
            while len(items) < _MOST and not self._waiting.empty():
                items.append(self._waiting.get())
            is_open = None not in items
            live = [item for item in items if item is not None and item[1].set_running_or_notify_cancel()]
            if live:
                self._write(live)

    def _write(self, items: list[tuple[Sequence[Mapping[str, Any]], Future[None]]]) -> None:
        try:
            self.store.append([record for records, _ in items for record in records])
        except Exception as error:
            if len(items) > 1 and isinstance(error, FAULTS_OF_ONE):  # is not that of the others
                for item in items:
                    self._write([item])
                return
            self.failed = True
            for _, future in items:
                future.set_exception(error)
            return
        self.failed = False
        for _, future in items:
            future.set_result(None)
