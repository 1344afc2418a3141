"""Puts the facts of a service together: loads its models and guards, checks its audit, and looks for results of exactly that."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from saferedir.attacks.run import guard_facts, verifier_digest
from saferedir.bench.generation.checksums import model_digest
from saferedir.bench.generation.resources import guards_digest
from saferedir.guard import Guard
from saferedir.judges.calibration import Calibration
from saferedir.pipelines.fingerprint import backbone_fingerprint
from saferedir.pipelines.loading import load_pipeline
from saferedir.policy.loading import distinct, guards_of
from saferedir.policy.rules import Policy
from saferedir.server.audit.store import AuditStore, now
from saferedir.server.audit.tables import check_exists
from saferedir.server.config import ModelSettings, Settings
from saferedir.server.engine.fingerprints import digest_of, guard_fingerprint
from saferedir.server.errors import ServerError
from saferedir.server.evidence.cells import Cell, Subject, by_concept, is_measured, matching_cells
from saferedir.server.evidence.judged import read_calibrations, verifying_judge
from saferedir.server.policies import floor_of, policy_facts, rules_of

SCHEMA = 2
_PACKAGES = (
    "saferedir", "torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy", "pillow", "fastapi",
    "uvicorn", "pydantic", "sqlalchemy", "alembic", "c2pa-python", "gradio", "ray", "wmforge",
)  # fmt: skip
LIMITS = (
    "A guard lowers how often a concept appears; none is shown to make it impossible. An interval says what its n can say.",
    "Results hold for the model, guards, policy, steps and guidance of their measurement, and for its prompts and judges.",
    "Judges are wrong at times; where a judge is not calibrated below, nobody has measured how often.",
    "Who can change weights or configuration of the service can do without the guards; who can write the audit's database can "
    "write a whole new chain, which only a head noted elsewhere shows.",
    "A text or content credentials can be taken out of an image. An image without them may still be the service's.",
    "This is a collection of technical facts. It is no legal advice and no proof of compliance with any law or standard.",
)


def collect(
    settings: Settings,
    results: Sequence[Path],
    benches: Sequence[Path],
    calibrations: Sequence[Path],
    expected: str | None = None,
) -> tuple[dict[str, Any], list[Cell]]:
    """(the evidence as plain data, the cells whose files belong to it).

    Args:
        results: folders of attack cells.
        benches: bench folders; their calibrations of judges are read, too.
        calibrations: files of `saferedir judge calibrate`.
        expected: a head of the audit that was noted earlier.
    """
    known = read_calibrations(calibrations, benches)
    models, cells = [], []
    for model in settings.models:
        facts, subjects = _model(settings, model)
        profiles = []
        for subject in subjects:
            matches = matching_cells(subject, results, benches)
            cells += matches
            profiles.append(_profile(subject, matches, known))
        judges = [{"preset": name, **verifying_judge(name).to_dict(known)} for name in model.verify]
        models.append({**facts, "judges": judges, "profiles": profiles})
    evidence = {
        "schema": SCHEMA,
        "made": now(),
        "models": models,
        "audit": _audit(settings, expected),
        "provenance": {
            "credentials": {"": "none", "test": "a test certificate, which proves nothing"}.get(
                settings.provenance.certificate, "an own certificate"
            ),
            "watermark": settings.provenance.watermark or "none",
        },
        "prompts_in_audit": settings.audit.prompts,
        "limits": list(LIMITS),
        "versions": _versions(),
    }
    return evidence, list({cell.file: cell for cell in cells}.values())


def _model(settings: Settings, model: ModelSettings) -> tuple[dict[str, Any], list[Subject]]:
    pipe = load_pipeline(model.source or model.name, dtype=model.dtype)
    load: Callable[[str], Guard[Any]] = cache(Guard.from_pretrained)
    backbone, bench_model = backbone_fingerprint(pipe), model_digest(pipe)
    subjects = []
    for name, profile in settings.profiles.items():
        if profile.models and model.name not in profile.models:
            continue
        action, of_file = floor_of(model, profile)
        rules = rules_of(model, action, of_file)
        guards = guards_as_served(model, rules, load)
        subjects.append(
            Subject(
                model=model.name,
                profile=name,
                backbone=json.loads(json.dumps(backbone)),
                bench_model=bench_model,
                guards=tuple(guard_facts(guard)["digest"] for guard in guards),
                concepts=_concepts(guards, rules),
                bench_guards=guards_digest(guards),
                bench_parts={guard.name: guards_digest([guard]) for guard in guards},
                verifiers=tuple(map(verifier_digest, guards)),
                policy=policy_facts(model, action, profile.retries, of_file),
                on_unsafe=action if rules is None else _same_as(rules),
                steps=model.steps,
                guidance=model.guidance,
            )
        )
    facts = {
        "name": model.name,
        "source": model.source or model.name,
        "fingerprint": digest_of(backbone),
        "steps": model.steps,
        "guidance": model.guidance,
        "guards": [_guard(name, load(name), only_logs) for name, only_logs in _listed(model, subjects).items()],
    }
    return facts, subjects


def guards_as_served(
    model: ModelSettings, rules: Policy | None, load: Callable[[str], Guard[Any]]
) -> tuple[Guard[Any], ...]:
    """The guards on a model's images, each once: those that its policy file switches off are not, and what it logs only logs."""
    if rules is None:
        return tuple(map(load, model.guard_names))
    return distinct(guards_of(rules, None, load=load)[0])


def _same_as(rules: Policy) -> str:
    """The `on_unsafe` that does the same with whole guards; "" where there is none."""
    on = [rule for rule in rules.concepts if rule.action != "off"]
    actions = {rule.action for rule in on}
    is_plain = not any(rule.row or rule.allow or rule.block_at for rule in on)
    return actions.pop() if is_plain and len(actions) == 1 and "log" not in actions else ""


def _listed(model: ModelSettings, subjects: Sequence[Subject]) -> dict[str, bool]:
    """Guard that acts or logs under some profile -> whether it only ever logs."""
    acting = {name for subject in subjects for name in subject.policy["guards"]}
    logged = {name for subject in subjects for name in subject.policy.get("logged", ())}
    return {name: name not in acting for name in model.guard_names if name in acting | logged}


def _guard(name: str, guard: Guard[Any], only_logs: bool) -> dict[str, Any]:
    """What a guard is, and what its own training says of it, which is no measurement of the service."""
    verdict = (getattr(guard.config, "calibration", None) or {}).get("verdict") or {}
    return {
        "name": name,
        "method": guard.method,
        "concept": guard.config.concept,
        "fingerprint": guard_fingerprint(guard),
        "only_logs": only_logs,
        "image_verifier": verifier_digest(guard),
        "verdict_of_training": verdict.get("why", "none"),
    }


def _concepts(guards: Sequence[Guard[Any]], rules: Policy | None) -> dict[str, tuple[str, ...]]:
    """Concept -> its guards: as a policy file's rules that are on name it, else as the guards' settings do."""
    if rules is not None:
        pairs = [(rule.concept, rule.guard) for rule in rules.concepts if rule.action != "off"]
    else:
        pairs = [(concept, guard.name) for guard in guards for concept in _concepts_of(guard)]
    return {name: tuple(guard for concept, guard in pairs if concept == name) for name, _ in pairs}


def _concepts_of(guard: Guard[Any]) -> tuple[str, ...]:
    """Those of the rows of a guard of many concepts, or the one."""
    rows: tuple[str, ...] = getattr(guard.config, "concepts", ())
    return rows or (guard.config.concept,)


def _profile(subject: Subject, cells: Sequence[Cell], known: Sequence[Calibration]) -> dict[str, Any]:
    policy = dict(subject.policy)
    concepts = by_concept(subject, cells, known)
    return {
        "name": subject.profile,
        "policy": policy,
        "policy_fingerprint": digest_of(policy),
        "is_measured": is_measured(concepts),
        "concepts": concepts,
        "measured": [cell.to_dict() for cell in cells if cell.is_exact],
        "of_something_else": [cell.to_dict() for cell in cells if not cell.is_exact],
    }


def _audit(settings: Settings, expected: str | None) -> dict[str, Any]:
    url = settings.audit.url
    try:
        check_exists(url)
        store = AuditStore(url, is_read_only=True)
    except ServerError as error:
        return {"url": settings.audit.shown_url(), "is_verified": False, "problems": [str(error)]}
    try:
        result = store.verify(expected)
    finally:
        store.close()
    return {
        "url": settings.audit.shown_url(),
        "is_verified": result.is_whole,
        "records": result.records,
        "head": result.head,
        "expected_head": expected,
        "problems": list(result.problems),
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
