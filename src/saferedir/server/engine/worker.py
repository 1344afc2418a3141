"""One model's thread: it takes rows that may share a call, runs them, and hands each its own outcome."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from saferedir.server.config import Limits, ModelSettings
from saferedir.server.engine.facts import ModelFacts
from saferedir.server.engine.model import ImageModel, Loader
from saferedir.server.engine.rows import Outcome, Row, RowQueue
from saferedir.server.errors import ServerError

logger = logging.getLogger("saferedir.server")
#: seconds after which an idle thread looks whether it is to do something else
IDLE = 0.2


class DeadlinePassed(Exception):
    """The row waited too long, and was not begun."""


class Worker(threading.Thread):
    """Owns a model; nobody else calls it. Everything else goes through `queue`, which several workers may share.

    Attributes:
        model: None while it is not loaded.
        used: when it last worked, in seconds of `time.monotonic`.
        busy_since: when the call under way began; None between calls.
        load_error: kind of the error for which the model could not be loaded; None where it can.
        was_loaded: whether it ever was.
    """

    def __init__(
        self,
        settings: ModelSettings,
        load: Loader,
        limits: Limits,
        make_room: Callable[[Worker, int], None],
        on_batch: Callable[[str, int, float], None] = lambda name, count, seconds: None,
        on_unload: Callable[[Worker], None] = lambda worker: None,
        queue: RowQueue | None = None,
    ) -> None:
        super().__init__(name=f"saferedir-{settings.name}", daemon=True)
        self.settings, self.queue = settings, RowQueue(limits.queue) if queue is None else queue
        self.model: ImageModel | None = None
        self.used = time.monotonic()
        self.busy_since: float | None = None
        self.load_error: str | None = None
        self.was_loaded = False
        self._load, self._limits, self._make_room, self._on_batch = load, limits, make_room, on_batch
        self._on_unload = on_unload
        self._must_unload, self._is_closed, self._wants_load = threading.Event(), threading.Event(), threading.Event()

    def run(self) -> None:
        while not self._is_closed.is_set():
            if self._must_unload.is_set():
                self._unload()
            if self._wants_load.is_set():
                self._wants_load.clear()
                self._preload()
            rows = self.queue.take(self._limits.batch, self._limits.batch_wait, IDLE)
            if rows and (live := [row for row in rows if _begin(row)]):
                self.busy_since = time.monotonic()
                self._serve(live)
                self.used, self.busy_since = time.monotonic(), None
        self._unload()

    def preload(self) -> None:
        """Load the model before anybody asks for it."""
        self._wants_load.set()

    def unload(self) -> None:
        """Let go of the model once the call under way is done; it is loaded again when it is asked for."""
        self._must_unload.set()

    def keep(self) -> None:
        """Take an `unload` back that has not been done yet."""
        self._must_unload.clear()

    def close(self) -> None:
        """End the thread once the call under way is done; rows that wait are cancelled."""
        self._is_closed.set()
        self.queue.close()

    def _preload(self) -> None:
        try:
            self._loaded()
        except Exception:  # it is in the log, and the next request tries again
            return

    def _loaded(self) -> ImageModel:
        if self.model is None:
            try:
                self.model = self._load_within_room()
            except Exception as error:
                self.load_error = type(error).__name__
                logger.error("model %s cannot be loaded: %s: %s", self.settings.name, type(error).__name__, error)
                raise
            self.load_error, self.was_loaded = None, True
        return self.model

    def _load_within_room(self) -> ImageModel:
        model = self._load(self.settings)
        try:
            self._make_room(self, model.facts.bytes)
        except ServerError:
            model.close()
            raise
        return model

    def _unload(self) -> None:
        self._must_unload.clear()
        model, self.model = self.model, None
        if model is not None:
            model.close()
            self._on_unload(self)

    def _serve(self, rows: Sequence[Row]) -> None:
        try:
            model = self._loaded()
        except Exception as error:
            _fail(rows, error)
            return
        self._isolate(model, rows, 2 * (len(rows) - 1).bit_length())

    def _isolate(self, model: ImageModel, rows: Sequence[Row], calls: int) -> int:
        """Run the rows; where the call raises, each half by itself, for the fault of one is not that of its neighbours.

        Args:
            calls: how many more calls may be made for the halves; one row at fault of n takes 2 log2(n). The rest then fails.

        Returns:
            How many of `calls` are left.
        """
        began = time.monotonic()
        try:
            outcomes = self._outcomes(model, rows)
        except Exception as error:
            if len(rows) == 1:
                _fail(rows, error)
                return calls
            middle = len(rows) // 2
            for half in (rows[:middle], rows[middle:]):
                if calls:
                    calls = self._isolate(model, half, calls - 1)
                else:
                    _fail(half, error)
            return calls
        self._on_batch(self.settings.name, len(rows), time.monotonic() - began)
        for row, outcome in zip(rows, outcomes, strict=True):
            row.future.set_result(outcome)
        return calls

    def _outcomes(self, model: ImageModel, rows: Sequence[Row]) -> list[Outcome]:
        outcomes = model.run(rows[0].key, rows)
        if len(outcomes) != len(rows):
            raise ServerError(f"{len(outcomes)} outcomes came for {len(rows)} rows, so none is shown.")
        for outcome in outcomes if rows[0].key.kind not in ("score", "bare") else ():
            check_decisions(outcome, model.facts)
        return [replace(outcome, facts=model.facts) for outcome in outcomes]


def check_decisions(outcome: Outcome, facts: ModelFacts) -> None:
    """Raise ServerError unless every guard has decided on the image."""
    expected = outcome.expected or len(facts.guards)
    if not outcome.decisions or len(outcome.decisions) != expected:
        raise ServerError(
            f"an image has {len(outcome.decisions)} decisions of {expected} that were due, so it is not shown."
        )


def _begin(row: Row) -> bool:
    """Whether somebody still waits for it, in time."""
    if not row.future.set_running_or_notify_cancel():
        return False
    if time.monotonic() > row.deadline:
        row.future.set_exception(DeadlinePassed())
        return False
    return True


def _fail(rows: Sequence[Row], error: Exception) -> None:
    for row in rows:
        row.future.set_exception(error)
