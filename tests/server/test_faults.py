"""A process that is killed, a disk that is full, a database that waits: no image without its record, and the service goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa
from tests.documentation.pages import ROOT
from tests.server.served import served, wait_for

from saferedir.server.audit.store import AuditStore

SERVER = """
import sys, time
from pathlib import Path
from tests.server.served import served
with served(Path(sys.argv[1])) as service:
    print(service.url, flush=True)
    time.sleep(100)
"""


@pytest.fixture
def killed_service(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=env
    )
    assert process.stdout is not None
    yield process, process.stdout.readline().strip()
    process.kill()
    process.wait()


def test_a_kill_loses_no_record_of_a_delivered_image(tmp_path: Path, killed_service: tuple[Any, str]) -> None:
    process, url = killed_service
    delivered: list[tuple[str, str]] = []

    def ask(client: int) -> None:
        with httpx2.Client(timeout=10) as connection:
            for number in range(10_000):
                body = {"prompt": "a circle", "seed": 1000 * client + number, "n": 2}
                try:
                    answer = connection.post(f"{url}/v1/images/generations", json=body).json()
                except (httpx2.HTTPError, ValueError):
                    return
                delivered.extend((item["id"], item["sha256"]) for item in answer["data"])

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(6)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(delivered) >= 40)
    os.kill(process.pid, signal.SIGKILL)
    for thread in threads:
        thread.join()
    store = AuditStore(f"sqlite:///{tmp_path / 'audit.sqlite'}")
    assert store.verify().is_whole
    recorded = {(record["image_id"], record["image_sha256"]) for record in store.records()}
    store.close()
    assert len(delivered) >= 40 and set(delivered) <= recorded


STOPPED = """
import sys, time
from functools import partial
from pathlib import Path
import saferedir.server.application as app
from saferedir.server.running import serve
from tests.server.served import ScriptedModel, settings_of

class Slow(ScriptedModel):
    def run(self, key, rows):
        while rows[0].prompt == "hang" or (rows[0].prompt == "wait" and not Path(sys.argv[1], "go").exists()):
            time.sleep(0.02)
        return super().run(key, [row for row in rows if not setattr(row, "prompt", "a circle")])

app.create_service = partial(app.create_service, load=lambda model: Slow())
settings = settings_of(Path(sys.argv[1]), port=0, limits={"shutdown": float(sys.argv[2]), "batch": 1})
serve(settings, lambda address: print(address, flush=True))
"""


@pytest.mark.parametrize(("prompt", "status", "seconds"), [("wait", 200, 120.0), ("hang", 503, 1.0)])
def test_a_service_that_is_told_to_stop_finishes_what_runs(
    tmp_path: Path, prompt: str, status: int, seconds: float
) -> None:
    """SIGTERM: nobody's connection is dropped; what is asked for from then on is answered 503."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(tmp_path), str(seconds)], stdout=subprocess.PIPE, text=True, env=env
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        wait_for(lambda: httpx2.get(f"{url}/readyz").status_code == 200)
        answers: list[httpx2.Response] = []

        def ask() -> None:
            answers.append(httpx2.post(f"{url}/v1/images/generations", json={"prompt": prompt}, timeout=120))

        with httpx2.Client(timeout=60) as early:  # a connection that is kept open
            early.get(f"{url}/healthz")
            threads = [threading.Thread(target=ask) for _ in range(2)]  # one runs, and one waits
            for thread in threads:
                thread.start()
            wait_for(lambda: 'waiting{model="scripted"} 1.0' in httpx2.get(f"{url}/metrics").text)
            process.send_signal(signal.SIGTERM)
            if prompt == "wait":
                wait_for(lambda: early.get(f"{url}/readyz").status_code == 503)
                for client in (early, httpx2):
                    late = client.post(f"{url}/v1/images/generations", json={"prompt": "a circle"})
                    assert late.status_code == 503 and late.json()["error"]["code"] == "shutting_down"
                (tmp_path / "go").touch()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [status] * 2
        if status == 503:
            assert {answer.json()["error"]["code"] for answer in answers} == {"shutting_down"}
        assert process.wait(60) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
    store = AuditStore(f"sqlite:///{tmp_path / 'audit.sqlite'}", is_read_only=True)
    assert store.verify().is_whole and [record["action"] for record in store.records()] == ["delivered"] * (
        4 - len(answers) if status == 200 else 0
    )
    store.close()


def test_a_full_disk(tmp_path: Path) -> None:
    with served(tmp_path) as service:
        engine = service.service.audit.store.engine
        engine.dispose()

        @sa.event.listens_for(engine, "connect")
        def fill(connection: Any, record: Any) -> None:
            connection.execute("PRAGMA max_page_count = 1")  # no page more than there are

        statuses = [service.generate(n=10) for _ in range(12)]
        full = [response for response in statuses if response.status_code == 503]
        assert full and {response.json()["error"]["code"] for response in full} == {"audit_unavailable"}
        sa.event.remove(engine, "connect", fill)
        engine.dispose()
        assert service.generate().status_code == 200
        count = sum(len(response.json().get("data", ())) for response in statuses) + 1
        assert sum(record["action"] == "delivered" for record in service.records()) == count


def test_a_database_that_waits(tmp_path: Path) -> None:
    with served(tmp_path, limits={"deadline": 0.2}) as service:
        with service.service.audit.store.engine.execution_options(writes=True).connect() as other:
            with other.begin():  # somebody else is writing, for longer than a request lasts
                response = service.generate()
                assert response.status_code == 503 and response.json()["error"]["code"] == "audit_unavailable"
                assert httpx2.get(f"{service.url}/healthz").status_code == 200
        wait_for(lambda: service.generate().status_code == 200)
        assert service.records()[-1]["action"] == "delivered"


def test_a_service_that_stops_answers_those_who_wait(tmp_path: Path) -> None:
    with served(tmp_path, limits={"batch": 1}) as service:
        results: list[httpx2.Response] = []
        threads = [threading.Thread(target=lambda: results.append(service.generate("wait"))) for _ in range(2)]
        threads[0].start()
        wait_for(lambda: service.model.calls)
        threads[1].start()
        wait_for(lambda: service.service.host.waiting()["scripted"] == 1)
        service.service.host.workers["scripted"].queue.close()
        wait_for(lambda: results)
        assert results[0].status_code == 503 and results[0].json()["error"]["code"] == "shutting_down"
        service.model.gate.set()
        for thread in threads:
            thread.join()
        assert results[1].status_code == 200


def test_a_body_that_is_deep(tmp_path: Path) -> None:
    with served(tmp_path) as service:
        headers = {"content-type": "application/json"}
        assert service.post("/v1/checks", content=b"[" * 200_000, headers=headers).status_code == 400
        assert service.generate().status_code == 200
