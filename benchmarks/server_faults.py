"""The service while things break: each fault, what clients are answered meanwhile, and whether every image has its record.

    python benchmarks/server_faults.py --kills 10

A scripted model stands in for a pipeline, so that the service, its audit and its clients do all the work. Each line is one fault,
with the answers by status; "without record" counts images that a client got and the audit does not hold, with the same hash, in
a whole chain. Exit code 1 where one of them is not 0, or the service does not answer afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import sqlalchemy as sa

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.server.postgres import postgres_server, programs  # noqa: E402
from tests.server.served import Served, served, wait_for  # noqa: E402

from saferedir.server.audit import store as store_module  # noqa: E402
from saferedir.server.audit.store import AuditStore  # noqa: E402

SERVER = """
import sys, time
from pathlib import Path
from tests.server.served import served
with served(Path(sys.argv[1])) as service:
    print(service.url, flush=True)
    time.sleep(1000)
"""
CLIENTS = 8
JSON = {"content-type": "application/json"}


class Clients:
    """Clients that ask at the same time, what they were answered, and the images that they got."""

    def __init__(self, url: str, prompt: str = "a circle", images: int = 2) -> None:
        self.url, self.body = url, {"prompt": prompt, "n": images}
        self.answers: Counter[str] = Counter()
        self.images: dict[str, str] = {}
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with httpx2.Client(timeout=60) as connection:
            while not self._stop.is_set():
                try:
                    answer = connection.post(f"{self.url}/v1/images/generations", json=self.body)
                    body = answer.json()
                except (httpx2.HTTPError, ValueError):
                    with self._lock:
                        self.answers["no answer"] += 1
                    return
                with self._lock:
                    self.answers[str(answer.status_code)] += 1
                    self.images |= {item["id"]: item["sha256"] for item in body.get("data", ())}


def without_record(images: dict[str, str], url: str) -> int:
    """How many images are in no whole chain; all of them where the chain is not whole."""
    store = AuditStore(url, is_read_only=True)
    try:
        records = {r["image_id"]: r["image_sha256"] for r in store.records() if r["action"] == "delivered"}
        return len(images) if not store.verify().is_whole else len(set(images.items()) - set(records.items()))
    finally:
        store.close()


def kills(folder: Path, times: int) -> dict[str, Any]:
    """`kill -9` under load, and the same database again after each."""
    answers: Counter[str] = Counter()
    images: dict[str, str] = {}
    for _ in range(times):
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(folder)], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        )  # fmt: skip
        try:
            assert process.stdout is not None
            with Clients(process.stdout.readline().strip()) as clients:
                wait_for(lambda clients=clients: len(clients.images) >= 40, 120)
                os.kill(process.pid, signal.SIGKILL)
        finally:
            process.kill()
            process.wait()
        answers += clients.answers
        images |= clients.images
    with served(folder) as service:
        alive = service.generate().status_code
    return line(f"kill -9 under load, {times} times", answers, images, f"sqlite:///{folder / 'audit.sqlite'}", alive)


def line(fault: str, answers: Counter[str], images: dict[str, str], url: str, alive: int) -> dict[str, Any]:
    return {
        "fault": fault, "answers": dict(sorted(answers.items())), "images": len(images),
        "without_record": without_record(images, url), "afterwards": alive,
    }  # fmt: skip


def during(
    service: Served, fault: str, breaks: Callable[[], Any], mends: Callable[[], Any], prompt: str = "a circle"
) -> dict[str, Any]:
    """The fault begins while clients ask, lasts until some were refused or delivered, and ends."""
    with Clients(service.url, prompt) as clients:
        wait_for(lambda: clients.answers.total() >= 10, 120)
        breaks()
        before = clients.answers.total()
        with suppress(AssertionError):
            wait_for(lambda: clients.answers.total() >= before + 20, 30)
        mends()
    wait_for(lambda: service.generate().status_code == 200, 60)
    return line(
        fault, clients.answers, clients.images, service.service.settings.audit.url, service.generate().status_code
    )


def full_disk(folder: Path) -> dict[str, Any]:
    with served(folder) as service:
        engine = service.service.audit.store.engine

        def fill(connection: Any, record: Any) -> None:
            connection.execute("PRAGMA max_page_count = 1")  # no page more than there are

        def breaks() -> None:
            sa.event.listen(engine, "connect", fill)
            engine.dispose()

        def mends() -> None:
            sa.event.remove(engine, "connect", fill)
            engine.dispose()

        return during(service, "the disk is full", breaks, mends)


def locked(folder: Path) -> dict[str, Any]:
    with served(folder, limits={"deadline": 1.0}) as service:
        held = service.service.audit.store.engine.execution_options(writes=True).connect()
        transaction: list[Any] = []
        return during(
            service, "another process holds the SQLite database", lambda: transaction.append(held.begin()),
            lambda: (transaction[0].rollback(), held.close()),
        )  # fmt: skip


def postgres_stops(folder: Path) -> dict[str, Any]:
    with postgres_server() as server, served(folder, audit={"url": server.url}) as service:
        return during(service, "PostgreSQL is stopped, and started again", server.stop, server.start)


def clock(folder: Path, days: int) -> dict[str, Any]:
    real = store_module.now

    def jumped() -> str:
        return (datetime.now(UTC) + timedelta(days=days)).isoformat(timespec="microseconds")

    import saferedir.server.api.records as records_module

    def set_clock(now: Callable[[], str]) -> None:
        store_module.now = records_module.now = now

    try:
        with served(folder) as service:
            result = during(
                service, f"the clock jumps by {days} days", lambda: set_clock(jumped), lambda: set_clock(real)
            )
            pruned = service.service.audit.store.prune(timedelta(days=180))
            return {**result, "pruned": pruned.removed}
    finally:
        set_clock(real)


def model_fault(folder: Path, fault: str, prompt: str) -> dict[str, Any]:
    """What a prompt of the scripted model makes its guard do, while others ask for images."""
    with served(folder, limits={"deadline": 1.0, "batch": 1}) as service:
        answers: Counter[str] = Counter()

        def breaks() -> None:
            answers[str(service.generate(prompt).status_code)] += 1

        result = during(service, fault, breaks, service.model.gate.set)
        return {**result, "answers": {**result["answers"], "of the fault": dict(answers)}}


def bad_bodies(folder: Path) -> dict[str, Any]:
    with served(folder) as service:
        statuses: Counter[str] = Counter()

        def breaks() -> None:
            for route in ("/v1/images/generations", "/v1/moderations", "/v1/checks", "/v1/images/edits"):
                for body in (b"", b"{", b"[" * 200_000, b"\xff\xfe", b"null", b'{"prompt": 1}', b"x" * 25_000_000):
                    try:
                        statuses[str(service.post(route, content=body, headers=JSON).status_code)] += 1
                    except httpx2.HTTPError:  # it is cut off while it is sent
                        statuses["cut off"] += 1

        result = during(service, "28 malformed, deep or huge bodies", breaks, lambda: None)
        return {**result, "answers": {**result["answers"], "of the fault": dict(sorted(statuses.items()))}}


def clients_leave(folder: Path) -> dict[str, Any]:
    with served(folder) as service:
        host, port = service.url.removeprefix("http://").split(":")
        body = b'{"prompt": "a circle", "n": 2}'
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"

        def breaks() -> None:
            for length in (len(body), 1000):  # while it is made, and in the middle of the body
                for _ in range(20):
                    with socket.create_connection((host, int(port))) as connection:
                        connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + body)

        return during(service, "40 clients leave, half of them while they send", breaks, lambda: None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    faults: list[Callable[[Path], dict[str, Any]]] = [
        lambda folder: kills(folder, options.kills),
        lambda folder: model_fault(folder, "a guard raises", "raise"),
        lambda folder: model_fault(folder, "a judge hangs", "wait"),
        full_disk,
        locked,
        *([postgres_stops] if programs() is not None else []),
        bad_bodies,
        clients_leave,
        lambda folder: clock(folder, 3650),
        lambda folder: clock(folder, -3650),
    ]
    results = []
    for fault in faults:
        with tempfile.TemporaryDirectory() as name:
            began = time.perf_counter()
            result = fault(Path(name))
        results.append({**result, "seconds": round(time.perf_counter() - began, 1)})
        print(json.dumps(results[-1]), flush=True)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return int(any(result["without_record"] or result["afterwards"] != 200 for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
