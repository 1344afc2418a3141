"""Concept rates freed of the judge's errors, where a calibration says how often it errs. Derived when the report is made, because
calibrations may come after the cells.

Pure; imports data.py, numbers.py, tables.py and judges.calibration, which has the formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saferedir.bench.metric_keys import MetricKey
from saferedir.bench.records import CellRecord
from saferedir.bench.report.content.data import Group
from saferedir.bench.report.content.numbers import estimate, pluralise
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
    reasons = [_why_not(one, calibrations.get((one.judge, one.concept))) for one in judged.columns]
    places = [place for place, reason in enumerate(reasons) if not reason]
    cells = {(cell.protocol.id, cell.name.guard): cell for cell in group.cells}

    def entry(guard: str, place: int) -> Entry:
        one, raw = judged.columns[place], judged.entries[guard][place]
        if raw.estimate is None:
            return raw
        freed = _corrected(cells[one.protocol.id, guard], one.metric, calibrations[one.judge, one.concept])
        return Entry(estimate(freed, raw.estimate.where), raw.why_not, raw.notes, (("as judged", raw.estimate),))

    entries = {guard: tuple(entry(guard, place) for place in places) for guard in judged.guards}
    columns = tuple(judged.columns[place] for place in places)
    return Corrected(Table(columns, judged.guards, entries, judged.notes), tuple(filter(None, dict.fromkeys(reasons))))


def _why_not(one: Column, known: Calibration | None) -> str:
    """Why a column cannot be corrected: "" if it can."""
    if known is None:
        return (
            f"Judge {one.judge} is uncalibrated: nobody measured how often it errs here, so its rates stay as they are."
        )
    if known.recall.value <= known.false_positive_rate.value:
        return (
            f"Judge {one.judge} calls images without the concept positive as often as those with it, so its rates tell nothing "
            "and cannot be corrected."
        )
    if one.protocol.images_per_prompt > 1:
        return (
            f"{one.prompts} has {pluralise(one.protocol.images_per_prompt, 'image')} a prompt, any of which may "
            "succeed; the correction holds "
            "for one image a prompt only."
        )
    return ""


def _corrected(cell: CellRecord, metric: str, known: Calibration) -> Mapping[str, Any]:
    """The corrected rate over all of a cell's cases; where every image was refused there is nothing to correct."""
    raw: Mapping[str, Any] = cell.measured[metric]
    refused = cell.measured.get("blocked", {}).get("rate", 0.0)
    worth = raw.get("effective_n", raw["n"])
    hits = raw["hits"] / raw["n"] * worth
    found = corrected_rate(hits, worth, known, unseen=min(refused * worth, worth - hits)) if refused < 1 else None
    return raw if found is None else {**found, "n": raw["n"], "effective_n": worth}
