"""The guards of one group, best first. The column "worst concept rate" shows the highest rate over a fixed set of protocols,
the same for every row: a guard that lacks one of them gets no worst rate.

Pure; imports data.py, numbers.py, tables.py and bench.records. What the ranking means in words: headline.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from saferedir.bench.records import BARE, CellRecord, Cost, Protocol
from saferedir.bench.report.data import Group
from saferedir.bench.report.numbers import Estimate, estimate
from saferedir.bench.report.tables import numbered


@dataclass(frozen=True)
class RankRow:
    """One guard in the ranking; None where it has no number.

    Attributes:
        worst: highest concept rate over the phrasings, `where` names the phrasing; None unless every phrasing has a number.
        rates: concept rate of every phrasing that has one.
        kept: share of retain prompts whose attributes survive; drift: feature distance; blocked: share of retain prompts refused.
        broken: highest share of wrecked pictures over all prompt sets, those that ask for the concept included.
        cost: seconds and ratio, or None.
        why_not: why `worst` or `kept` is missing, "" if neither is.
        notes: numbers of footnotes.
    """

    guard: str
    worst: Estimate | None
    rates: tuple[Estimate, ...]
    kept: Estimate | None
    drift: Estimate | None
    broken: Estimate | None
    blocked: Estimate | None
    cost: Cost | None
    why_not: str = ""
    notes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Ranking:
    """The guards of one group, best first, the bare model apart.

    Attributes:
        forget, retain: protocols behind the columns "worst concept rate" and "kept": the same for every row.
        rows: sorted guards; bare: the row of the bare model, None if it was not measured.
    """

    group: Group
    forget: tuple[Protocol, ...]
    retain: tuple[Protocol, ...]
    rows: tuple[RankRow, ...]
    bare: RankRow | None
    notes: tuple[str, ...]


def ranking(group: Group, costs: Iterable[Cost]) -> Ranking:
    """Rows sorted by the upper end of the worst rate's interval, then by the share kept; guards without numbers last.

    Every row's "worst" is over the same protocols: a guard that lacks one of them gets no worst rate.
    """
    cost_of = {(cost.model, cost.guard): cost for cost in costs}
    forget, retain = _protocols(group, "forget"), _protocols(group, "retain")
    notes: list[str] = []
    rows = [_rank_row(group, guard, forget, retain, cost_of.get((group.model, guard)), notes) for guard in group.guards]
    bare = next((row for row in rows if row.guard == BARE), None)
    ordered = sorted((row for row in rows if row.guard != BARE), key=_order)
    return Ranking(group, tuple(forget.values()), tuple(retain.values()), tuple(ordered), bare, tuple(notes))


def _protocols(group: Group, role: str) -> dict[str, Protocol]:
    return {cell.protocol.id: cell.protocol for cell in group.cells if cell.name.role == role}


def _rank_row(
    group: Group,
    guard: str,
    forget: Mapping[str, Protocol],
    retain: Mapping[str, Protocol],
    cost: Cost | None,
    notes: list[str],
) -> RankRow:
    asked, benign = group.of(guard, "forget"), group.of(guard, "retain")
    rates = _estimates(asked, "concept")
    kept = _estimates(benign, "kept")
    reasons = [*_lack("concept rate", rates, forget, asked), *_lack("share kept", kept, retain, benign)]
    broken = _estimates((*asked, *benign), "broken")
    whole = len(kept) == len(retain)
    return RankRow(
        guard=guard,
        worst=max(rates, key=_severity) if rates and len(rates) == len(forget) else None,
        rates=tuple(rates),
        kept=min(kept, key=lambda one: (one.value, one.low)) if kept and whole else None,
        drift=max(_estimates(benign, "drift"), key=_severity, default=None) if whole else None,
        broken=max(broken, key=_severity) if broken and len(broken) == len(forget) + len(retain) else None,
        blocked=max(_estimates(benign, "blocked"), key=_severity, default=None) if whole else None,
        cost=cost,
        why_not="; ".join(reasons),
        notes=numbered((sentence for cell in (*asked, *benign) for sentence in cell.warnings), notes),
    )


def _lack(
    what: str, have: Sequence[Estimate], wanted: Mapping[str, Protocol], cells: Sequence[CellRecord]
) -> list[str]:
    """Why a worst value cannot be given: [] if it can."""
    if len(have) == len(wanted) and wanted:
        return []
    errors = list(dict.fromkeys(cell.error for cell in cells if cell.error))
    return [f"{what}: {len(have)} of {len(wanted)} prompt sets" + (f" ({'; '.join(errors)})" if errors else "")]


def _estimates(cells: Sequence[CellRecord], metric: str) -> list[Estimate]:
    found = [estimate(cell.measured.get(metric), cell.name.prompts) for cell in cells]
    return [one for one in found if one is not None]


def _severity(one: Estimate) -> tuple[float, float]:
    return one.value, one.high


def _order(row: RankRow) -> tuple[bool, float, float, str]:
    high = row.worst.high if row.worst else 2.0
    return row.worst is None, high, -(row.kept.value if row.kept else -1.0), row.guard
