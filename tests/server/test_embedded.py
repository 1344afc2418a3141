"""The embedded model behind the service: docs/server.md as a reader types it, and what a record says of an image."""

from __future__ import annotations

import base64
import hashlib
import io
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.documentation.pages import ROOT, blocks
from tests.server.served import Served, served, wait_for

from saferedir import Decision
from saferedir.pictoworld.renderer import render
from saferedir.pictoworld.scene import random_scene
from saferedir.pictoworld.tasks import TASKS
from saferedir.server.config import read_settings
from saferedir.server.engine.host import load_model
from saferedir.server.engine.rows import CallKey, Row

PAGE = ROOT / "docs" / "server.md"
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = {**read_settings().models[0].model_dump(), "steps": 4}
    with served(tmp_path_factory.mktemp("embedded"), load_model, models=[model]) as running:
        yield running


def test_the_python_of_the_page(service: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[Any] = []
    monkeypatch.setattr("builtins.print", lambda *words: lines.append(words))
    (block,) = blocks(PAGE, "python")
    exec(compile(block.source.replace(ADDRESS, service.url), str(block), "exec"), {})
    completed, (code, categories) = lines
    # The seed is drawn by the service, so the image verdict of another concept may fire beside the one that was asked for.
    assert completed == ("image_generation.completed",) and code == "moderation_blocked" and "star" in categories
    actions = [(record["kind"], record["action"]) for record in service.records()]
    assert actions == [
        ("generate", "delivered"),
        ("edit", "delivered"),
        ("generate", "delivered"),
        ("generate", "blocked"),
    ]


def test_curl_of_the_page(service: Served, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    (block,) = [block for block in blocks(PAGE, "sh") if "curl" in block.source]
    script = block.source.replace(ADDRESS, service.url).replace("curl -s", "curl -sS --fail-with-body")
    answer = subprocess.run(["bash", "-e"], input=script, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert (
        '"status":"modified"' in answer.stdout
        and '"token":"star"' in answer.stdout
        and '"flagged":true' in answer.stdout
    )
    assert "b64_json" in (tmp_path / "image.json").read_text()


def test_an_input_image_that_shows_the_concept_is_refused(service: Served) -> None:
    task, file = TASKS["star"], io.BytesIO()
    scene = random_scene(random.Random(0), **dict(task.forget))
    pixels = (render([scene])[0].permute(1, 2, 0) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(file, "PNG")
    response = service.post(
        "/v1/images/edits", files={"image": ("a.png", file.getvalue())}, data={"prompt": "a blue circle"}
    )
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "moderation_blocked") and "star" in error["message"]
    assert service.records()[-1]["action"] == "blocked"


def test_a_refusal_names_what_blocked_and_nothing_else(tmp_path: Path) -> None:
    """Guards that acted, and judges that found nothing, are no reason; a judge without a guard is one."""
    model = {**read_settings().models[0].model_dump(), "steps": 2, "verify": ["star", "emblem"]}

    def load(settings: Any) -> Any:
        loaded: Any = load_model(settings)
        loaded._judges = {
            "emblem": lambda images: [True] * len(images), "star": lambda images: [False] * len(images),
        }  # fmt: skip
        for guard in loaded._guards:
            guard.image_verifier = None
        return loaded

    with served(tmp_path, load, models=[model]) as service:
        for name, make in (
            ("generations", {"json": {"prompt": "a red star"}}),
            ("edits", {"files": {"image": ("a.png", _png())}, "data": {"prompt": "a red star"}}),
        ):
            error = service.post(f"/v1/images/{name}", **make).json()["error"]
            record = service.records()[-1]
            unresolved = {decision["concept"] for decision in record["decisions"] if decision["unresolved"]}
            assert set(error["categories"]) == set(record["blocked_by"]) == {"emblem"} | unresolved, name
            assert {
                decision["concept"] for decision in record["decisions"] if decision["fired"]
            } - unresolved or name == "edits"
        checked = service.generate("a red star", policy="block").json()["error"]["categories"]
        assert set(checked) >= {"emblem", "star"}  # the guard acted, and that alone blocks there


def test_input_images_of_several_clients_are_refused_one_by_one(service: Served) -> None:
    """A flagged input takes no other row of the call along, and costs no call of the pipeline."""
    worker = service.service.host.workers["pictoworld"]
    wait_for(lambda: worker.model is not None, 120)
    engine: Any = worker.model
    star = render([random_scene(random.Random(0), **dict(TASKS["star"].forget))])[0]
    flagged = Image.fromarray((star.permute(1, 2, 0) * 255).round().byte().numpy())
    plain = Image.new("RGB", (64, 64), "blue")
    key = CallKey("edit", "verify", 2, (64, 64))
    images = [plain, flagged, plain, flagged]
    outcomes = engine.run(key, [Row(key, "a blue circle", n, 0.0, image) for n, image in enumerate(images)])
    assert [outcome.blocked for outcome in outcomes] == [False, True, False, True]
    assert outcomes[1].blocked_by == outcomes[3].blocked_by and "star" in outcomes[1].blocked_by
    (alone,) = engine.run(key, [Row(key, "a blue circle", 2, 0.0, plain)])
    beside_others, by_itself = (np.asarray(outcome.image).astype(int) for outcome in (outcomes[2], alone))
    assert abs(beside_others - by_itself).max() <= 1  # some processors round otherwise at another batch size


def _png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "blue").save(file, "PNG")
    return file.getvalue()


def test_a_record_names_what_made_the_image(service: Served) -> None:
    answers = [service.generate("a red star", seed=3).json()["data"][0] for _ in range(2)]
    first, second = service.records()[-2:]
    pixels = [Image.open(io.BytesIO(base64.b64decode(answer["b64_json"]))).tobytes() for answer in answers]
    assert pixels[0] == pixels[1] and first["seed"] == second["seed"] == 3
    assert [answer["sha256"] for answer in answers] == [first["image_sha256"], second["image_sha256"]]
    facts = service.service.host.facts("pictoworld")
    assert facts is not None and facts.can_edit and facts.bytes > 1_000_000
    assert first["model_fingerprint"] == facts.fingerprint and len(first["guards"]) == 3
    assert first["prompt_sha256"] == hashlib.sha256(b"a red star").hexdigest()
    decisions = [Decision.from_dict(decision) for decision in first["decisions"]]
    assert [decision.concept for decision in decisions] == ["star", "pointillism", "emblem"] and decisions[0].fired


def test_the_examples_of_the_readme(service: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    readme, lines = ROOT / "README.md", list[Any]()
    (block,) = [block for block in blocks(readme, "python") if ADDRESS in block.source]
    monkeypatch.setattr("builtins.print", lambda *words: lines.append(words))
    exec(compile(block.source.replace(ADDRESS, service.url), str(block), "exec"), {})
    assert lines == [("moderation_blocked", ["star"])]
    (block,) = [block for block in blocks(readme, "sh") if "curl" in block.source]
    script = block.source.replace(ADDRESS, service.url).replace("curl -s", "curl -sS --fail-with-body")
    subprocess.run(["bash", "-e"], input=script, check=True, text=True, cwd=tmp_path, timeout=120)
    assert "b64_json" in (tmp_path / "image.json").read_text()
