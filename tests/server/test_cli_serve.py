"""`saferedir serve` and `saferedir inspect` as a person types them."""

from __future__ import annotations

import base64
import hashlib
import json
import tomllib
from pathlib import Path

import pytest
from PIL import Image
from tests.server.served import served
from typer.testing import CliRunner

from saferedir.cli import app


def call(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_a_new_key_comes_with_its_lines_for_the_file() -> None:
    result = CliRunner().invoke(app, ["serve", "--new-key", "alice"])
    key = result.stderr.split()[-1]
    (entry,) = tomllib.loads(result.stdout)["keys"]
    assert key not in result.stdout  # what goes into the file holds the hash alone
    assert entry == {"name": "alice", "sha256": hashlib.sha256(key.encode()).hexdigest(), "profile": "default"}
    assert len(key) > 40
    assert "a key's name has 1 to 100 letters" in call("serve", "--new-key", 'a"b', code=1)


def test_it_does_not_start_for_strangers_without_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "anybody could use this service" in call("serve", "--host", "0.0.0.0", code=1)
    assert "cannot be read as TOML" in call("serve", "--config", "nothing.toml", code=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("output_format", ["png", "webp"])
def test_inspect_knows_a_file_of_the_service(tmp_path: Path, output_format: str) -> None:
    file, url = tmp_path / f"image.{output_format}", f"sqlite:///{tmp_path / 'audit.sqlite'}"
    with served(tmp_path) as service:
        (item,) = service.generate(output_format=output_format).json()["data"]
    file.write_bytes(base64.b64decode(item["b64_json"]))
    facts = json.loads(call("inspect", str(file), "--json"))["text"]
    assert (facts is None) == (output_format == "webp") and (facts is None or facts["image_id"] == item["id"])
    assert "as it left the service" in call("inspect", str(file), "--audit", url)
    Image.open(file).convert("L").save(file)
    assert "no record of this file" in call("inspect", str(file), "--audit", url, code=1)
    if facts is not None:
        from saferedir.server.provenance import png_text

        Image.new("RGB", (8, 8)).save(file, pnginfo=png_text(facts))  # another image that claims to be this one
        assert "is not the file that left" in call("inspect", str(file), "--audit", url, code=1)
    file.write_bytes(b"nothing")
    assert "cannot be read as an image" in call("inspect", str(file), code=1)
