"""The service with its models in Ray Serve: the same answers and records, and a replica that is killed costs nobody an image."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.server.served import ScriptedModel, served, settings_of, wait_for

from saferedir.server.config import ModelSettings
from saferedir.server.engine.rows import CallKey, Outcome, Row

if find_spec("ray") is None or find_spec("grpc") is None:  # not by importing it: its environment is set first
    pytest.skip("the extra ray is not installed", allow_module_level=True)


class SlowModel(ScriptedModel):
    """Takes a while, so that a kill finds it at work."""

    def run(self, key: CallKey, rows: Sequence[Row]) -> list[Outcome]:
        time.sleep(0.1)
        return super().run(key, rows)


def load_here(settings: ModelSettings) -> SlowModel:
    """In a replica's process; it leaves its id behind."""
    Path(settings.source, f"{os.getpid()}.pid").touch()
    return SlowModel()


@pytest.mark.slow
def test_a_replica_killed_under_load_costs_no_delivered_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")  # on a machine with much else to do
    from saferedir.server.engine.ray_models import RayModels

    model = {"name": "scripted", "source": str(tmp_path), "guards": ["plain/star"], "sizes": ["16x16"]}
    more: dict[str, Any] = {
        "models": [model], "limits": {"batch": 2, "batch_wait": 0.0},
        "ray": {"min_replicas": 2, "max_replicas": 2, "cpus": 0.5},
    }  # fmt: skip
    with (
        RayModels(settings_of(tmp_path, **more), load_here) as models,
        served(tmp_path, models.load, lanes=3, **more) as service,
    ):
        wait_for(lambda: httpx2.get(f"{service.url}/readyz").status_code == 200, 60)
        wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2, 60)
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
        wait_for(lambda: len(answers) >= 6, 60)
        os.kill(int(next(tmp_path.glob("*.pid")).stem), signal.SIGKILL)
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * 36
        items = {item["id"]: item["sha256"] for answer in answers for item in answer.json()["data"]}
        records = {record["image_id"]: record for record in service.records() if record["action"] == "delivered"}
        assert items == {name: record["image_sha256"] for name, record in records.items()}
        wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 3, 60)  # another one takes its place
