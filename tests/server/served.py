"""The service in this process, on loopback, with a scripted model in place of a pipeline."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai
import uvicorn
from PIL import Image

from saferedir import Decision, GuardError
from saferedir.server.api.service import Service
from saferedir.server.application import create_service
from saferedir.server.audit.store import AuditStore
from saferedir.server.config import ModelSettings, Settings
from saferedir.server.engine.facts import GuardFacts, JudgeFacts, ModelFacts
from saferedir.server.engine.rows import CallKey, Outcome, Row

JUDGES = (JudgeFacts("star", "2" * 64),)
FACTS = ModelFacts("0" * 64, (GuardFacts("plain/star", "scripted", "star", "1" * 64, True, True),), 1000, True, JUDGES)


@dataclass
class ScriptedModel:
    """Acts as the words of a prompt say: star, forbidden, raise, undecided, wait."""

    facts: ModelFacts = FACTS
    calls: list[tuple[CallKey, list[str]]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    is_closed: bool = False

    def run(self, key: CallKey, rows: Sequence[Row]) -> list[Outcome]:
        self.calls.append((key, [row.prompt for row in rows]))
        if key.kind == "score":
            return [Outcome(None, False, (), scores={"star": 0.25}) for row in rows]
        if any("raise" in row.prompt for row in rows):
            raise GuardError("the guard raised.")
        if any("wait" in row.prompt for row in rows):
            self.gate.wait(20)
        return [self._outcome(key, row) for row in rows]

    def _outcome(self, key: CallKey, row: Row) -> Outcome:
        is_star = "star" in row.prompt
        is_blocked = key.kind != "bare" and ("forbidden" in row.prompt or (is_star and key.policy == "block"))
        decision = Decision(
            guard="scripted", concept="star", image=0, fired=is_star or is_blocked, prompt_score=4.0 if is_star else -4.0,
            thresholds={"prompt": 0.0}, action="blocked" if is_blocked else "redirected" if is_star else "none",
            token_strengths=(0.0, 0.5) if is_star else None,
        )  # fmt: skip
        if key.kind == "check":
            return Outcome(None, False, (decision,), ("red", "star"))
        image = None if is_blocked else Image.new("RGB", key.size or (16, 16), (row.seed % 256, 10, 20))
        decisions = () if "undecided" in row.prompt else (decision,)
        return Outcome(image, is_blocked, decisions, blocked_by=("star",) if is_blocked else ())

    def close(self) -> None:
        self.is_closed = True


@dataclass
class Served:
    """A running service."""

    url: str
    service: Service
    models: dict[str, ScriptedModel]

    @property
    def model(self) -> ScriptedModel:
        return next(iter(self.models.values()))

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120)

    def post(self, path: str, **more: Any) -> httpx2.Response:
        return httpx2.post(f"{self.url}{path}", timeout=120, **more)

    def generate(self, prompt: str = "a circle", headers: dict[str, str] | None = None, **more: Any) -> httpx2.Response:
        return self.post("/v1/images/generations", json={"prompt": prompt, **more}, headers=headers)

    def records(self) -> list[dict[str, Any]]:
        store = AuditStore(self.service.settings.audit.url)
        try:
            assert store.verify().is_whole
            return list(store.records())
        finally:
            store.close()


def settings_of(folder: Path, **more: Any) -> Settings:
    return Settings.model_validate(
        {
            "models": [{"name": "scripted", "guards": ["plain/star"], "sizes": ["16x16", "32x16"]}],
            "audit": {"url": f"sqlite:///{folder / 'audit.sqlite'}"},
            **more,
        }
    )


@contextmanager
def served(folder: Path, load: Any = None, lanes: int = 1, **more: Any) -> Iterator[Served]:
    """A service with settings of its own."""
    settings, models = settings_of(folder, **more), {}

    def scripted(model: ModelSettings) -> ScriptedModel:
        models[model.name] = ScriptedModel()
        return models[model.name]

    app = create_service(settings, load or scripted, lanes)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    end = time.monotonic() + 30
    while not server.started or (load is None and not models):
        assert thread.is_alive() and time.monotonic() < end
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Served(f"http://127.0.0.1:{port}", app.state.service, models)
    finally:
        for model in models.values():
            model.gate.set()
        server.should_exit = True
        thread.join(30)


def wait_for(condition: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
