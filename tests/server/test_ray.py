"""The service with its models in Ray Serve: the same answers and records, and a replica that is killed costs nobody an image."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from tests.server.served import FACTS, ScriptedModel, served, settings_of, wait_for

from saferedir import GuardError
from saferedir.judges.pictoworld import PictoWorldJudge
from saferedir.server.config import ModelSettings
from saferedir.server.engine import ray_models
from saferedir.server.engine.facts import JudgeFacts, ModelFacts, difference
from saferedir.server.engine.pipeline import PipelineModel
from saferedir.server.engine.rows import CallKey, Outcome, Row
from saferedir.server.errors import ServerError


class SlowModel(ScriptedModel):
    """Takes a while, so that a kill finds it at work."""

    def run(self, key: CallKey, rows: Sequence[Row]) -> list[Outcome]:
        time.sleep(0.1)
        return super().run(key, rows)


def load_here(settings: ModelSettings) -> SlowModel:
    """In a replica's process; it leaves its id behind."""
    Path(settings.source, f"{os.getpid()}.pid").touch()
    return SlowModel()


def _settings() -> ModelSettings:
    return ModelSettings(name="scripted", guards=("plain/star",))


class Died(Exception):
    """Stands for RayActorError."""


class Raised(Exception):
    """Stands for RayTaskError."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("a traceback of another process, with secretword in it")
        self.cause = cause


class FakeHandle:
    """A deployment whose replicas do what the script says: die, raise, or answer."""

    def __init__(self, *script: Exception | None, facts: ModelFacts = FACTS) -> None:
        self.script, self.calls = list(script), 0
        self.run, self.replica = (
            SimpleNamespace(remote=self._remote),
            ray_models.Replica(_settings(), self._load(facts)),
        )

    def _load(self, facts: ModelFacts) -> Any:
        self.model = ScriptedModel(facts)
        return lambda _: self.model

    def _remote(self, key: CallKey, work: Any, expected: ModelFacts) -> Any:
        given = pickle.loads(pickle.dumps((key, work, expected)))  # it goes to another process
        self.calls += 1
        error = self.script.pop(0)

        def result(timeout_s: float) -> list[Outcome]:
            if error is not None:
                raise error
            try:
                outcomes: list[Outcome] = pickle.loads(pickle.dumps(self.replica.run(*given)))
            except ServerError as raised:
                raise Raised(raised) from None
            return outcomes

        return SimpleNamespace(result=result)


@pytest.mark.parametrize(
    ("script", "calls", "error"),
    [
        ((None,), 1, None), ((Died(), None), 2, None), ((Died(), Died(), None), 3, None),
        ((Died(),) * 3, 3, ServerError), ((Raised(GuardError("the guard raised.")),), 1, GuardError),
    ],
)  # fmt: skip
def test_a_call_is_made_again_where_a_replica_died_and_not_where_the_model_raised(
    script: Any, calls: int, error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_models, "_PAUSE", 0.0)
    ray: Any = SimpleNamespace(exceptions=SimpleNamespace(RayActorError=Died, RayTaskError=Raised))
    handle = FakeHandle(*script)
    model, key = ray_models.RemoteModel(ray, handle, FACTS), CallKey("generate", "verify", 2, (16, 16))
    rows = [Row(key, "a circle", seed, time.monotonic() + 60, caller="a") for seed in (1, 2)]
    if error is None:
        assert [outcome.image.getpixel((0, 0))[0] for outcome in model.run(key, rows) if outcome.image] == [1, 2]
    else:
        with pytest.raises(error) as caught:
            model.run(key, rows)
        assert "secretword" not in str(caught.value) and (caught.value.__cause__ is None) == (error is GuardError)
    assert handle.calls == calls


def _with_guard(**changes: str) -> ModelFacts:
    return replace(FACTS, guards=(replace(FACTS.guards[0], **changes),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (replace(FACTS, fingerprint="9" * 64), "another model's weights"),
        (_with_guard(fingerprint="9" * 64), "another guard 'plain/star'"),
        (replace(FACTS, guards=()), "other guards"),
        (replace(FACTS, judges=(JudgeFacts("star", "9" * 64),)), "another judge 'star'"),
        (replace(FACTS, judges=()), "other judges"),
        (replace(FACTS, saferedir="0.0.1"), "saferedir 0.0.1 instead of"),
        (replace(FACTS, bytes=2000), "another size in memory"),
    ],
)
def test_a_replica_that_has_loaded_something_else_makes_no_image(facts: ModelFacts, message: str) -> None:
    """Its images would have records that state the fingerprints of another model."""
    ray: Any = SimpleNamespace(exceptions=SimpleNamespace(RayActorError=Died, RayTaskError=Raised))
    key = CallKey("generate", "verify", 2, (16, 16))
    row = Row(key, "a circle", 1, time.monotonic() + 60, caller="a")
    handle = FakeHandle(None, facts=facts)
    handle.replica.check_health()
    with pytest.raises(ServerError, match=message):
        ray_models.RemoteModel(ray, handle, FACTS).run(key, [row])
    assert handle.model.calls == []
    with pytest.raises(ServerError, match=message):
        handle.replica.check_health()


def test_the_weights_and_the_rule_of_judges_are_among_a_models_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ModelSettings(name="pictoworld", guards=("pictoworld/star",), verify=("star", "emblem"))

    def facts() -> ModelFacts:
        return PipelineModel(settings).facts

    ours = facts()
    star, emblem = ours.judges
    assert (star.name, emblem.name) == ("star", "emblem") and star.fingerprint != emblem.fingerprint
    assert difference(ours, facts()) is None
    stated = PictoWorldJudge.facts
    monkeypatch.setattr(PictoWorldJudge, "facts", lambda self: {**stated(self), "weights": "others"})
    assert difference(ours, facts()) == "another judge 'star'"


def test_an_image_of_other_weights_is_answered_503_and_recorded_as_failed(tmp_path: Path) -> None:
    ray: Any = SimpleNamespace(exceptions=SimpleNamespace(RayActorError=Died, RayTaskError=Raised))
    handle = FakeHandle(*[None] * 9, facts=_with_guard(fingerprint="9" * 64))
    with served(tmp_path, lambda settings: ray_models.RemoteModel(ray, handle, FACTS)) as service:
        answer = service.generate()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "guard_failed")
        wait_for(lambda: bool(service.records()), 30)  # what failed is recorded beside its answer, not before it
        (record,) = service.records()
        assert (record["action"], record["image_sha256"], record["guards"]) == ("failed", None, {})
        assert httpx2.get(f"{service.url}/healthz").status_code == 200


@pytest.mark.skipif(find_spec("ray") is None or find_spec("grpc") is None, reason="needs the extra ray")
@pytest.mark.slow
def test_a_replica_killed_under_load_costs_no_delivered_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")  # on a machine with much else to do
    model = {"name": "scripted", "source": str(tmp_path), "guards": ["plain/star"], "sizes": ["16x16"]}
    more: dict[str, Any] = {
        "models": [model], "limits": {"batch": 2, "batch_wait": 0.0},
        "ray": {"min_replicas": 2, "max_replicas": 2, "cpus": 0.5},
    }  # fmt: skip
    with (
        ray_models.RayModels(settings_of(tmp_path, **more), load_here) as models,
        served(tmp_path, models.load, lanes=3, **more) as service,
    ):
        wait_for(lambda: httpx2.get(f"{service.url}/readyz").status_code == 200, 300)
        wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2, 300)
        assert service.generate("forbidden").json()["error"]["code"] == "moderation_blocked"
        failed = service.generate("raise").json()["error"]
        assert failed["code"] == "guard_failed" and "GuardError" in failed["message"]
        answers: list[httpx2.Response] = []

        def ask(client: int) -> None:
            for number in range(6):
                answers.append(service.generate(seed=10 * client + number))

        threads = [threading.Thread(target=ask, args=(client,)) for client in range(6)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(answers) >= 6, 300)
        os.kill(int(next(tmp_path.glob("*.pid")).stem), signal.SIGKILL)
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * 36
        items = {item["id"]: item["sha256"] for answer in answers for item in answer.json()["data"]}
        records = {record["image_id"]: record for record in service.records() if record["action"] == "delivered"}
        assert items == {name: record["image_sha256"] for name, record in records.items()}
        wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 3, 300)  # another one takes its place
