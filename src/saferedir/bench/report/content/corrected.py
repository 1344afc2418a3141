"""Concept rates freed of the judge's errors, where a calibration says how often it errs. Derived when the report is made, because
calibrations may come after the cells.

The formula: judges.calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saferedir.bench.metric_keys import MetricKey
from saferedir.bench.records import CellRecord
from saferedir.bench.report.content.data import Group
from saferedir.bench.report.content.numbers import estimate
from saferedir.bench.report.content.sentences import sentence
from saferedir.bench.report.content.tables import Column, Entry, Table, table
from saferedir.judges.calibration import Calibration, corrected_rate


@dataclass(frozen=True)
class Corrected:
    """Rates beside their corrections.

    Attributes:
        table: columns of the judges that can be corrected for; each entry's `beside` is the rate as judged.
        why_not: a sentence on each judge that cannot.
    """

    table: Table
    why_not: tuple[str, ...]


def corrected_rates(group: Group, calibrations: Mapping[tuple[str, str], Calibration]) -> Corrected:
    """The concept rates of a group by every judge, corrected where a calibration of the same judge and rule is known."""
    judged = table(
        group, lambda cell, metric: cell.name.role == "forget" and MetricKey.parse(metric).metric == "concept"
    )
    reasons = [_why_not(column, calibrations.get((column.judge, column.concept))) for column in judged.columns]
    indices = [index for index, reason in enumerate(reasons) if not reason]
    cells = {(cell.protocol.id, cell.name.guard): cell for cell in group.cells}

    def entry(guard: str, index: int) -> Entry:
        column, raw = judged.columns[index], judged.entries[guard][index]
        if raw.estimate is None:
            return raw
        known = calibrations[column.judge, column.concept]
        rate = _corrected(cells[column.protocol.id, guard], column.metric, known)
        return Entry(estimate(rate, raw.estimate.where), raw.why_not, raw.notes, (("as judged", raw.estimate),))

    entries = {guard: tuple(entry(guard, index) for index in indices) for guard in judged.guards}
    columns = tuple(judged.columns[index] for index in indices)
    return Corrected(Table(columns, judged.guards, entries, judged.notes), tuple(filter(None, dict.fromkeys(reasons))))


def _why_not(column: Column, known: Calibration | None) -> str:
    """Why a column cannot be corrected: "" if it can."""
    if known is None:
        return sentence("captions.uncalibrated", judge=column.judge)
    if known.recall.value <= known.false_positive_rate.value:
        return sentence("captions.judge_tells_nothing", judge=column.judge)
    number = column.protocol.images_per_prompt
    return sentence("captions.several_images_a_prompt", prompts=column.prompts, number=number) if number > 1 else ""


def _corrected(cell: CellRecord, metric: str, known: Calibration) -> Mapping[str, Any]:
    """The corrected rate over all of a cell's cases; where every image was refused there is nothing to correct."""
    raw: Mapping[str, Any] = cell.measured[metric]
    refused = cell.measured.get("blocked", {}).get("rate", 0.0)
    effective_n = raw.get("effective_n", raw["n"])
    hits = raw["hits"] / raw["n"] * effective_n
    if refused >= 1:
        return raw
    unseen = min(refused * effective_n, effective_n - hits)
    rate = corrected_rate(hits, effective_n, known, unseen=unseen)
    return raw if rate is None else {**rate, "n": raw["n"], "effective_n": effective_n}
