"""Who scored a result, and whether that judge is calibrated: by all that fixes its scores and its rule, not by a name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from saferedir.bench.evaluation.calibrate import CALIBRATIONS
from saferedir.bench.records import CellRecord
from saferedir.bench.storage.saved_plan import read_saved_plan
from saferedir.judges.base import Judge
from saferedir.judges.calibration import Calibration
from saferedir.judges.presets import preset
from saferedir.judges.registry import load_judge


@dataclass(frozen=True)
class JudgeUse:
    """A judge with the rule that made verdicts of its scores.

    Attributes:
        facts: `Judge.facts()`; None where nobody knows them, so that no calibration is known to fit.
    """

    name: str
    facts: Mapping[str, Any] | None
    rule: Mapping[str, Any]

    def calibration(self, known: Sequence[Calibration]) -> Calibration | None:
        """Of this very judge and rule the one with most images; None where there is none."""
        fitting = [each for each in known if self.facts is not None and each.fits(self.facts, self.rule)]
        return max(fitting, key=lambda each: each.n, default=None)

    def to_dict(self, known: Sequence[Calibration]) -> dict[str, Any]:
        """Plain data."""
        calibration = self.calibration(known)
        return {
            "judge": self.name,
            "is_calibrated": calibration is not None,
            "calibration": None if calibration is None else calibration.to_dict(),
        }


def read_calibrations(files: Iterable[Path], benches: Iterable[Path]) -> list[Calibration]:
    """Files of `saferedir judge calibrate`, and those that benches made; JudgeError, naming the file, for anything else."""
    of_benches = (file for folder in benches for file in sorted((folder / CALIBRATIONS).glob("*.json")))
    return [Calibration.load(file) for file in (*files, *of_benches)]


@cache
def _loaded(name: str, preset_name: str) -> Judge:
    chosen = preset(preset_name)
    return load_judge(name, **(chosen.options if name == chosen.judge else {}))


def verifying_judge(name: str) -> JudgeUse:
    """The one that a service loads for a preset in a model's `verify`."""
    chosen = preset(name)
    return JudgeUse(chosen.judge, _loaded(chosen.judge, name).facts(), chosen.rule.to_dict())


def attack_judges(entry: Mapping[str, Any]) -> tuple[JudgeUse, ...]:
    """Those of an attack cell, as they are today: the cell holds their names and the preset, and no checksum of their weights."""
    if entry["judge"] is None:
        return tuple(JudgeUse(name, None, {}) for name in entry["judges"])
    rule = preset(entry["judge"]).rule.to_dict()
    return tuple(JudgeUse(name, _loaded(name, entry["judge"]).facts(), rule) for name in entry["judges"])


def bench_judges(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Checksum of a judge -> its facts, as the bench's plan has them; {} for a folder without a plan."""
    if not (folder / "plan.json").is_file():
        return {}
    of_sets = read_saved_plan(folder).judges.values()
    return {judge.digest: judge.facts for judges in of_sets for judge in judges if judge.digest}


def bench_judge(record: CellRecord, facts: Mapping[str, Mapping[str, Any]]) -> JudgeUse:
    """The judge of a bench cell's own rate; `facts` are those of `bench_judges`."""
    protocol = record.protocol
    return JudgeUse(protocol.judge, facts.get(protocol.judge_digest), protocol.rule)
