"""All models of the service: loaded when first asked for, within a budget of memory, each with its own thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from saferedir.server.config import ModelSettings, Settings
from saferedir.server.engine.facts import ModelFacts
from saferedir.server.engine.model import ImageModel, Loader
from saferedir.server.engine.rows import Row
from saferedir.server.engine.worker import Worker
from saferedir.server.errors import ServerError
from saferedir.utils.packaged import packaged_model_path

#: seconds that another model may take to finish its call and go
UNLOADING = 60.0


def load_model(settings: ModelSettings) -> ImageModel:
    """A diffusers pipeline with its guards; torch and diffusers are imported here."""
    from saferedir.server.engine.pipeline import PipelineModel

    return PipelineModel(settings)


class ModelHost:
    """The workers by name.

    Args:
        load: makes a model of its settings, in the worker's thread.
        on_batch: called with a model's name, the rows of a call, and its seconds.
    """

    def __init__(
        self,
        settings: Settings,
        load: Loader = load_model,
        on_batch: Callable[[str, int, float], None] = lambda name, count, seconds: None,
    ) -> None:
        budget = settings.limits.memory_gb
        self._budget = None if budget is None else int(budget * 1e9)
        self._room = threading.Lock()
        self._held: dict[str, int] = {}  # bytes by model
        self.workers = {
            model.name: Worker(model, self._loader(load), settings.limits, self._make_room, on_batch)
            for model in settings.models
        }

    def start(self) -> None:
        """Start the threads, and load the first model."""
        for worker in self.workers.values():
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
        for name, worker in self.workers.items():
            if not worker.is_alive():
                return f"model {name}: its thread has ended"
            if worker.load_error is not None:
                return f"model {name}: it cannot be loaded"
            if (since := worker.busy_since) is not None and time.monotonic() - since > seconds:
                return f"model {name}: a call does not end"
        return None

    def close(self, seconds: float = 10.0) -> None:
        """End the threads; at most so many seconds are waited for each."""
        for worker in self.workers.values():
            worker.close()
        for worker in self.workers.values():
            if worker.is_alive():
                worker.join(seconds)

    # --- memory

    def _loader(self, load: Loader) -> Loader:
        def loaded(settings: ModelSettings) -> ImageModel:
            self._make_room(self.workers[settings.name], bytes_on_disk(settings))
            try:
                return load(settings)
            except BaseException:
                self._held.pop(settings.name, None)
                raise

        return loaded

    def _make_room(self, newcomer: Worker, needed: int) -> None:
        """Unload other models, the one used least recently first, until `needed` bytes more are within the budget."""
        if self._budget is None:
            return
        name = newcomer.settings.name
        with self._room:
            self._held[name] = needed
            idle = [worker for worker in self.workers.values() if worker is not newcomer and worker.model is not None]
            for victim in sorted(idle, key=lambda worker: worker.used):
                if sum(self._held.values()) <= self._budget:
                    return
                victim.unload()
                if victim.is_unloaded.wait(UNLOADING):
                    self._held.pop(victim.settings.name, None)
            if sum(self._held.values()) > self._budget:
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
