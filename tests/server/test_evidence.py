"""Evidence: what was measured of exactly a service is told from what was not, and a false claim is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.bench.report_world import cell, rate
from tests.documentation.pages import ROOT
from tests.server.served import served
from typer.testing import CliRunner

from saferedir.attacks.run import guard_facts
from saferedir.bench.generation.resources import JudgeSpec
from saferedir.bench.storage.saved_plan import SavedPlan
from saferedir.cli import app
from saferedir.errors import MissingExtraError
from saferedir.guard import Guard
from saferedir.judges.calibration import Calibration
from saferedir.judges.pictoworld import PictoWorldJudge, PictoWorldTemplateJudge
from saferedir.judges.presets import preset
from saferedir.server.evidence import judged
from saferedir.server.evidence.cells import EvidenceError, Subject, by_concept, check_concept, matching_cells
from saferedir.server.evidence.judged import verifying_judge
from saferedir.server.evidence.write import check_claims, page_of, write_evidence
from saferedir.target import ProtectSettings

RESULTS = ROOT / "results" / "star" / "saferedir-usual"
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
    facts = guard_facts(Guard.from_pretrained("pictoworld/star"))
    for number, file in enumerate(sorted(RESULTS.glob("*.json"))):
        entry = json.loads(file.read_text())
        entry["guards"][0] |= facts if number else {"name": facts["name"], "digest": "0" * 16}
        (root / "results" / file.name).write_text(json.dumps(entry))
    with served(root) as service:
        service.generate()
        url = service.service.settings.audit.url
    calibrations = []
    for number, (name, rule) in enumerate(((PictoWorldJudge(), "star"), (PictoWorldTemplateJudge(), "emblem"))):
        calibrations.append(
            root / f"calibration-{number}.json"
        )  # the other's preset is named "star", and its rule another
        Calibration(19, 1, 99, 1, name.facts(), preset(rule).rule.to_dict(), "star").save(calibrations[-1])
    (root / "serve.toml").write_text(CONFIG.format(guards='["pictoworld/star"]', url=url))
    words = [
        "evidence",
        "--config",
        str(root / "serve.toml"),
        "--results",
        str(root / "results"),
        *(word for file in calibrations for word in ("--calibration", str(file))),
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
        result = json.loads((folder / entry["file"]).read_text())
        assert result["policy"] == "attach" and result["call"]["num_inference_steps"] == 4 and entry["rate"]["n"] > 0
        assert [guard["name"] for guard in result["guards"]] == ["pictoworld/star"]
    for entry in profiles["strict"]["measured"]:
        assert json.loads((folder / entry["file"]).read_text())["policy"] == "verify"
    others = profiles["strictest"]["of_something_else"]
    assert others and all(entry["differences"] for entry in others)
    assert evidence["audit"]["is_verified"] and evidence["audit"]["records"] == 1
    assert [(judge["preset"], judge["is_calibrated"]) for judge in model["judges"]] == [("star", True)]


def test_the_page_says_so_and_the_checksums_hold(evidence: dict[str, Any], folder: Path) -> None:
    page = (folder / "index.html").read_text()
    assert "Not measured" in page and "pictoworld-template: not calibrated" in page and "no legal advice" in page
    assert page.count("<h3>Profile") == 3
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, _, name = line.partition("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=False).returncode == 0


def test_each_concept_has_its_own_cells_and_judges(evidence: dict[str, Any]) -> None:
    """The service's judge is calibrated; of those of the attacks the other one is not, though a calibration names its preset."""
    (model,) = evidence["models"]
    (judge,) = model["judges"]
    assert (judge["judge"], judge["is_calibrated"], judge["calibration"]["recall"]["n"]) == ("pictoworld", True, 20)
    rows = {profile["name"]: profile["concepts"] for profile in model["profiles"]}
    (star,) = rows["default"]
    assert star["concept"] == "star" and star["guards"] == ["pictoworld/star"]
    assert star["is_measured"] and star["bench"] == [] and star["attacks"]
    assert {entry["judge"]: entry["is_calibrated"] for entry in star["judges"]} == {
        "pictoworld": True, "pictoworld-template": False,
    }  # fmt: skip
    (unmeasured,) = rows["strictest"]
    assert not unmeasured["is_measured"] and unmeasured["judges"] == [] and unmeasured["of_something_else"] > 0


def test_one_concept_of_two_is_not_the_whole(evidence: dict[str, Any], folder: Path) -> None:
    false = copy.deepcopy(evidence)
    profile = false["models"][0]["profiles"][0]
    row = {
        **profile["concepts"][0],
        "concept": "emblem",
        "bench": [],
        "attacks": [],
        "judges": [],
        "is_measured": False,
    }
    profile["concepts"].append(row)
    with pytest.raises(EvidenceError, match="not every concept"):
        check_claims(false, folder)
    profile["is_measured"] = False
    check_claims(false, folder)
    row["is_measured"] = True
    with pytest.raises(EvidenceError, match="'emblem' is called measured"):
        check_claims(false, folder)


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
    def claims(model: dict[str, Any]) -> list[Any]:
        strictest, default = model["profiles"][2], model["profiles"][0]
        (row,) = default["concepts"]
        template = next(judge for judge in row["judges"] if not judge["is_calibrated"])
        return [
            lambda: strictest.update(is_measured=True),
            lambda: strictest["concepts"][0].update(is_measured=True),
            lambda: strictest["concepts"][0].update(attacks=["best-of-n (none)"]),
            lambda: row.update(judges=row["judges"][:1]),
            lambda: template.update(is_calibrated=True),
            lambda: model["judges"][0].update(calibration=None),
            lambda: model["judges"][0]["calibration"].update(true_positives=0, false_negatives=0),
        ]

    check_claims(evidence, folder)
    for number in range(len(claims(evidence["models"][0]))):
        false = copy.deepcopy(evidence)
        claims(false["models"][0])[number]()
        with pytest.raises(EvidenceError):
            check_claims(false, folder)


def test_names_are_escaped(evidence: dict[str, Any]) -> None:
    changed = copy.deepcopy(evidence)
    changed["models"][0]["name"] = "<script>alert(1)</script>"
    assert "<script>" not in page_of(changed)


def attack_subject(entry: dict[str, Any]) -> Subject:
    """A service that an attack cell is of exactly."""
    return Subject(
        model="p", profile="default", backbone=entry["backbone"], bench_model="m",
        guards=tuple(guard["digest"] for guard in entry["guards"]), concepts={"star": ("pictoworld/star",)}, bench_guards="g" * 8,
        bench_parts={}, verifiers=(None,), policy={"retries": 2, "verify": []}, on_unsafe="redirect",
        steps=entry["call"]["num_inference_steps"], guidance=entry["call"]["guidance_scale"],
    )  # fmt: skip


@pytest.mark.parametrize("error", [OSError("no weights"), MissingExtraError("the judge needs a package.")])
def test_a_judge_that_cannot_be_loaded_is_not_known_and_those_of_other_cells_are_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    asked: list[str] = []

    def load(name: str, **options: Any) -> Any:
        asked.append(name)
        raise error

    monkeypatch.setattr(judged, "load_judge", load)
    judged._use.cache_clear()
    entry = next(
        e for e in (json.loads(f.read_text()) for f in sorted(RESULTS.glob("*.json"))) if e["policy"] == "attach"
    )
    entry["cell"].pop("scheduler", None)
    subject = attack_subject(entry)
    (tmp_path / "other.json").write_text(json.dumps({**entry, "policy": "verify", "judge": "unheard of"}))
    (other,) = matching_cells(subject, [tmp_path], [])
    assert not other.is_exact and asked == [] and other.to_dict()["judges"] == entry["judges"]
    (tmp_path / "preset.json").write_text(json.dumps({**entry, "judge": "unheard of"}))
    exact, _ = matching_cells(subject, [tmp_path], [])
    assert exact.is_exact and asked == []
    (row,) = by_concept(subject, [exact], [])
    assert [(judge["is_known"], judge["is_calibrated"]) for judge in row["judges"]] == [(False, False)] * 2
    (tmp_path / "preset.json").write_text(json.dumps(entry))
    known = Calibration(19, 1, 99, 1, PictoWorldJudge().facts(), preset("star").rule.to_dict())
    for _ in range(2):
        exact, _ = matching_cells(subject, [tmp_path], [])
        (row,) = by_concept(subject, [exact], [known])
    assert row["is_measured"] and sorted(asked) == sorted(entry["judges"])  # once each
    assert [(judge["is_known"], judge["is_calibrated"]) for judge in row["judges"]] == [(False, False)] * 2
    check_concept(row, [exact.to_dict()])
    assert not verifying_judge("star").to_dict([known])["is_known"]
    judged._use.cache_clear()


def test_a_cell_is_of_the_service_s_verifying_judge_by_weights_and_rule_and_not_by_name(tmp_path: Path) -> None:
    entry = next(
        e for e in (json.loads(f.read_text()) for f in sorted(RESULTS.glob("*.json"))) if e["policy"] == "attach"
    )
    entry["cell"].pop("scheduler", None)
    subject = replace(attack_subject(entry), policy={"retries": 2, "verify": ["star"]}, on_unsafe="verify")
    served: Any = preset("star").load_judge().verifier("star")
    known = served.facts()

    def difference(**changes: Any) -> tuple[str, ...]:
        settings = {**ProtectSettings("verify", verify=served).to_dict(), **changes}
        text = json.dumps({**entry, "policy": "verify", "policy_settings": settings})
        (tmp_path / "cell.json").write_text(text)
        (cell,) = matching_cells(subject, [tmp_path], [])
        return cell.differences

    assert difference() == ()
    other = {**known, "facts": {**known["facts"], "weights": "of another"}}
    unknown = {**known, "facts": {**known["facts"], "weights": "unknown"}}
    for judges in ([other], [known, other], [{**known, "rule": preset("star").rule.to_dict()}]):
        (said,) = difference(verify_judges=judges)
        assert said.startswith("another judge of finished images")
    assert difference(verify_judges=[unknown])[0].startswith("a judge of finished images whose weights nobody knows")
    for unnamed in (None, [None]):  # an older cell, a function of one's own
        assert difference(verify_judges=unnamed)[0].startswith("a judge of finished images of which only a name")
    assert difference(verify=None) == ("no judge that checks finished images",)
    subject = replace(subject, policy={"retries": 2, "verify": []})
    assert difference() == ("a judge of finished images",)


def test_judges_of_an_attack_are_those_of_its_record(tmp_path: Path) -> None:
    """A cell that holds their checksums is counted by calibrations of those; an older one by what its names stand for today."""
    entry = next(
        e for e in (json.loads(f.read_text()) for f in sorted(RESULTS.glob("*.json"))) if e["policy"] == "attach"
    )
    entry["cell"].pop("scheduler", None)
    subject, then = attack_subject(entry), {**PictoWorldJudge().facts(), "weights": "of then"}
    rule = preset("star").rule.to_dict()
    known = [Calibration(19, 1, 99, 1, facts, rule) for facts in (PictoWorldJudge().facts(), then)]
    for recorded, calibration in ((None, known[0]), (then, known[1])):
        facts = {} if recorded is None else {"pictoworld": {"judge": "pictoworld", "facts": recorded, "rule": rule}}
        (tmp_path / "cell.json").write_text(json.dumps({**entry, "judge_facts": facts}))
        (cell,) = matching_cells(subject, [tmp_path], [])
        (judge,) = (use for use in cell.judges if use.name == "pictoworld")
        assert cell.is_exact and judge.calibration(known) == calibration


def test_cells_of_the_bench_and_their_judge(tmp_path: Path) -> None:
    """Prompts that ask for the concept measure it, others do not; a judge is calibrated by the facts in the bench's plan."""
    judge = JudgeSpec("pictoworld", {}, "d" * 8, PictoWorldJudge().facts())
    (tmp_path / "cells").mkdir()
    plan = SavedPlan("t", "", (), {}, {}, {"a": (judge,)}, ())
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_dict()))
    changes = {"judge_digest": judge.digest, "model": "m", "rule": preset("star").rule.to_dict()}
    for role, prompts, guard in (
        ("forget", "seen", "g" * 8),
        ("retain", "benign", "g" * 8),
        ("forget", "seen", "h" * 8),
    ):
        record = cell(guard, "star", role, prompts, {"concept": rate(1, 100)}, protocol_changes=changes)
        record = replace(record, guard={"method": "saferedir", "digest": guard})
        (tmp_path / "cells" / f"{record.name.slug}.json").write_text(json.dumps(record.to_dict()))
    subject = Subject(
        model="p", profile="default", backbone={}, bench_model="m", guards=("a",), concepts={"star": ("pictoworld/star",)},
        bench_guards="g" * 8, bench_parts={}, verifiers=(None,), policy={"retries": 2, "verify": []}, on_unsafe="redirect",
        steps=30, guidance=4.0,
    )  # fmt: skip
    cells = matching_cells(subject, [], [tmp_path])
    assert [(entry.asks, entry.is_exact) for entry in cells] == [(True, True), (False, True)]
    known = [Calibration(19, 1, 99, 1, judge.facts, preset("star").rule.to_dict())]
    (row,) = by_concept(subject, cells, known)
    assert row["is_measured"] and len(row["bench"]) == 2 and row["attacks"] == []
    assert [entry["is_calibrated"] for entry in row["judges"]] == [True]
    (of_another,) = by_concept(subject, cells, [replace(known[0], judge={**judge.facts, "weights": "others"})])
    assert [entry["is_calibrated"] for entry in of_another["judges"]] == [False]
    (unasked,) = by_concept(subject, cells[1:], known)
    assert not unasked["is_measured"]
    check_concept(row, [entry.to_dict() for entry in cells])
