"""The official client against the service: images, edits, streams, moderations, and every refusal as its own error."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest
from PIL import Image
from tests.server.served import Served, served


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served")) as running:
        yield running


def image_of(item: Any) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(item.b64_json)))


def png(size: tuple[int, int] = (20, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return file.getvalue()


def test_images_have_records_with_their_hashes(service: Served) -> None:
    answer = service.client().images.generate(
        model="scripted", prompt="a red star", n=3, size="32x16", user="u", extra_body={"seed": 7}
    )
    assert answer.size == "32x16" and [item.seed for item in answer.data] == [7, 8, 9]
    assert [image_of(item).getpixel((0, 0))[0] for item in answer.data] == [7, 8, 9]
    records = {record["image_id"]: record for record in service.records()}
    for item in answer.data:
        record = records[item.id]
        assert record["image_sha256"] == item.sha256 == hashlib.sha256(base64.b64decode(item.b64_json)).hexdigest()
        assert record["action"] == "delivered" and record["decisions"][0]["action"] == "redirected"
        assert record["prompt_sha256"] == hashlib.sha256(b"a red star").hexdigest() and record["prompt"] is None
        assert record["guards"] == {"plain/star": "1" * 64} and record["policy"]["on_unsafe"] == "verify"


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_formats(service: Served, output_format: Any) -> None:
    answer = service.client().images.generate(
        prompt="a circle",
        output_format=output_format,
        output_compression=50,
        moderation="low",
        response_format="b64_json",
    )
    assert image_of(answer.data[0]).format == output_format.upper() and answer.output_format == output_format


def test_edits(service: Served) -> None:
    answer = service.client().images.edit(image=("a.png", png()), prompt="a circle", n=2, size="16x16")
    assert len(answer.data) == 2 and image_of(answer.data[0]).size == (16, 16)
    assert service.model.calls[-1][0].kind == "edit"
    with pytest.raises(openai.BadRequestError, match="mask is not supported"):
        service.client().images.edit(image=("a.png", png()), mask=("b.png", png()), prompt="a circle")
    with pytest.raises(openai.BadRequestError, match="no whole PNG, JPEG or WebP"):
        service.client().images.edit(image=("a.png", b"nothing"), prompt="a circle")


def test_a_model_without_image_to_image_says_so(service: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.model, "facts", replace(service.model.facts, can_edit=False))
    with pytest.raises(openai.BadRequestError, match="cannot edit images"):
        service.client().images.edit(image=("a.png", png()), prompt="a circle")


def test_streams_end_with_whole_images(service: Served) -> None:
    events = list(service.client().images.generate(prompt="a circle", n=2, stream=True, partial_images=3))
    assert [event.type for event in events] == ["image_generation.completed"] * 2
    assert image_of(events[0]).size == (16, 16) and events[0].usage.total_tokens == 0
    (event,) = service.client().images.edit(image=("a.png", png()), prompt="a circle", stream=True)
    assert event.type == "image_edit.completed"


def test_a_refusal_is_an_error_with_categories_and_a_record(service: Served) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            service.client().images.generate(prompt="a forbidden star", stream=stream)
        assert caught.value.code == "moderation_blocked" and caught.value.body["categories"] == ["star"]
    last = service.records()[-1]
    assert last["action"] == "blocked" and last["image_sha256"] is None and last["decisions"][0]["fired"]


def test_a_stricter_policy_may_be_asked_for(service: Served) -> None:
    assert service.generate("a star").status_code == 200
    assert service.generate("a star", policy="block").json()["error"]["code"] == "moderation_blocked"
    assert service.generate("a star", policy="redirect").json()["error"]["code"] == "policy_too_weak"


@pytest.mark.parametrize("word", ["raise", "undecided"])
def test_a_guard_that_fails_or_gives_no_decision_is_503(service: Served, word: str) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        service.client().images.generate(prompt=f"{word} a circle")
    assert caught.value.status_code == 503 and caught.value.code == "guard_failed" and "data" not in caught.value.body
    assert service.generate().status_code == 200


@pytest.mark.parametrize(
    ("more", "status", "code", "param"),
    [
        ({"model": "other"}, 404, "model_not_found", "model"),
        ({"size": "64x64"}, 400, "invalid_value", "size"),
        ({"n": 11}, 400, "invalid_value", "n"),
        ({"n": 0}, 400, "invalid_value", "n"),
        ({"response_format": "url"}, 400, "invalid_value", "response_format"),
        ({"background": "transparent"}, 400, "invalid_value", "background"),
        ({"paint": 1}, 400, "unknown_parameter", "paint"),
        ({"prompt": "x" * 5000}, 400, "string_above_max_length", "prompt"),
        ({"prompt": "  "}, 400, "invalid_value", "prompt"),
        ({"prompt": "a\0b"}, 400, "invalid_value", "prompt"),
        ({"prompt": None}, 400, "invalid_value", "prompt"),
    ],
)
def test_requests_that_cannot_be_served(
    service: Served, more: dict[str, Any], status: int, code: str, param: str
) -> None:
    response = service.generate(**{"prompt": "a circle", **more})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert "xxxx" not in error["message"]


def test_bodies_that_are_no_requests(service: Served) -> None:
    for content, sentence in (
        (b"", "The body is no JSON object"), (b"{", "The body is not JSON."), (b'{"prompt": "\\ud800"}', "prompt: "),
        (b"\xff", "The request cannot be read."), (b"[1]", "The body is no JSON object"), (b"{}", "prompt is missing."),
        (b'{"prompt": "a", "paint": 1}', "paint is no parameter"),
    ):  # fmt: skip
        response = service.post("/v1/images/generations", content=content, headers={"content-type": "application/json"})
        assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"
        assert response.json()["error"]["message"].startswith(sentence), response.text
    for given in (3, [], [{"type": "audio"}], [{"type": "text"}]):
        error = service.post("/v1/moderations", json={"input": given}).json()["error"]
        assert error["param"] == "input" and error["message"].startswith("input has none of the forms"), error
    for kind in ("application/json", "multipart/form-data", "multipart/form-data; boundary=a"):
        response = service.post("/v1/images/edits", content=b"--b", headers={"content-type": kind})
        assert response.status_code == 400, response.text
    assert service.post("/v1/nothing").json()["error"]["message"] == "There is no such address."


def test_moderations(service: Served) -> None:
    client, url = service.client(), f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    first, second = client.moderations.create(input=["a star", "a circle"]).results
    assert first.flagged and first.categories.model_extra["star"] and not second.flagged
    assert first.category_scores.model_extra["star"] == pytest.approx(1 / (1 + 2.718281828**-4))
    (both,) = client.moderations.create(
        input=[{"type": "text", "text": "a star"}, {"type": "image_url", "image_url": {"url": url}}]
    ).results
    assert both.category_applied_input_types.model_extra["star"] == ["text", "image"]
    for address in (
        "http://127.0.0.1/a.png",
        "file:///etc/hostname",
        "data:text/plain;base64,YQ==",
        "data:image/png;base64,*",
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.moderations.create(input=[{"type": "image_url", "image_url": {"url": address}}])
        assert caught.value.code == "invalid_image_url"


def test_checks_say_what_would_be_done(service: Served) -> None:
    answer = service.post("/v1/checks", json={"prompt": "a red star"}).json()
    assert answer["status"] == "modified" and answer["guards"][0]["acts"]
    assert answer["guards"][0]["tokens"] == [{"token": "red", "strength": 0.0}, {"token": "star", "strength": 0.5}]
    assert service.post("/v1/checks", json={"prompt": "a star", "policy": "block"}).json()["status"] == "blocked"
    assert service.post("/v1/checks", json={"prompt": "a circle"}).json()["status"] == "passed"


def test_lists(service: Served) -> None:
    import httpx2

    assert [model.id for model in service.client().models.list()] == ["scripted"]
    assert service.client().models.retrieve("scripted").id == "scripted"
    with pytest.raises(openai.NotFoundError):
        service.client().models.retrieve("other")
    (guard,) = httpx2.get(f"{service.url}/v1/guards").json()["data"]
    assert (guard["id"], guard["concept"], guard["fingerprint"]) == ("plain/star", "star", "1" * 64)
    assert httpx2.get(f"{service.url}/v1/policies").json()["allowed"] == ["verify", "block"]
    assert httpx2.get(f"{service.url}/healthz").json()["status"] == "ok"
    assert httpx2.get(f"{service.url}/readyz").status_code == 200
    service.generate()
    text = httpx2.get(f"{service.url}/metrics").text
    assert 'saferedir_images_total{action="delivered",model="scripted"}' in text
