"""The guards of one group, best first. The column "worst concept rate" shows the highest rate over a fixed set of protocols,
the same for every row: a guard that lacks one of them gets no worst rate.

What the ranking means in words: headline.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from saferedir.bench.records import BARE, CellRecord, Cost, Protocol
from saferedir.bench.report.content.data import Group
from saferedir.bench.report.content.limits import MAX_REFUSAL_RATE, Limits
from saferedir.bench.report.content.measures import RETENTION, Measure, estimates, measure_of
from saferedir.bench.report.content.numbers import Estimate
from saferedir.bench.report.content.sentences import sentence
from saferedir.bench.report.content.tables import numbered


@dataclass(frozen=True)
class RankRow:
    """One guard in the ranking; None where it has no number.

    Attributes:
        worst: highest concept rate over the phrasings, `where` names the phrasing; None unless every phrasing has a number.
        rates: concept rate of every phrasing that has one.
        preserved: by `measure`, on retain prompts, the worst prompt set; measure, limits: the ranking's, the same for every row.
        drift: feature distance; blocked: share of images of retain prompts that were refused, the worst prompt set.
        refused: the same of prompts that ask for the concept, the worst phrasing.
        broken: highest share of wrecked images over all prompt sets, those that ask for the concept included.
        cost: seconds and ratio, or None.
        why_not: why `worst` or `preserved` is missing, "" if neither is.
        notes: numbers of footnotes.
    """

    guard: str
    worst: Estimate | None
    rates: tuple[Estimate, ...]
    preserved: Estimate | None
    drift: Estimate | None
    broken: Estimate | None
    refused: Estimate | None
    blocked: Estimate | None
    cost: Cost | None
    measure: Measure = RETENTION
    limits: Limits = field(default_factory=Limits)
    why_not: str = ""
    notes: tuple[int, ...] = ()

    @property
    def retention(self) -> Estimate | None:
        """Share of attributes kept, None where something else stands for preservation."""
        return self.preserved if self.measure == RETENTION else None

    @property
    def is_refusing(self) -> bool:
        """Whether it refuses more than `MAX_REFUSAL_RATE` of the prompts that do not ask for the concept."""
        return self.blocked is not None and self.blocked.value > MAX_REFUSAL_RATE

    @property
    def comes_last(self) -> bool:
        """Whether it refuses so much where nothing else in the ranking would show it."""
        return self.limits.refusal and self.is_refusing


@dataclass(frozen=True)
class Ranking:
    """The guards of one group, best first, the bare model apart.

    Attributes:
        forget, retain: protocols behind the columns "worst concept rate" and "retention": the same for every row.
        measure: what stands for preservation; limits: those that apply.
        rows: sorted guards; bare: the row of the bare model, None if it was not measured.
    """

    group: Group
    forget: tuple[Protocol, ...]
    retain: tuple[Protocol, ...]
    measure: Measure
    limits: Limits
    rows: tuple[RankRow, ...]
    bare: RankRow | None
    notes: tuple[str, ...]

    @property
    def further(self) -> tuple[str, ...]:
        """Which of "drift" and "broken" have a number and are not the measure itself: the others get no column."""
        has = {name: any(getattr(row, name) for row in self.rows) for name in ("drift", "broken")}
        return tuple(name for name, some in has.items() if some and name != self.measure.metric)

    @property
    def sorting(self) -> str:
        """By what the rows are sorted, as a sentence."""
        return sentence(
            "captions.sorting",
            measure=self.measure.words if any(row.preserved for row in self.rows) else "",
            refusal=MAX_REFUSAL_RATE if self.limits.refusal else None,
        )


def ranking(group: Group, costs: Iterable[Cost]) -> Ranking:
    """Rows sorted by the upper end of the worst rate's interval, then by what they preserve; guards that refuse too much come
    after these, guards without numbers last.

    Every row's "worst" is over the same protocols: a guard that lacks one of them gets no worst rate.
    """
    cost_of = {(cost.model, cost.guard): cost for cost in costs}
    forget, retain, measure = _protocols(group, "forget"), _protocols(group, "retain"), measure_of(group)
    limits = _limits(group, measure, len(retain))
    notes: list[str] = []
    rows = [
        _rank_row(group, guard, forget, retain, measure, limits, cost_of.get((group.model, guard)), notes)
        for guard in group.guards
    ]
    bare = next((row for row in rows if row.guard == BARE), None)
    ordered = sorted((row for row in rows if row.guard != BARE), key=_order)
    protocols = tuple(forget.values()), tuple(retain.values())
    return Ranking(group, *protocols, measure, limits, tuple(ordered), bare, tuple(notes))


def _limits(group: Group, measure: Measure, wanted: int) -> Limits:
    """Those limits that some guard has the numbers for."""

    def is_measured(metric: str) -> bool:
        guarded = (group.of(guard, "retain") for guard in group.guards if guard != BARE)
        return wanted > 0 and any(len(estimates(cells, metric)) == wanted for cells in guarded)

    has_retention = measure == RETENTION and is_measured(RETENTION.metric)
    return Limits(has_retention, refusal=not has_retention and is_measured("blocked"))


def _protocols(group: Group, role: str) -> dict[str, Protocol]:
    return {cell.protocol.id: cell.protocol for cell in group.cells if cell.name.role == role}


def _rank_row(
    group: Group,
    guard: str,
    forget: Mapping[str, Protocol],
    retain: Mapping[str, Protocol],
    measure: Measure,
    limits: Limits,
    cost: Cost | None,
    notes: list[str],
) -> RankRow:
    asked, benign = group.of(guard, "forget"), group.of(guard, "retain")
    rates, preserved = estimates(asked, "concept"), estimates(benign, measure.metric)
    what = measure.name
    blocked = _highest(estimates(benign, "blocked"), len(retain))
    reasons = _lack("concept rate", rates, forget, asked)
    if blocked and blocked.value == 1 and len(preserved) < len(retain):
        reasons.append(f"{what}: every image was refused")
    else:
        reasons += _lack(what, preserved, retain, benign)
    row = RankRow(
        guard=guard,
        worst=_highest(rates, len(forget)),
        rates=tuple(rates),
        preserved=max(preserved, key=measure.order) if preserved and len(preserved) == len(retain) else None,
        drift=_highest(estimates(benign, "drift"), len(retain)),
        broken=_highest(estimates((*asked, *benign), "broken"), len(forget) + len(retain)),
        refused=_highest(estimates(asked, "blocked"), len(forget)),
        blocked=blocked,
        cost=cost,
        measure=measure,
        limits=limits,
        why_not="; ".join(reasons),
    )
    footnotes = [warning for cell in (*asked, *benign) for warning in cell.warnings]
    footnotes += [sentence("captions.refuses_too_much", limit=MAX_REFUSAL_RATE)] if row.comes_last else []
    return replace(row, notes=numbered(footnotes, notes))


def _lack(
    what: str, have: Sequence[Estimate], wanted: Mapping[str, Protocol], cells: Sequence[CellRecord]
) -> list[str]:
    """Why a worst value cannot be given: [] if it can."""
    if wanted and len(have) == len(wanted):
        return []
    if not wanted:
        return [f"{what}: not measured"]
    errors = list(dict.fromkeys(cell.error for cell in cells if cell.error))
    return [f"{what}: {len(have)} of {len(wanted)} prompt sets" + (f" ({'; '.join(errors)})" if errors else "")]


def _highest(rates: Sequence[Estimate], wanted: int) -> Estimate | None:
    """The highest of several, None where one is missing."""
    return max(rates, key=lambda rate: (rate.value, rate.high)) if rates and len(rates) == wanted else None


def _order(row: RankRow) -> tuple[bool, bool, float, bool, tuple[float, float], str]:
    high = row.worst.high if row.worst else 2.0
    preserved = row.measure.order(row.preserved) if row.preserved else (0.0, 0.0)
    return row.worst is None, row.comes_last, high, row.preserved is None, preserved, row.guard
