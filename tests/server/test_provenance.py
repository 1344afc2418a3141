"""Content credentials and watermarks: signed after the policy, read back, and no image where that fails."""

from __future__ import annotations

import base64
import json
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.server.served import served, settings_of
from typer.testing import CliRunner

from saferedir.cli import app
from saferedir.server import watermark
from saferedir.server.credentials import Signer, development_certificate, read_credentials
from saferedir.server.errors import ServerError
from saferedir.server.marking import Marker, payload_of

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
    with pytest.raises(ServerError, match="installed: corner"):
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
