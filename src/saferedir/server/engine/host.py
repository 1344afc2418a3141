"""All models of the service: loaded when first asked for, within a budget of memory, each with its own thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from saferedir.server.config import ModelSettings, Settings
from saferedir.server.engine.facts import ModelFacts
from saferedir.server.engine.model import ImageModel, Loader
from saferedir.server.engine.rows import Row, RowQueue
from saferedir.server.engine.worker import Worker
from saferedir.server.errors import ServerError
from saferedir.utils.packaged import packaged_model_path


def load_model(settings: ModelSettings) -> ImageModel:
    """A diffusers pipeline with its guards; torch and diffusers are imported here."""
    from saferedir.server.engine.pipeline import PipelineModel

    return PipelineModel(settings)


class ModelHost:
    """The workers by name.

    Args:
        load: makes a model of its settings, in the worker's thread.
        on_batch: called with a model's name, the rows of a call, and its seconds.
        unloading: seconds that another model may take to finish its call and go.
        lanes: calls of one model at a time, for models that are elsewhere; each has a thread, and loads for itself.
    """

    def __init__(
        self,
        settings: Settings,
        load: Loader = load_model,
        on_batch: Callable[[str, int, float], None] = lambda name, count, seconds: None,
        unloading: float = 60.0,
        lanes: int = 1,
    ) -> None:
        self._unloading = unloading
        budget = settings.limits.memory_gb if lanes == 1 else None
        self._budget = None if budget is None else int(budget * 1e9)
        self._room = threading.Condition()
        self._held: dict[str, int] = {}  # bytes by model, of those that are loaded or being loaded
        self.workers: dict[str, Worker] = {}
        self._lanes: list[Worker] = []
        for model in settings.models:
            queue = RowQueue(settings.limits.queue, settings.queue_share)
            these = [
                Worker(model, self._loader(load), settings.limits, self._make_room, on_batch, self._free, queue)
                for _ in range(lanes)
            ]
            self.workers[model.name] = these[0]
            self._lanes += these

    def start(self) -> None:
        """Start the threads, and load the first model."""
        for worker in self._lanes:
            worker.start()
        next(iter(self.workers.values())).preload()

    def submit(self, name: str, rows: Sequence[Row]) -> None:
        """Let rows wait for a model; `rows.QueueFull` if too many do."""
        self.workers[name].queue.put(rows)

    def facts(self, name: str) -> ModelFacts | None:
        """Of a model, as long as it is loaded."""
        model = self.workers[name].model
        return None if model is None else model.facts

    def waiting(self) -> dict[str, int]:
        """Rows that wait, by model."""
        return {name: len(worker.queue) for name, worker in self.workers.items()}

    def problem(self, seconds: float) -> str | None:
        """Why the service is not ready, or None: a thread that ended, or a call that goes on for longer than `seconds`."""
        first = next(iter(self.workers.values()))
        for worker in self._lanes:
            name = worker.settings.name
            if not worker.is_alive():
                return f"model {name}: its thread has ended"
            if worker.load_error is not None:
                return f"model {name}: it cannot be loaded"
            if worker is first and not worker.was_loaded:
                return f"model {name}: it is being loaded"
            if (since := worker.busy_since) is not None and time.monotonic() - since > seconds:
                return f"model {name}: a call does not end"
        return None

    def close(self, seconds: float = 10.0) -> None:
        """End the threads; at most so many seconds are waited for each."""
        for worker in self._lanes:
            worker.close()
        for worker in self._lanes:
            if worker.is_alive():
                worker.join(seconds)

    # --- memory

    def _loader(self, load: Loader) -> Loader:
        def loaded(settings: ModelSettings) -> ImageModel:
            self._make_room(self.workers[settings.name], bytes_on_disk(settings))
            try:
                return load(settings)
            except BaseException:
                self._free(self.workers[settings.name])
                raise

        return loaded

    def _free(self, worker: Worker) -> None:
        """A model is unloaded: its bytes are there for others."""
        with self._room:
            self._held.pop(worker.settings.name, None)
            self._room.notify_all()

    def _make_room(self, newcomer: Worker, needed: int) -> None:
        """Unload other models, idle ones and those used least recently first, until `needed` bytes are within the budget."""
        if self._budget is None:
            return
        name, end = newcomer.settings.name, time.monotonic() + self._unloading
        with self._room:
            self._held[name] = needed
            asked: list[Worker] = []
            while needed <= self._budget and (over := sum(self._held.values()) - self._budget) > 0:
                going = sum(self._held.get(worker.settings.name, 0) for worker in asked)
                others = [
                    w for w in self.workers.values() if w is not newcomer and w not in asked and w.model is not None
                ]
                if going < over and others:
                    asked.append(min(others, key=lambda worker: (worker.busy_since is not None, worker.used)))
                    asked[-1].unload()
                elif time.monotonic() < end:
                    self._room.wait(min(end - time.monotonic(), 1.0))
                else:
                    break
            else:
                if needed <= self._budget:
                    return
            for worker in asked:
                worker.keep()  # it works, and the newcomer does not wait any longer
            del self._held[name]
        raise ServerError(
            f"model {name!r} needs {needed / 1e9:.2f} GB, which memory_gb = {self._budget / 1e9:.2f} does not leave "
            "beside the models that work; raise it, or try again."
        )


def bytes_on_disk(settings: ModelSettings) -> int:
    """Bytes of a local model's weight files; 0 where it is not on this disk."""
    name = settings.source or settings.name
    folder = packaged_model_path(name) or Path(name).expanduser()
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors")) if folder.is_dir() else 0
