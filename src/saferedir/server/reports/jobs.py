"""One training at a time, in a thread of its own, with progress that others read, and that can be stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from saferedir.utils.progress import Advance, Progress


class Stopped(Exception):
    """Somebody asked for it."""


@dataclass(frozen=True)
class JobStatus:
    """How far a job is.

    Attributes:
        state: idle, running, done, stopped or failed.
        label: what it does now.
        done, total: of that; `total` is None where it is not known.
        result: once it is done.
        error: why it failed, in a sentence.
    """

    state: Literal["idle", "running", "done", "stopped", "failed"] = "idle"
    label: str = ""
    done: int = 0
    total: int | None = None
    result: dict[str, Any] | None = None
    error: str = ""

    @property
    def sentence(self) -> str:
        """For a person."""
        if self.state == "running":
            return f"{self.label}: {self.done} of {self.total}" if self.total else f"{self.label} …"
        return {"idle": "", "done": "Done.", "stopped": "Stopped. Started again, it goes on from there."}.get(
            self.state, f"Failed. {self.error}"
        )


class Job:
    """Holds the one that runs, or the latest."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._must_stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.status = JobStatus()

    def start(self, work: Callable[[Progress], dict[str, Any]], on_end: Callable[[], None] = lambda: None) -> bool:
        """Begin, unless one runs already; whether it began."""
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return False
            self._must_stop.clear()
            self.status = JobStatus("running", "starting")
            self._thread = threading.Thread(
                target=self._run, args=(work, on_end), name="saferedir-retrain", daemon=True
            )
            self._thread.start()
        return True

    def stop(self, seconds: float = 0.0) -> None:
        """End it at the next step; at most so many seconds are waited for that."""
        self._must_stop.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self, work: Callable[[Progress], dict[str, Any]], on_end: Callable[[], None]) -> None:
        try:
            result = work(self)
        except Stopped:
            self.status = JobStatus("stopped")
        except Exception as error:  # of any kind: it is shown, and the service goes on
            self.status = JobStatus("failed", error=" ".join(f"{type(error).__name__}: {error}".split()))
        else:
            self.status = JobStatus("done", result=result)
        finally:
            on_end()

    @contextmanager
    def task(self, label: str, total: int | None = None, done: int = 0) -> Iterator[Advance]:
        """As `Progress.task`."""
        self._note(label=label, total=total, done=done)

        def advance(n: int = 1, label: str = "") -> None:
            self._note(done=self.status.done + n, **({"label": label} if label else {}))

        yield advance

    def _note(self, **changes: Any) -> None:
        if self._must_stop.is_set():
            raise Stopped
        self.status = replace(self.status, **changes)
