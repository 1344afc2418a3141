"""What is refused before work is done for it, and what becomes of work that nobody waits for."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import logging
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from tests.server.served import Served, served, settings_of, wait_for

from saferedir.server.api.idempotency import Answers
from saferedir.server.config import read_settings
from saferedir.server.errors import ApiError, ServerError
from saferedir.server.keys import Caller, RateLimit, new_key

KEYS = {"strict": new_key(), "usual": new_key()}
WITH_KEYS: dict[str, Any] = {
    "keys": [
        {"name": "one", "sha256": KEYS["strict"][1], "profile": "strict"},
        {"name": "two", "sha256": KEYS["usual"][1]},
    ],
    "profiles": {"strict": {"on_unsafe": "block", "models": ["scripted"]}, "default": {"on_unsafe": "redirect"}},
    "models": [{"name": "other", "guards": ["plain/star"]}, {"name": "scripted", "guards": ["plain/star"]}],
}


def in_thread(function: Any) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    return thread, results


# --- keys


@pytest.fixture(scope="module")
def with_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("keys"), **WITH_KEYS) as running:
        yield running


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name][0]}"}


def test_nothing_is_answered_without_a_key(with_keys: Served) -> None:
    for path in ("/v1/models", "/healthz", "/metrics", "/openapi.json", "/nothing"):
        for headers in ({}, {"Authorization": "Bearer sk-wrong"}, {"Authorization": KEYS["usual"][0]}):
            response = httpx2.get(with_keys.url + path, headers=headers)
            assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
    assert httpx2.get(with_keys.url + "/healthz", headers=bearer("usual")).status_code == 200


def test_a_profile_bounds_policy_and_models(with_keys: Served) -> None:
    assert with_keys.generate("a star", bearer("usual"), model="scripted").status_code == 200
    for policy in (None, "redirect", "verify"):
        response = with_keys.generate("a star", bearer("strict"), policy=policy)
        assert response.json()["error"]["code"] == ("moderation_blocked" if policy is None else "policy_too_weak")
    assert with_keys.generate(headers=bearer("strict"), model="other").status_code == 404
    assert with_keys.records()[-1]["key"] == "one"


def test_strangers_are_kept_out_of_a_service_without_keys(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="anybody could use this service"):
        settings_of(tmp_path, host="0.0.0.0").check_address()
    settings_of(tmp_path, host="::1").check_address()
    settings_of(tmp_path, host="0.0.0.0", **WITH_KEYS).check_address()


def test_settings_that_are_wrong_are_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    for text, message in (
        ("models = [", "cannot be read as TOML"),
        ('[[models]]\nname = "a"\nguards = []', "models.0: the model 'a' needs guards"),
        ('[[models]]\nname = "a"\nguards = ["b"]\npaint = 1', "models.0.paint: extra inputs are not permitted"),
        ('[[models]]\nname = "a"\nguards = ["b"]\n[[keys]]\nname = "k"\nsha256 = "12"', "keys.0.sha256"),
        (
            f'[[models]]\nname = "a"\nguards = ["b"]\n[[keys]]\nname = "k"\nsha256 = "{"0" * 64}"\nprofile = "p"',
            "the profile 'p'",
        ),
    ):
        file.write_text(text)
        with pytest.raises(ServerError, match=message.replace("(", r"\(")):
            read_settings(file)
    assert read_settings().model("pictoworld") is not None


# --- rates, sizes


def test_a_rate_is_that_of_each_key() -> None:
    now = [0.0]
    profile = read_settings().profiles["default"].model_copy(update={"requests_per_minute": 2})
    limit = RateLimit(lambda: now[0])
    for _ in range(2):
        limit.spend(Caller("a", profile))
    with pytest.raises(ApiError, match="2 requests a minute") as caught:
        limit.spend(Caller("a", profile))
    assert caught.value.headers == {"Retry-After": "30"}
    limit.spend(Caller("b", profile))
    now[0] = -1000.0  # no clock that goes back takes or gives
    with pytest.raises(Exception, match="2 requests a minute"):
        limit.spend(Caller("a", profile))
    now[0] = -969.0
    limit.spend(Caller("a", profile))


def bomb(width: int, height: int) -> bytes:
    """A small PNG of many pixels, all of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width // 8 + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_sizes(tmp_path: Path) -> None:
    with served(
        tmp_path, limits={"body_mb": 0.05, "pixels": 1_000_000}, profiles={"default": {"requests_per_minute": 8}}
    ) as service:
        for content in (b"x" * 60_000, iter([b"x" * 40_000] * 3)):  # with a Content-Length, and without
            response = service.post(
                "/v1/images/generations", content=content, headers={"content-type": "application/json"}
            )
            assert response.status_code == 413 and response.json()["error"]["code"] == "request_too_large"
        for size, code in (((2000, 2000), "image_too_large"), ((20_000, 20_000), "image_too_large")):
            files = {"image": ("a.png", io.BytesIO(bomb(*size)))}
            response = service.post("/v1/images/edits", files=files, data={"prompt": "a circle"})
            assert response.status_code == 400 and response.json()["error"]["code"] == code
        huge = {"image": ("a.png", io.BytesIO(b"x" * 60_000))}
        assert service.post("/v1/images/edits", files=huge, data={"prompt": "a circle"}).status_code == 413
        for headers, status in (
            ({"Origin": "http://example.org"}, 403),
            ({"Host": "example.org"}, 403),
            ({"X-Forwarded-For": "10.0.0.1"}, 403),
            ({}, 200),
        ):
            assert service.generate(headers=headers).status_code == status
        assert any(service.generate().status_code == 429 for _ in range(40))  # the bucket fills up meanwhile


def test_a_body_without_images_is_small(tmp_path: Path) -> None:
    with served(tmp_path) as service:
        unknown = ", ".join(f'"x{number}": 0' for number in range(30_000))
        for route in ("/v1/images/generations", "/v1/checks"):
            response = service.post(route, content=f"{{{unknown}}}", headers={"content-type": "application/json"})
            assert response.status_code == 413


# --- waiting


def test_a_full_queue_a_client_that_leaves_and_a_batch_of_several_clients(tmp_path: Path) -> None:
    with served(tmp_path, limits={"queue": 3, "batch": 4, "batch_wait": 0.0}) as service:
        first, results = in_thread(lambda: service.generate("wait"))
        wait_for(lambda: service.model.calls)
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{service.url}/v1/images/generations", json={"prompt": "left"}, timeout=0.3)
        wait_for(lambda: all(row.future.cancelled() for row in service.service.host.workers["scripted"].queue._rows))
        others = [in_thread(lambda name=name: service.generate(f"{name} {name}")) for name in ("a", "b", "raise")]
        wait_for(lambda: service.service.host.waiting()["scripted"] == 3)
        full = service.generate("too many")
        assert (
            full.status_code == 429
            and full.json()["error"]["code"] == "queue_full"
            and int(full.headers["Retry-After"]) >= 1
        )
        service.model.gate.set()
        for thread, _ in [(first, results), *others]:
            thread.join()
        assert [found[0].status_code for found in (results, *(r for _, r in others))] == [200, 200, 200, 503]
        prompts = [prompts for _, prompts in service.model.calls]
        assert sorted(prompts[1]) == ["a a", "b b", "raise raise"]  # one call for three clients,
        assert {prompt for batch in prompts[2:] for prompt in batch} == set(prompts[1])  # and fewer where it failed
        assert not any("left" in prompt for batch in prompts for prompt in batch)


def test_a_deadline_and_a_call_that_hangs(tmp_path: Path) -> None:
    with served(tmp_path, limits={"deadline": 0.3}) as service:
        response = service.generate("wait")
        assert response.status_code == 503 and response.json()["error"]["code"] == "deadline_exceeded"
        wait_for(lambda: httpx2.get(f"{service.url}/readyz").status_code == 503)
        service.model.gate.set()
        wait_for(lambda: httpx2.get(f"{service.url}/readyz").status_code == 200)
        assert service.generate().status_code == 200


def test_no_request_may_ask_for_more_than_can_wait(tmp_path: Path) -> None:
    """A 429 would let the client try again for ever."""
    with served(tmp_path, limits={"queue": 3}) as service:
        assert service.generate(n=3).status_code == 200
        many = service.generate(n=4)
        assert many.status_code == 400 and many.json()["error"]["code"] == "too_many_images"
        texts = service.post("/v1/moderations", json={"input": ["a circle"] * 4})
        assert texts.status_code == 400


def test_one_key_cannot_take_the_queue_from_another(tmp_path: Path) -> None:
    with served(tmp_path, **WITH_KEYS | {"limits": {"queue": 4, "batch": 1, "batch_wait": 0.0}}) as service:
        model = {"model": "scripted"}
        service.generate(headers=bearer("usual"), **model)
        first = in_thread(lambda: service.generate("wait", bearer("usual"), **model))
        worker = service.service.host.workers["scripted"]
        wait_for(lambda: worker.busy_since is not None and not len(worker.queue))
        greedy = [in_thread(lambda: service.generate(headers=bearer("usual"), n=2, **model))]
        wait_for(lambda: len(worker.queue) == 2)
        full = service.generate(headers=bearer("usual"), **model)
        assert (
            full.status_code == 429 and "of your key" in full.json()["error"]["message"] and full.headers["Retry-After"]
        )
        other = in_thread(lambda: service.generate(headers=bearer("strict"), **model))
        wait_for(lambda: len(worker.queue) == 3)
        service.models["scripted"].gate.set()
        for thread, _ in [first, *greedy, other]:
            thread.join()
        assert [results[0].status_code for _, results in [first, *greedy, other]] == [200] * 3


def png(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "PNG")
    return file.getvalue()


def test_images_of_all_clients_together_are_bounded(tmp_path: Path) -> None:
    with served(
        tmp_path, limits={"pixels": 10_000, "pixels_waiting": 15_000, "batch": 8, "batch_wait": 0.0}
    ) as service:
        url = f"data:image/png;base64,{base64.b64encode(png(50)).decode()}"
        parts = [{"type": "image_url", "image_url": {"url": url}}] * 4
        edit = {"files": {"image": ("a.png", png(100))}, "data": {"prompt": "wait"}}
        thread, results = in_thread(lambda: service.post("/v1/images/edits", **edit))
        wait_for(lambda: service.model.calls)
        for path, body in (("/v1/images/edits", edit), ("/v1/moderations", {"json": {"input": parts}})):
            response = service.post(path, **body)
            assert response.status_code == 429 and response.headers["Retry-After"]
        service.model.gate.set()
        thread.join()
        assert results[0].status_code == 200 and service.service.pixels.used == 0
        assert service.post("/v1/moderations", json={"input": parts}).status_code == 200
        assert len(service.model.calls[-1][1]) == 4  # each image has a place in the queue
        more = service.post("/v1/moderations", json={"input": [*parts, parts[0]]})
        assert more.status_code == 400 and more.json()["error"]["code"] == "image_too_large"
        assert service.post("/v1/images/edits", **edit | {"data": {"prompt": "raise"}}).status_code == 503
        assert service.service.pixels.used == 0


def test_records_of_edits_name_the_file_that_they_start_from(tmp_path: Path) -> None:
    with served(tmp_path) as service:
        file = png(20)
        for prompt in ("a circle", "forbidden", "raise"):
            service.post("/v1/images/edits", files={"image": ("a.png", file)}, data={"prompt": prompt})
        service.generate()
        wait_for(lambda: len(service.records()) == 4)
        records = {record["action"]: record for record in service.records() if record["kind"] == "edit"}
        assert set(records) == {"delivered", "blocked", "failed"}
        assert {record["input_sha256"] for record in records.values()} == {hashlib.sha256(file).hexdigest()}
        assert records["blocked"]["blocked_by"] == ["star"] and records["delivered"]["blocked_by"] == []
        assert service.records()[-1]["input_sha256"] is None


def test_answers_of_one_caller_do_not_push_out_those_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saferedir.server.api.idempotency.MOST", 3)
    monkeypatch.setattr("saferedir.server.api.idempotency.MOST_BYTES", 100)
    monkeypatch.setattr("saferedir.server.api.idempotency.MOST_BYTES_OF_ALL", 150)
    made: list[str] = []

    async def ask(answers: Answers, caller: str, key: str, size: int = 10) -> object:
        async def work() -> object:
            made.append(f"{caller}{key}")
            return size

        return await answers.once(caller, key, "digest", work)

    async def run() -> None:
        answers = Answers(60, lambda answer: answer if isinstance(answer, int) else 0)
        await ask(answers, "modest", "0")
        for number in range(10):
            await ask(answers, "greedy", str(number))
        await ask(answers, "modest", "0")
        assert made.count("modest0") == 1
        await ask(answers, "greedy", "9")
        assert made.count("greedy9") == 1 and len(answers._kept) == 4
        await ask(answers, "greedy", "large", 95)
        assert {key for key, _ in answers._kept} == {"greedy", "modest"} and answers._bytes_of("greedy") == 95
        await ask(answers, "third", "0", 90)
        assert answers._bytes_of(None) <= 150 and answers._bytes_of("modest") == 10  # the one with the most gave way
        gate = asyncio.Event()

        async def slow() -> object:
            await gate.wait()
            return 1

        tasks = [asyncio.ensure_future(answers.once("slow", str(number), "digest", slow)) for number in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="under way") as caught:
            await ask(answers, "slow", "3")
        assert caught.value.status == 429
        gate.set()
        await asyncio.gather(*tasks)
        await ask(answers, "slow", "3")

    asyncio.run(run())


def test_idempotency(tmp_path: Path) -> None:
    with served(tmp_path) as service:
        key = {"Idempotency-Key": "abc"}
        first, again = service.generate(headers=key), service.generate(headers=key)
        assert first.json() == again.json() and len(service.records()) == 1
        conflict = service.generate("another", headers=key)
        assert conflict.status_code == 409 and conflict.json()["error"]["code"] == "idempotency_conflict"
        waiting = [in_thread(lambda: service.generate("wait", headers={"Idempotency-Key": "d"})) for _ in range(3)]
        wait_for(lambda: len(service.model.calls) == 2)
        service.model.gate.set()
        for thread, _ in waiting:
            thread.join()
        assert len({results[0].text for _, results in waiting}) == 1 and len(service.model.calls) == 2
        for status in (503, 503):  # a failure is not kept
            assert service.generate("raise", headers={"Idempotency-Key": "e"}).status_code == status
        assert len([prompts for _, prompts in service.model.calls if prompts == ["raise"]]) == 2


def test_nothing_of_prompts_and_keys_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever a request comes to, and whatever fails; of all loggers at every level, and of what is written to the terminal."""
    caplog.set_level(logging.DEBUG)
    key = bearer("usual")
    with served(
        tmp_path, **WITH_KEYS, audit={"url": f"sqlite:///{tmp_path / 'audit.sqlite'}", "prompts": "text"}
    ) as service:
        for prompt in ("secretword raise", "secretword", "secretword forbidden", "secretword undecided"):
            service.generate(prompt, key, model="scripted", user="secretword")
        edit = {"files": {"secretword": ("secretword.png", b"secretword")}, "data": {"prompt": "secretword"}}
        service.post("/v1/images/edits", headers=key, **edit)
        service.post("/v1/images/edits", headers=key, **edit | {"files": {"image": ("secretword.png", b"secretword")}})
        for path in ("/v1/images/generations", "/v1/checks", "/v1/moderations"):
            for body in (
                {"prompt": ["secretword"]},
                {"prompt": "secretword", "input": "secretword"},
                {"secretword": 1},
            ):
                service.post(path, json=body, headers=key)
        service.post("/v1/checks?secretword=1", content=b"secretword", headers=key)
        httpx2.get(f"{service.url}/secretword", headers=key)
        httpx2.get(f"{service.url}/v1/models/secretword", headers=key)
        store = service.service.audit.store
        with store.engine.execution_options(writes=True).begin() as connection:
            connection.exec_driver_sql(
                "ALTER TABLE audit_records RENAME TO gone"
            )  # an error that repeats what was inserted
        assert service.generate("secretword", key, model="scripted").status_code == 503
        metrics = httpx2.get(f"{service.url}/metrics", headers=key).text
    logged = [
        record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))
    ]  # the test's client
    text = "\n".join(record.getMessage() + str(record.exc_info) + str(record.exc_text) for record in logged)
    written = capfd.readouterr()
    assert "the guard raised" in text and "an audit record could not be written" in text
    for output in (text, written.out, written.err, metrics):
        for secret in ("secretword", KEYS["usual"][0], KEYS["usual"][1]):
            assert secret not in output


def test_a_broken_database_shows_no_image(tmp_path: Path) -> None:
    with served(tmp_path) as service:
        vars(service.service.audit.store)["append"] = lambda records: 1 / 0
        response = service.generate()
        assert response.status_code == 503 and response.json()["error"]["code"] == "audit_unavailable"
        assert httpx2.get(f"{service.url}/readyz").json()["reason"] == "audit records cannot be written"
        del vars(service.service.audit.store)["append"]
        assert service.generate().status_code == 200 and httpx2.get(f"{service.url}/readyz").status_code == 200


def test_models_come_and_go_within_the_memory(tmp_path: Path) -> None:
    models = [{"name": name, "guards": ["plain/star"]} for name in ("a", "b", "c")]
    with served(tmp_path, models=models, limits={"memory_gb": 2.1e-6}) as service:
        for name in ("a", "b", "c", "a"):
            assert service.generate(model=name).status_code == 200
            loaded = {m["id"] for m in httpx2.get(f"{service.url}/v1/models").json()["data"] if m["loaded"]}
            assert len(loaded) <= 2 and name in loaded
        assert service.models["b"].is_closed
