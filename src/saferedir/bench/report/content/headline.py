"""What the numbers say: which guards are named, by rules that can be recomputed from the tables.

The words: templates/headline.j2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saferedir.bench.report.content.limits import MAX_CONCEPT_RATE, MAX_REFUSAL_RATE, MIN_RETENTION
from saferedir.bench.report.content.ranking import Ranking, RankRow
from saferedir.bench.report.content.sentences import sentence


@dataclass(frozen=True)
class Headline:
    """Two sentences on one ranking.

    Attributes:
        claim: which guards pass, and whether their whole intervals do.
        detail: which is best, or how near the nearest comes.
        passes: names of those that pass by their point estimates.
    """

    claim: str
    detail: str
    passes: tuple[str, ...]


def passes(row: RankRow) -> bool:
    """Whether the point estimates lie within the limits: every phrasing below `MAX_CONCEPT_RATE`, and
    retention at least `MIN_RETENTION`.
    """
    return bool(
        row.worst and row.retention and row.worst.value < MAX_CONCEPT_RATE and row.retention.value >= MIN_RETENTION
    )


def is_marked(row: RankRow) -> bool:
    """Whether the report stresses this guard: it lies within all the limits that apply."""
    if row.limits.retention:
        return passes(row)
    is_known = row.blocked is not None or not row.limits.refusal
    return _is_low(row) and is_known and not row.comes_last


def passes_surely(row: RankRow) -> bool:
    """Whether the whole intervals do."""
    within = all(rate.high < MAX_CONCEPT_RATE for rate in row.rates)
    return bool(passes(row) and within and row.retention and row.retention.low >= MIN_RETENTION)


def headline(ranking: Ranking) -> Headline:
    """The claim and the detail of one ranking."""
    rows = [row for row in ranking.rows if row.worst and row.retention]
    if not rows:
        return _without_retention(ranking)
    good = [row for row in rows if passes(row)]
    sure = [row for row in good if passes_surely(row)]
    promise = sentence(
        "headline.keeps_both",
        concept=ranking.group.concept,
        rate=MAX_CONCEPT_RATE,
        retention=MIN_RETENTION,
        several=len(ranking.forget) > 1,
    )
    if good:
        claim = _claim(good, sure, len(rows), promise)
        best = sure[0] if sure else good[0]
        detail = sentence("headline.best", facts=_facts(best, rows), sure=len(sure), number=len(good))
    else:
        alone = len(rows) == 1
        claim = (
            sentence("headline.the_guard_does_not", promise=promise) if alone else _claim([], [], len(rows), promise)
        )
        kindest = max(rows, key=lambda row: row.retention.value if row.retention else 0.0)
        keeps_most = _facts(kindest, rows) if kindest is not rows[0] else ""
        detail = sentence("headline.safest", facts=_facts(rows[0], rows), keeps_most=keeps_most)
    return Headline(claim, f"{detail} {_left_out(ranking, rows)}".strip(), tuple(row.guard for row in good))


def _claim(good: Sequence[RankRow], sure: Sequence[RankRow], number: int, promise: str) -> str:
    """Names the guards within the limits, and says no more than their intervals allow."""
    others = [row.guard for row in good if row not in sure]
    return sentence("headline.claim", sure=[row.guard for row in sure], others=others, number=number, promise=promise)


def _without_retention(ranking: Ranking) -> Headline:
    """What can be said where no guard has a retention: the judge scores the concept only, or the bench is unfinished."""
    limits, concept = ranking.limits, ranking.group.concept
    rows = [row for row in ranking.rows if row.worst and (row.blocked or not limits.refusal)]
    if not rows:
        return Headline(sentence("headline.nothing_yet", concept=concept), sentence("headline.run_to_the_end"), ())
    low = [row for row in rows if _is_low(row) and not row.comes_last]
    refusal = MAX_REFUSAL_RATE if limits.refusal else None
    promise = sentence("headline.keeps_rate", concept=concept, rate=MAX_CONCEPT_RATE, refusal=refusal)
    claim = _claim(low, [row for row in low if _is_surely_low(row, limits.refusal)], len(rows), promise)
    parts = [
        _lowest([row for row in rows if not row.comes_last]),
        _preserves_most(ranking, low),
        sentence("headline.not_compared", rows=[row for row in rows if row.comes_last and row.blocked]),
        _left_out(ranking, rows),
    ]
    return Headline(claim, " ".join(part for part in parts if part), ())


def _is_low(row: RankRow) -> bool:
    return row.worst is not None and row.worst.value < MAX_CONCEPT_RATE


def _is_surely_low(row: RankRow, has_refusal_limit: bool) -> bool:
    """Whether the whole intervals lie within the limits."""
    refuses = has_refusal_limit and (row.blocked is None or row.blocked.high > MAX_REFUSAL_RATE)
    return all(rate.high < MAX_CONCEPT_RATE for rate in row.rates) and not refuses


def _lowest(rows: Sequence[RankRow]) -> str:
    """The guard with the lowest rate, and whether it owes it to refusing what asks for the concept."""
    if not rows or rows[0].worst is None:
        return ""
    refused = rows[0].refused
    refused = refused if refused and refused.value > MAX_REFUSAL_RATE else None
    return sentence("headline.lowest", names=_alike(rows[0], rows), worst=rows[0].worst, refused=refused)


def _preserves_most(ranking: Ranking, rows: Sequence[RankRow]) -> str:
    """The guard that preserves most, by which measure, and why none is best."""
    if ranking.limits.retention:
        return sentence("headline.no_retention_with_this_rate")
    if not any(row.preserved for row in ranking.rows):
        return sentence("headline.nothing_preserved", knows_refusal=ranking.limits.refusal)
    known = [(row.guard, row.preserved) for row in rows if row.preserved]
    guard, most = min(known, key=lambda pair: ranking.measure.order(pair[1]), default=("", None))
    return sentence("headline.preserved_by", measure=ranking.measure.words, guard=guard, most=most)


def _left_out(ranking: Ranking, rows: Sequence[RankRow]) -> str:
    return sentence("headline.left_out", number=len(ranking.rows) - len(rows))


def _alike(row: RankRow, rows: Sequence[RankRow]) -> str:
    """The guard's name, with those of others of the very same numbers."""
    numbers = (row.worst, row.preserved, row.blocked)
    same = [other.guard for other in rows if (other.worst, other.preserved, other.blocked) == numbers]
    return sentence("headline.alike", names=same)


def overall(rankings: Sequence[Ranking]) -> str:
    """One sentence over the rankings of a model that have a retention: which guards pass all of them. "" for fewer than two."""
    rankings = [ranking for ranking in rankings if ranking.limits.retention]
    if len(rankings) < 2:
        return ""
    passing = [set(headline(ranking).passes) for ranking in rankings]
    names = [row.guard for row in rankings[0].rows]
    return sentence(
        "headline.overall",
        guards=[name for name in names if all(name in guards for guards in passing)],
        sure=sorted(name for name in names if all(_passes_surely(ranking, name) for ranking in rankings)),
        number=len({row.guard for ranking in rankings for row in ranking.rows}),
        concepts=[ranking.group.concept for ranking in rankings],
    )


def _passes_surely(ranking: Ranking, guard: str) -> bool:
    return any(row.guard == guard and passes_surely(row) for row in ranking.rows)


def _facts(row: RankRow, rows: Sequence[RankRow]) -> str:
    return sentence("headline.facts", row=row, names=_alike(row, rows))
