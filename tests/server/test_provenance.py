"""Content credentials and watermarks: signed after the policy, read back, and no image where that fails."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.server.served import served, settings_of
from typer.testing import CliRunner

from saferedir.cli import app
from saferedir.errors import MissingExtraError
from saferedir.pictoworld.renderer import render
from saferedir.pictoworld.scene import random_scene
from saferedir.server import provenance, watermark
from saferedir.server.audit.store import AuditStore, now
from saferedir.server.credentials import Signer, development_certificate, read_credentials
from saferedir.server.errors import ServerError
from saferedir.server.marking import Marker
from saferedir.server.provenance import Match, match_records
from saferedir.server.watermark import PAYLOAD, load_watermark, payload_of

TEST = {"provenance": {"certificate": "test"}}


def inspected(*words: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["inspect", *words, "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_credentials_are_read_back_and_lead_to_the_record(tmp_path: Path, output_format: str) -> None:
    pytest.importorskip("c2pa", reason="the extra `c2pa` is not installed")
    file, url = tmp_path / f"image.{output_format}", settings_of(tmp_path).audit.url
    with served(tmp_path, **TEST) as service:
        (item,) = service.generate(output_format=output_format).json()["data"]
    file.write_bytes(base64.b64decode(item["b64_json"]))
    result = inspected(str(file), "--audit", url)
    credentials = result["credentials"]
    assert credentials["image_id"] == item["id"] and credentials["model"] == "scripted"
    assert credentials["state"] == "Valid" and credentials["is_test"]  # whole, but of nobody who is trusted
    assert credentials["problems"] == ["signingCredential.untrusted"]
    assert result["as_it_left"] and result["chain_is_whole"]
    shown = CliRunner().invoke(app, ["inspect", str(file)]).output
    assert "TEST certificate, which proves nothing" in " ".join(shown.split())
    raw = bytearray(file.read_bytes())
    raw[-25] ^= 1
    file.write_bytes(raw)
    changed = read_credentials(file)
    assert changed is None or changed.state == "Invalid"


def test_a_certificate_of_ones_own_signs(tmp_path: Path) -> None:
    pytest.importorskip("c2pa", reason="the extra `c2pa` is not installed")
    chain, key = development_certificate()
    for name, content in (("chain.pem", chain), ("key.pem", key), ("other.pem", development_certificate()[1])):
        (tmp_path / name).write_bytes(content)

    def settings(**more: str) -> Any:
        return settings_of(tmp_path, provenance={"certificate": str(tmp_path / "chain.pem"), **more}).provenance

    assert Signer.from_settings(settings(private_key=str(tmp_path / "key.pem"))) is not None
    with pytest.raises(ServerError, match="cannot be read"):
        Signer.from_settings(settings(private_key=str(tmp_path / "none.pem")))
    with pytest.raises(ServerError, match="cannot be signed with this certificate"):
        Signer.from_settings(settings(private_key=str(tmp_path / "other.pem")))


class CornerMark:
    """Writes the payload into the first pixels; `breaks` forgets it."""

    breaks = False

    def embed(self, image: Image.Image, payload: bytes) -> Image.Image:
        marked = image.copy()
        for x, value in enumerate(payload):
            marked.putpixel((x, 0), (value, 0, 0))
        return marked

    def read(self, image: Image.Image) -> bytes | None:
        return None if self.breaks else bytes(image.getpixel((x, 0))[0] for x in range(watermark.PAYLOAD))


def test_a_watermark_is_a_plug_in_and_must_be_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("corner", f"{__name__}:CornerMark", watermark.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: CornerMark)
    monkeypatch.setattr(watermark, "entry_points", lambda group, **more: EntryPoints([entry]).select(**more))
    with pytest.raises(ServerError, match="known: wavelet, corner"):
        watermark.load_watermark("another")
    settings = {"provenance": {"watermark": "corner"}}
    with served(tmp_path, **settings) as service:
        (item,) = service.generate().json()["data"]
        file = tmp_path / "image.png"
        file.write_bytes(base64.b64decode(item["b64_json"]))
        assert CornerMark().read(Image.open(file)) == payload_of(item["id"])
        monkeypatch.setattr(CornerMark, "breaks", True)
        assert service.generate().status_code == 503
    assert Marker(settings_of(tmp_path).provenance).watermarked(image := Image.new("RGB", (9, 9)), "x") is image


# --- the built-in one


def marked_images(size: int, count: int) -> list[tuple[bytes, Image.Image]]:
    """(payload, marked image) of PictoWorld's own scenes, scaled."""
    rng, mark = random.Random(size), load_watermark("wavelet")
    pixels = (render([random_scene(rng) for _ in range(count)]).permute(0, 2, 3, 1) * 255).round().byte().numpy()
    images = [Image.fromarray(each).resize((size, size), Image.Resampling.BICUBIC) for each in pixels]
    return [(payload, mark.embed(image, payload)) for image in images for payload in [rng.randbytes(PAYLOAD)]]


def reread(image: Image.Image, output_format: str, quality: int = 100) -> bytes | None:
    file = io.BytesIO()
    image.save(file, output_format, quality=quality)
    with Image.open(file) as again:
        return load_watermark("wavelet").read(again)


def test_the_wavelet_mark_is_read_back(tmp_path: Path) -> None:
    """Always from a PNG; from a JPEG of quality 90 by the size of the image."""
    pytest.importorskip("wmforge", reason="the extra `watermark` is not installed")
    for size, count, least in ((64, 20, 0.5), (128, 10, 0.9), (512, 1, 1.0)):
        images = marked_images(size, count)
        assert all(reread(image, "PNG") == payload for payload, image in images)
        assert sum(reread(image, "JPEG", 90) == payload for payload, image in images) >= least * count, size


@pytest.mark.parametrize("colour", ["white", "black", "grey", "red"])
def test_an_image_of_one_colour_holds_the_wavelet_mark_and_has_none_of_itself(colour: str) -> None:
    pytest.importorskip("wmforge", reason="the extra `watermark` is not installed")
    mark, plain = load_watermark("wavelet"), Image.new("RGB", (64, 64), colour)
    assert mark.read(plain) is None and mark.read(Image.new("RGB", (8, 8), colour)) is None
    marked = mark.embed(plain, b"abcd")
    assert marked.size == plain.size and marked.mode == plain.mode and mark.read(marked) == b"abcd"


def test_the_wavelet_mark_leads_from_a_changed_copy_to_the_record(tmp_path: Path) -> None:
    pytest.importorskip("wmforge", reason="the extra `watermark` is not installed")
    model = {"name": "scripted", "guards": ["plain/star"], "sizes": ["128x128"]}
    more = {"models": [model], "provenance": {"watermark": "wavelet"}}
    file, copied, url = tmp_path / "image.png", tmp_path / "copy.png", settings_of(tmp_path).audit.url
    with served(tmp_path, **more) as service:
        service.generate()
        (item,) = service.generate().json()["data"]
    file.write_bytes(base64.b64decode(item["b64_json"]))
    original = inspected(str(file), "--audit", url)
    assert original["as_it_left"] and original["record_by"] == "hash"
    assert original["watermarks"]["wavelet"] == {"payload": payload_of(item["id"]).hex(), "problem": ""}
    changed = Image.open(file).convert("RGB")
    changed.putpixel((64, 64), (0, 0, 0))  # as PNG: of a JPEG one mark in ten is not read, as measured above
    changed.save(copied)
    copy = inspected(str(copied), "--audit", url, code=1)
    assert (copy["text"], copy["as_it_left"], copy["record_by"]) == (None, False, "watermark")
    assert copy["record"]["image_id"] == item["id"]
    shown = " ".join(CliRunner().invoke(app, ["inspect", str(copied), "--audit", url]).output.split())
    assert (
        f"record: {item['id']}" in shown and "its watermark fits the record above; the file was changed since" in shown
    )
    assert "a mark has 32 bits, a strange one fits some of 2 delivered images with probability 4.7e-10" in shown
    Image.new("RGB", (64, 64), "blue").save(copied)
    shown = " ".join(CliRunner().invoke(app, ["inspect", str(copied)]).output.split())
    assert "watermark wavelet: none that can be read; there may have been one" in shown


def test_a_size_that_cannot_hold_the_mark_is_refused_before_the_service_starts(tmp_path: Path) -> None:
    pytest.importorskip("wmforge", reason="the extra `watermark` is not installed")
    settings = settings_of(tmp_path, provenance={"watermark": "wavelet"})
    with pytest.raises(ServerError, match=r"16 x 16 pixels is too small .* needs 48 blocks of 8 x 8"):
        Marker(settings.provenance, settings.models[0].pixels)


def test_without_the_extra_the_mark_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wmforge.core", None)
    with pytest.raises(MissingExtraError, match=r"saferedir\[watermark\]"):
        load_watermark("wavelet")
    file = tmp_path / "image.png"
    Image.new("RGB", (64, 64), "blue").save(file)
    assert "saferedir[watermark]" in inspected(str(file))["watermarks"]["wavelet"]["problem"]


def recorded(image_id: str, action: str = "delivered", sha256: str | None = "0" * 64) -> dict[str, Any]:
    return {"image_id": image_id, "time": now(), "action": action, "image_sha256": sha256}


def test_all_delivered_records_of_a_payload_are_listed_and_none_as_a_fact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two records share a payload; a third that does was blocked, so that no file of it left."""
    payload, file, url = b"\x01\x02\x03\x04", tmp_path / "image.png", f"sqlite:///{tmp_path / 'audit.sqlite'}"
    monkeypatch.setattr(provenance, "payload_of", lambda name: payload if name.startswith("shares") else b"none")
    reading = watermark.Reading("wavelet", payload)
    monkeypatch.setattr(watermark, "read_watermarks", lambda file: iter([reading]))
    Image.new("RGB", (8, 8), "blue").save(file)
    store = AuditStore(url)
    store.append([recorded("shares-0", "blocked", None), recorded("other"), recorded("shares-1")])
    result = inspected(str(file), "--audit", url, code=1)
    assert (
        result["record"]["image_id"] == "shares-1" and result["delivered"] == 2 and result["record_by"] == "watermark"
    )
    store.append([recorded("shares-2")])
    result = inspected(str(file), "--audit", url, code=1)
    assert result["record"] is None and [entry["image_id"] for entry in result["records"]] == ["shares-1", "shares-2"]
    shown = " ".join(CliRunner().invoke(app, ["inspect", str(file), "--audit", url]).output.split())
    assert "fits 2 records, listed above, and does not tell which" in shown and "shares-0" not in shown
    named = match_records(store, file, {"image_id": "shares-0"})
    assert (named.records, named.by) == ((), "")
    assert match_records(store, file, {"image_id": "other"}).by == "name"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    store.append([recorded("first", sha256=digest), recorded("again", sha256=digest)])
    result = inspected(str(file), "--audit", url)
    assert result["as_it_left"] and [entry["image_id"] for entry in result["records"]] == ["first", "again"]
    store.close()


def test_how_often_marks_are_shared_is_the_birthday_problem() -> None:
    """Against the exact product for few payloads, and the figures of 32 bits."""
    match = Match((), "watermark", 100_000)
    assert match.pair_chance == pytest.approx(0.688, abs=5e-4) and match.chance == pytest.approx(1e5 / 2**32, rel=1e-4)
    exact = 1.0
    for taken in range(2000):
        exact *= 1 - taken / 2**32
    assert Match((), "", 2000).pair_chance == pytest.approx(1 - exact, rel=1e-3)
    assert Match((), "", 0).pair_chance == Match((), "", 1).pair_chance == Match((), "", 0).chance == 0
