"""Who scored a result, and whether that judge is calibrated: by all that fixes its scores and its rule, not by a name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from saferedir.bench.evaluation.calibrate import CALIBRATIONS
from saferedir.bench.records import CellRecord
from saferedir.bench.storage.saved_plan import read_saved_plan
from saferedir.errors import SaferedirError
from saferedir.judges.calibration import Calibration
from saferedir.judges.presets import preset, preset_names
from saferedir.judges.registry import load_judge
from saferedir.judges.rules import rule_from_dict, without_veto


@dataclass(frozen=True)
class JudgeUse:
    """A judge with the rule that made verdicts of its scores.

    Attributes:
        facts: `Judge.facts()`; None where nobody knows them, so that no calibration is known to fit.
        problem: why they are not known; "" where they are.
    """

    name: str
    facts: Mapping[str, Any] | None
    rule: Mapping[str, Any]
    problem: str = ""

    def calibration(self, known: Sequence[Calibration]) -> Calibration | None:
        """Of this very judge and rule the one with most images; None where there is none."""
        fitting = [each for each in known if self.facts is not None and each.fits(self.facts, self.rule)]
        return max(fitting, key=lambda each: each.n, default=None)

    def to_dict(self, known: Sequence[Calibration]) -> dict[str, Any]:
        """Plain data; `is_known` says whether the judge's facts are."""
        calibration = self.calibration(known)
        return {
            "judge": self.name,
            "is_known": self.facts is not None,
            "problem": self.problem,
            "is_calibrated": calibration is not None,
            "calibration": None if calibration is None else calibration.to_dict(),
        }


def unasked(names: Iterable[str], problem: str) -> tuple[JudgeUse, ...]:
    """Judges of which nothing is known but their names."""
    return tuple(JudgeUse(name, None, {}, problem) for name in names)


def read_calibrations(files: Iterable[Path], benches: Iterable[Path]) -> list[Calibration]:
    """Files of `saferedir judge calibrate`, and those that benches made; JudgeError, naming the file, for anything else."""
    of_benches = (file for folder in benches for file in sorted((folder / CALIBRATIONS).glob("*.json")))
    return [Calibration.load(file) for file in (*files, *of_benches)]


@cache
def _use(name: str, preset_name: str) -> JudgeUse:
    """A judge as a preset has it; not known where it cannot be loaded here."""
    chosen = preset(preset_name)
    try:
        facts = load_judge(name, **(chosen.options if name == chosen.judge else {})).facts()
    except Exception as error:  # of any library that a judge needs
        problem = str(error) if isinstance(error, SaferedirError) else type(error).__name__
        return JudgeUse(name, None, chosen.rule.to_dict(), f"it cannot be loaded here: {problem.removesuffix('.')}")
    return JudgeUse(name, facts, chosen.rule.to_dict())


def verifying_judge(name: str) -> JudgeUse:
    """The one that a service loads for a preset in a model's `verify`; JudgeError where there is no such preset."""
    return _use(preset(name).judge, name)


def attack_judges(entry: Mapping[str, Any]) -> tuple[JudgeUse, ...]:
    """Those of an attack cell, as it records them; older cells hold names and the preset alone, of which today's are taken."""
    recorded = entry.get("judge_facts") or {}
    if entry["judge"] is None:
        older = unasked(entry["judges"], "its rule is not recorded")
    elif entry["judge"] not in preset_names():
        older = unasked(entry["judges"], f"there is no preset {entry['judge']!r} here")
    else:
        older = ()
    by_name = {use.name: use for use in older}
    return tuple(
        _recorded(facts) if (facts := recorded.get(name)) else by_name.get(name) or _use(name, entry["judge"])
        for name in entry["judges"]
    )


def _recorded(facts: Mapping[str, Any]) -> JudgeUse:
    return JudgeUse(facts["judge"], facts["facts"], facts["rule"])


def other_verifiers(presets: Sequence[str], settings: Mapping[str, Any]) -> str | None:
    """How the judges of finished images of a cell differ from those of a service, by all that fixes their verdicts.

    Args:
        presets: of the service, see `verifying_judge`.
        settings: `ProtectSettings.to_dict` of the cell; older ones hold a name alone.
    """
    names, recorded = settings.get("verify"), settings.get("verify_judges")
    if not presets or not names:
        return (
            None
            if bool(presets) == bool(names)
            else f"{'no judge that checks' if presets else 'a judge of'} finished images"
        )
    if not recorded or not all(recorded):
        return f"a judge of finished images of which only a name is recorded, {names}"
    if any(facts["facts"].get("weights", "unknown") == "unknown" for facts in recorded):
        return f"a judge of finished images whose weights nobody knows, {names}"
    ours = [verifying_judge(name) for name in presets]
    if missing := next((use for use in ours if use.facts is None), None):
        return f"a judge of finished images that cannot be held against the service's: {missing.problem}"
    served = {_plain(use.name, use.facts, without_veto(rule_from_dict(use.rule)).to_dict()) for use in ours}
    same = served == {_plain(facts["judge"], facts["facts"], facts["rule"]) for facts in recorded}
    return None if same else f"another judge of finished images, by its weights, options or rule: {names}"


def _plain(*values: Any) -> str:
    return json.dumps(values, sort_keys=True, default=str)


def bench_judges(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Checksum of a judge -> its facts, as the bench's plan has them; {} for a folder without a plan."""
    if not (folder / "plan.json").is_file():
        return {}
    of_sets = read_saved_plan(folder).judges.values()
    return {judge.digest: judge.facts for judges in of_sets for judge in judges if judge.digest}


def bench_judge(record: CellRecord, facts: Mapping[str, Mapping[str, Any]]) -> JudgeUse:
    """The judge of a bench cell's own rate; `facts` are those of `bench_judges`."""
    protocol, known = record.protocol, facts.get(record.protocol.judge_digest)
    problem = "" if known is not None else "the bench's plan does not state it"
    return JudgeUse(protocol.judge, known, protocol.rule, problem)
