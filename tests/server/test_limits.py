"""What is refused before work is done for it, and what becomes of work that nobody waits for."""

from __future__ import annotations

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
from tests.server.served import Served, served, settings_of, wait_for

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
        ('[[models]]\nname = "a"\nguards = []', "models.0.guards: tuple should have at least 1 item"),
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
            assert response.status_code == 400 and response.json()["error"]["code"] in (code, "invalid_image")
        huge = {"image": ("a.png", io.BytesIO(b"x" * 60_000))}
        assert service.post("/v1/images/edits", files=huge, data={"prompt": "a circle"}).status_code == 413
        for headers, status in (
            ({"Origin": "http://example.org"}, 403),
            ({"Host": "example.org"}, 403),
            ({"X-Forwarded-For": "10.0.0.1"}, 403),
            ({}, 200),
        ):
            assert service.generate(headers=headers).status_code == status
        assert {service.generate().status_code for _ in range(6)} == {200, 429}


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
        assert sorted(prompt for batch in prompts[2:] for prompt in batch) == sorted(
            prompts[1]
        )  # and one each where it failed
        assert not any("left" in prompt for batch in prompts for prompt in batch)


def test_a_deadline_and_a_call_that_hangs(tmp_path: Path) -> None:
    with served(tmp_path, limits={"deadline": 0.3}) as service:
        response = service.generate("wait")
        assert response.status_code == 503 and response.json()["error"]["code"] == "deadline_exceeded"
        wait_for(lambda: httpx2.get(f"{service.url}/readyz").status_code == 503)
        service.model.gate.set()
        wait_for(lambda: httpx2.get(f"{service.url}/readyz").status_code == 200)
        assert service.generate().status_code == 200


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


def test_nothing_of_prompts_and_keys_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with served(tmp_path, **WITH_KEYS) as service:
        for prompt in ("secretword raise", "secretword", "secretword forbidden"):
            service.generate(prompt, bearer("usual"), model="scripted")
        service.post("/v1/images/generations", json={"prompt": ["secretword"]}, headers=bearer("usual"))
    text = "\n".join(record.getMessage() + str(record.exc_info) for record in caplog.records)
    assert "the guard raised" in text
    assert "secretword" not in text and KEYS["usual"][0] not in text


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
