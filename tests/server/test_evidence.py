"""Evidence: what was measured of exactly a service is told from what was not, and a false claim is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.documentation.pages import ROOT
from tests.server.served import served
from typer.testing import CliRunner

from saferedir.attacks.run import guard_facts
from saferedir.cli import app
from saferedir.guard import Guard
from saferedir.server.evidence.cells import EvidenceError
from saferedir.server.evidence.write import check_claims, page_of, write_evidence

RESULTS = ROOT / "results" / "star" / "saferedir"
CONFIG = """
[[models]]
name = "pictoworld"
guards = {guards}
verify = ["star"]
steps = 4
guidance = 4.0

[profiles.default]
on_unsafe = "redirect"

[profiles.strict]
on_unsafe = "verify"

[profiles.strictest]
on_unsafe = "block"

[audit]
url = "{url}"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one guard and cells at four steps: the repository's, as if they were of the guard as it is today, and one of another."""
    root = tmp_path_factory.mktemp("evidence")
    (root / "results").mkdir()
    digest = guard_facts(Guard.from_pretrained("pictoworld/star"))["digest"]
    for number, file in enumerate(sorted(RESULTS.glob("*.json"))):
        cell = json.loads(file.read_text())
        cell["guards"][0]["digest"] = digest if number else "0" * 16
        (root / "results" / file.name).write_text(json.dumps(cell))
    with served(root) as service:
        service.generate()
        url = service.service.settings.audit.url
    (root / "serve.toml").write_text(CONFIG.format(guards='["pictoworld/star"]', url=url))
    words = [
        "evidence",
        "--config",
        str(root / "serve.toml"),
        "--results",
        str(root / "results"),
        "--out",
        str(root / "out"),
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "profile strictest: not measured" in " ".join(result.output.split())
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 1 and "has files already" in " ".join(again.output.split())
    return root / "out"


@pytest.fixture(scope="module")
def evidence(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "evidence.json").read_text())
    return facts


def test_only_results_of_exactly_this_service_are_called_measured(evidence: dict[str, Any], folder: Path) -> None:
    (model,) = evidence["models"]
    profiles = {profile["name"]: profile for profile in model["profiles"]}
    assert profiles["default"]["is_measured"] and not profiles["strictest"]["is_measured"]
    for entry in profiles["default"]["measured"]:
        cell = json.loads((folder / entry["file"]).read_text())
        assert cell["policy"] == "attach" and cell["call"]["num_inference_steps"] == 4 and entry["rate"]["n"] > 0
        assert [guard["name"] for guard in cell["guards"]] == ["pictoworld/star"]
    for entry in profiles["strict"]["measured"]:
        assert json.loads((folder / entry["file"]).read_text())["policy"] == "verify"
    others = profiles["strictest"]["of_something_else"]
    assert others and all(entry["differences"] for entry in others)
    assert evidence["audit"]["is_verified"] and evidence["audit"]["records"] == 1
    assert [(judge["preset"], judge["is_calibrated"]) for judge in model["judges"]] == [("star", False)]


def test_the_page_says_so_and_the_checksums_hold(evidence: dict[str, Any], folder: Path) -> None:
    page = (folder / "index.html").read_text()
    assert "Not measured" in page and "not calibrated" in page and "no legal advice" in page
    assert page.count("<h3>Profile") == 3
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, _, name = line.partition("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=False).returncode == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.update(differences=["1 of 3 guards"]), "not of this service"),
        (lambda entry: entry["rate"].update(n=0), "not measured"),
        (lambda entry: entry.update(rate={"rate": 0.0, "n": 5}), "no interval"),
        (lambda entry: entry.update(file="cells/none.json"), "no file"),
    ],
)
def test_it_refuses_to_call_measured_what_was_not(
    evidence: dict[str, Any], folder: Path, tmp_path: Path, change: Any, message: str
) -> None:
    false = copy.deepcopy(evidence)
    change(false["models"][0]["profiles"][0]["measured"][0])
    with pytest.raises(EvidenceError, match=message):
        check_claims(false, folder)
    with pytest.raises(EvidenceError):
        write_evidence(false, [], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_it_refuses_claims_without_results(evidence: dict[str, Any], folder: Path) -> None:
    for path in ("is_measured", "is_calibrated"):
        false = copy.deepcopy(evidence)
        model = false["models"][0]
        target = model["profiles"][2] if path == "is_measured" else model["judges"][0]
        target[path] = True
        with pytest.raises(EvidenceError, match="is called"):
            check_claims(false, folder)


def test_names_are_escaped(evidence: dict[str, Any]) -> None:
    changed = copy.deepcopy(evidence)
    changed["models"][0]["name"] = "<script>alert(1)</script>"
    assert "<script>" not in page_of(changed)
