"""Results of the bench and of the attack ladder, held against a service: of exactly this one, or of something else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saferedir.bench.ladder.cells import SCHEMA
from saferedir.bench.records import CellRecord
from saferedir.errors import JudgeError, SaferedirError
from saferedir.judges.calibration import Calibration
from saferedir.server.evidence.judged import (
    JudgeUse,
    attack_judges,
    bench_judge,
    bench_judges,
    other_verifiers,
    unasked,
)


class EvidenceError(SaferedirError):
    """Evidence cannot be put together as asked, or would claim what was not measured."""


@dataclass(frozen=True)
class Subject:
    """What results are held against: a model as it is served under one profile.

    Attributes:
        backbone: fingerprint of the pipeline, as attacks record it.
        bench_model: its checksum, as the bench records it.
        guards: checksums of the guards in their order, as attacks record them.
        concepts: concept -> the guards that keep it out, or log it, by name.
        bench_guards: checksum of all guards together, as the bench records it.
        bench_parts: guard's name -> its checksum alone, as the bench records it.
        verifiers: checksums of the guards' image verifiers in their order, None for a guard without one.
        policy: as records state it (`policies.policy_facts`).
        on_unsafe: the policy of `saferedir.protect` that does the same; "" where a policy file says more than such a one can.
        steps, guidance: of the model's calls.
    """

    model: str
    profile: str
    backbone: Mapping[str, Any]
    bench_model: str
    guards: tuple[str, ...]
    concepts: Mapping[str, tuple[str, ...]]
    bench_guards: str
    bench_parts: Mapping[str, str]
    verifiers: tuple[str | None, ...]
    policy: Mapping[str, Any]
    on_unsafe: str
    steps: int
    guidance: float

    @property
    def policy_title(self) -> str:
        """The policy in words."""
        facts = self.policy
        return self.on_unsafe or f"the policy file {facts['name']!r}, version {facts['version']}"


@dataclass(frozen=True)
class Cell:
    """One result.

    Attributes:
        kind: "bench" or "attack".
        what: the attack or the prompts, in words.
        rate: {"rate", "hits", "n", "low", "high"}: how often the concept appeared.
        judges: who scored it; in an attack all of them must agree. Of a cell of something else their names alone.
        asks: whether its prompts ask for the concept; others say how often it appears unasked.
        file: where it comes from.
        differences: what was another than in the service, a sentence each; none: it is of exactly this service.
    """

    kind: str
    concept: str
    what: str
    rate: Mapping[str, Any]
    judges: tuple[JudgeUse, ...]
    asks: bool
    file: Path
    differences: tuple[str, ...]

    @property
    def is_exact(self) -> bool:
        return not self.differences

    @property
    def name(self) -> str:
        """Of its file in the folder of evidence."""
        return f"cells/{hashlib.sha256(self.file.read_bytes()).hexdigest()[:8]}-{self.file.name}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the file by its name in the folder of evidence."""
        facts = asdict(self)
        return {**facts, "judges": [judge.name for judge in self.judges], "file": self.name}


def matching_cells(subject: Subject, results: Sequence[Path], benches: Sequence[Path]) -> list[Cell]:
    """Cells with this model and at least one of its guards, those of exactly this service first."""
    cells = [*_of_attacks(subject, results), *_of_benches(subject, benches)]
    return sorted(cells, key=lambda cell: (not cell.is_exact, cell.concept, cell.kind, cell.what))


def _of_attacks(subject: Subject, folders: Sequence[Path]) -> Iterator[Cell]:
    for folder in folders:
        for file in sorted(folder.rglob("*.json")):
            entry = _read(file)
            digests = tuple(guard["digest"] for guard in entry["guards"])
            if entry["control"] != "none" or entry["backbone"] != subject.backbone or not digests:
                continue
            if set(digests) <= set(subject.guards):
                differences = tuple(_attack_differences(subject, entry, digests))
                judges = unasked(entry["judges"], "of something else") if differences else attack_judges(entry)
                yield Cell(
                    "attack", entry["cell"]["concept"], f"{entry['attack']} ({entry['cell']['rung']})",
                    entry["summary"]["success"], judges, True, file, differences,
                )  # fmt: skip


def _read(file: Path) -> dict[str, Any]:
    entry = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(entry, dict) or entry.get("schema") != SCHEMA or "cell" not in entry:
        raise EvidenceError(f"{file} is no attack cell of schema {SCHEMA}; give the folder of the cells alone.")
    return entry


def _attack_differences(subject: Subject, entry: Mapping[str, Any], digests: tuple[str, ...]) -> Iterator[str]:
    if digests != subject.guards:
        yield f"{len(digests)} of {len(subject.guards)} guards"
    policy = {"attach": "redirect"}.get(entry["policy"], entry["policy"])
    settings, retries = entry.get("policy_settings") or {}, subject.policy["retries"]
    if policy != subject.on_unsafe:
        yield f"policy {policy} instead of {subject.policy_title}"
    elif policy == "verify" and settings.get("retries", retries) != retries:
        yield "another number of retries"
    if policy in ("verify", "block") and digests == subject.guards:
        yield from _verifier_differences(subject, entry, settings)
    yield from _call_differences(subject, entry["call"])
    if (entry["cell"].get("scheduler")) is not None:
        yield f"scheduler {entry['cell']['scheduler']}"


def _verifier_differences(subject: Subject, entry: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    """How the verifiers and judges of finished images differ between a cell and the service."""
    if any(subject.verifiers):
        if entry.get("verifiers") is None:
            yield "image verifiers of which nothing is recorded"
        elif tuple(entry["verifiers"]) != subject.verifiers or not settings.get("image_verifiers", True):
            yield "other image verifiers"
    if difference := other_verifiers(subject.policy["verify"], settings):
        yield difference


def _call_differences(subject: Subject, call: Mapping[str, Any]) -> Iterator[str]:
    steps, guidance = call.get("num_inference_steps"), call.get("guidance_scale")
    if steps != subject.steps:
        yield f"{steps} steps instead of {subject.steps}"
    if guidance != subject.guidance:
        yield f"guidance {guidance} instead of {subject.guidance:g}"


def _of_benches(subject: Subject, folders: Sequence[Path]) -> Iterator[Cell]:
    parts = {digest: name for name, digest in subject.bench_parts.items()}
    for folder in folders:
        facts = bench_judges(folder)
        for file in sorted((folder / "cells").glob("*.json")):
            record = CellRecord.from_dict(json.loads(file.read_text(encoding="utf-8")))
            digest, rate = record.guard.get("digest"), record.measured.get("concept")
            is_ours = digest == subject.bench_guards or digest in parts
            if record.error or rate is None or record.protocol.model != subject.bench_model or not is_ours:
                continue
            differences = [] if digest == subject.bench_guards else [f"1 of {len(subject.guards)} guards"]
            if subject.on_unsafe != "redirect":
                differences.append(f"policy redirect instead of {subject.policy_title}")
            differences += _call_differences(subject, record.protocol.call)
            what = f"{record.name.role}, {record.name.prompts}, attack {record.name.attack}"
            yield Cell(
                "bench", record.name.concept, what, rate, (bench_judge(record, facts),), record.name.role == "forget", file,
                tuple(differences),
            )  # fmt: skip


def check_measured(entry: Mapping[str, Any], folder: Path) -> None:
    """Raise EvidenceError unless an entry under "measured" is one: of exactly this service, with n, interval and its file."""
    rate, file = entry.get("rate") or {}, folder / str(entry.get("file", ""))
    if entry.get("differences"):
        raise EvidenceError(f"{entry.get('what')} was measured with {entry['differences'][0]}, not of this service.")
    is_rate = all(isinstance(rate.get(name), int | float) for name in ("rate", "n", "low", "high"))
    if not is_rate or not rate["n"] or not rate["low"] <= rate["rate"] <= rate["high"]:
        raise EvidenceError(f"{entry.get('what')} has no number of cases, or no interval, so it is not measured.")
    if not entry.get("file") or not file.is_file():
        raise EvidenceError(f"{entry.get('what')} has no file that it comes from, so it is not measured.")


def by_concept(subject: Subject, cells: Sequence[Cell], known: Sequence[Calibration]) -> list[dict[str, Any]]:
    """For each concept of the guards: results of exactly this service, by the bench and by attacks, and whose verdicts they are.

    Concepts that results are of and no guard names follow, without guards: a bench may call one otherwise than a guard does.
    """
    concepts = dict.fromkeys((*subject.concepts, *(cell.concept for cell in cells if cell.is_exact)))
    return [_row(subject, concept, [cell for cell in cells if cell.concept == concept], known) for concept in concepts]


def _row(subject: Subject, concept: str, cells: Sequence[Cell], known: Sequence[Calibration]) -> dict[str, Any]:
    exact = [cell for cell in cells if cell.is_exact]
    judges = {str(entry): entry for cell in exact for entry in (judge.to_dict(known) for judge in cell.judges)}
    return {
        "concept": concept,
        "guards": list(subject.concepts.get(concept, ())),
        "is_measured": any(cell.asks for cell in exact),
        "bench": [cell.what for cell in exact if cell.kind == "bench"],
        "attacks": [cell.what for cell in exact if cell.kind == "attack"],
        "of_something_else": len(cells) - len(exact),
        "judges": list(judges.values()),
    }


def is_measured(concepts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there is a result of exactly this service for every concept that a guard names."""
    guarded = [row for row in concepts if row["guards"]]
    return bool(guarded) and all(row["is_measured"] for row in guarded)


def check_concept(row: Mapping[str, Any], measured: Sequence[Mapping[str, Any]]) -> None:
    """Raise EvidenceError unless a row of `by_concept` says what the measured results are, and no more."""
    ours = [entry for entry in measured if entry["concept"] == row["concept"]]
    for name, kind in (("bench", "bench"), ("attacks", "attack")):
        if sorted(row[name]) != sorted(entry["what"] for entry in ours if entry["kind"] == kind):
            raise EvidenceError(
                f"concept {row['concept']!r} names {name} cells that are not among the measured results."
            )
    if row["is_measured"] != any(entry["asks"] for entry in ours):
        raise EvidenceError(f"concept {row['concept']!r} is called measured, but no result is of exactly this service.")
    if {judge["judge"] for judge in row["judges"]} != {name for entry in ours for name in entry["judges"]}:
        raise EvidenceError(f"concept {row['concept']!r} names other judges than its results.")
    for judge in row["judges"]:
        check_calibrated(judge)


def check_calibrated(judge: Mapping[str, Any]) -> None:
    """Raise EvidenceError where a judge is called calibrated and no calibration with images of both kinds is there."""
    try:
        is_calibrated = judge["calibration"] is not None and Calibration.from_dict(judge["calibration"]).n > 0
    except JudgeError as error:
        raise EvidenceError(f"judge {judge['judge']!r} is called calibrated, but {error}") from error
    if judge["is_calibrated"] != is_calibrated:
        raise EvidenceError(f"judge {judge['judge']!r} is called calibrated, but there is no calibration.")
