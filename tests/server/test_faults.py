"""A process that is killed, a disk that is full, a database that waits: no image without its record, and the service goes on."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa
from tests import forked
from tests.server.served import ScriptedModel, served, settings_of, wait_for

from saferedir.server import application
from saferedir.server.application import create_service
from saferedir.server.audit.store import AuditStore
from saferedir.server.engine.rows import CallKey, Outcome, Row
from saferedir.server.running import serve


def serve_scripted(folder: Path, url: Connection) -> None:
    """In a process of its own."""
    with served(folder) as service:
        url.send(service.url)
        time.sleep(100)


def serve_slowly(folder: Path, seconds: float, url: Connection) -> None:
    """In a process of its own, until it is stopped: "hang" runs for ever, "wait" until there is a file `go`."""
    settings = settings_of(folder, port=0, limits={"shutdown": seconds, "batch": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(application, "create_service", partial(create_service, load=lambda model: Slow(folder)))
        serve(settings, url.send)


class Slow(ScriptedModel):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, key: CallKey, rows: Sequence[Row]) -> list[Outcome]:
        while rows[0].prompt == "hang" or (rows[0].prompt == "wait" and not (self.folder / "go").exists()):
            time.sleep(0.02)
        return super().run(key, [row for row in rows if not setattr(row, "prompt", "a circle")])


@contextmanager
def forked_service(target: Callable[..., None], *args: Any) -> Iterator[tuple[BaseProcess, str]]:
    """(process, url) of a service; the process is dead afterwards."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = forked.start(target, *args, sender)
    try:
        assert receiver.poll(120)
        yield process, receiver.recv()
    finally:
        process.kill()
        process.join()


def test_a_kill_loses_no_record_of_a_delivered_image(tmp_path: Path) -> None:
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

    with forked_service(serve_scripted, tmp_path) as (process, url):
        threads = [threading.Thread(target=ask, args=(client,)) for client in range(6)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(delivered) >= 40)
        process.kill()
        for thread in threads:
            thread.join()
    store = AuditStore(f"sqlite:///{tmp_path / 'audit.sqlite'}")
    assert store.verify().is_whole
    recorded = {(record["image_id"], record["image_sha256"]) for record in store.records()}
    store.close()
    assert len(delivered) >= 40 and set(delivered) <= recorded


@pytest.mark.parametrize(("prompt", "status", "seconds"), [("wait", 200, 120.0), ("hang", 503, 1.0)])
def test_a_service_that_is_told_to_stop_finishes_what_runs(
    tmp_path: Path, prompt: str, status: int, seconds: float
) -> None:
    """SIGTERM: nobody's connection is dropped; what is asked for from then on is answered 503."""
    with forked_service(serve_slowly, tmp_path, seconds) as (process, url):
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
            process.terminate()
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
        process.join(60)
        assert process.exitcode in (0, -signal.SIGTERM)
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
