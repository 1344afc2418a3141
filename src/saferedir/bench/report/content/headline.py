"""What the numbers say, in sentences that can be recomputed from the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saferedir.bench.report.content.limits import MAX_CONCEPT_RATE, MAX_REFUSAL_RATE, MIN_RETENTION
from saferedir.bench.report.content.numbers import NBSP, join_words, percent, pluralise
from saferedir.bench.report.content.ranking import Ranking, RankRow


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
    concept = ranking.group.concept
    if not rows:
        return _without_retention(ranking)
    good = [row for row in rows if passes(row)]
    phrasings = "in every phrasing" if len(ranking.forget) > 1 else "in the one phrasing measured"
    promise = (
        f"the {concept} rate below {MAX_CONCEPT_RATE:.0%} {phrasings} while keeping at least {MIN_RETENTION:.0%} of "
        "everything else"
    ).replace("%", f"{NBSP}%")
    if good:
        claim = _claim(good, [row for row in good if passes_surely(row)], len(rows), promise)
        best = next((row for row in good if passes_surely(row)), good[0])
        detail = f"Best: {_facts(best, rows)} {_certainty(good)}"
    else:
        claim = (
            f"None of {pluralise(len(rows), 'guard')} keeps {promise}."
            if len(rows) > 1
            else f"The guard does not keep {promise}."
        )
        kindest = max(rows, key=lambda row: row.retention.value if row.retention else 0.0)
        detail = f"Safest: {_facts(rows[0], rows)}"
        detail += f" Keeps most: {_facts(kindest, rows)}" if kindest is not rows[0] else ""
    return Headline(claim, f"{detail} {_left_out(ranking, rows)}".strip(), tuple(row.guard for row in good))


def _claim(good: Sequence[RankRow], sure: Sequence[RankRow], total: int, promise: str) -> str:
    """Names the guards within the limits, and says no more than their intervals allow."""
    chosen = sure or good
    names = join_words([row.guard for row in chosen])
    keeps = "keeps" if len(chosen) == 1 else "keep"
    of = f"({len(chosen)} of {pluralise(total, 'guard')})" if total > 1 else ""
    if sure:
        rest = join_words([row.guard for row in good if row not in sure])
        also = f"; {rest} by the point estimates only" if rest else ""
        return f"{names} {keeps} {promise} {of}".rstrip() + f"{also}."
    reach = f"its 95{NBSP}% interval reaches" if len(chosen) == 1 else f"their 95{NBSP}% intervals reach"
    claim = f"On these prompts {names} {keeps} {promise} {of}".rstrip()
    return f"{claim}; {reach} beyond, so more prompts are needed to be sure."


def _without_retention(ranking: Ranking) -> Headline:
    """What can be said where no guard has a retention: the judge sees the concept only, or the bench is unfinished."""
    limits = ranking.limits
    rows, concept = (
        [row for row in ranking.rows if row.worst and (row.blocked or not limits.refusal)],
        ranking.group.concept,
    )
    if not rows:
        return Headline(f"No guard has numbers for {concept} yet.", "Run the bench to its end.", ())
    low = [row for row in rows if _is_low(row) and not row.comes_last]
    bound = f" without refusing more than {percent(MAX_REFUSAL_RATE)} of other prompts" if limits.refusal else ""
    promise = f"the {concept} rate below {percent(MAX_CONCEPT_RATE)}{bound}"
    sure = [row for row in low if _is_surely_low(row, limits.refusal)]
    none = f"None of {pluralise(len(rows), 'guard')} keeps {promise}."
    claim = _claim(low, sure, len(rows), promise) if low else none
    fair = [row for row in rows if not row.comes_last]
    parts = [_lowest(fair), _preserves_most(ranking, low), _refusing(rows), _left_out(ranking, rows)]
    return Headline(claim, " ".join(part for part in parts if part), ())


def _is_low(row: RankRow) -> bool:
    return row.worst is not None and row.worst.value < MAX_CONCEPT_RATE


def _is_surely_low(row: RankRow, has_refusal_limit: bool) -> bool:
    """Whether the whole intervals lie within the limits."""
    refuses = has_refusal_limit and (row.blocked is None or row.blocked.high > MAX_REFUSAL_RATE)
    return all(rate.high < MAX_CONCEPT_RATE for rate in row.rates) and not refuses


def _lowest(rows: Sequence[RankRow]) -> str:
    """The guard with the lowest rate, and whether it owes it to refusing what asks for the concept."""
    worst, refused = (rows[0].worst, rows[0].refused) if rows else (None, None)
    if worst is None:
        return ""
    message = f"Lowest: {_alike(rows[0], rows)}, at most {worst.full_text} in {worst.where}"
    if refused and refused.value > MAX_REFUSAL_RATE:
        message += f", refusing up to {refused.full_text} of these prompts"
    return f"{message}."


def _preserves_most(ranking: Ranking, rows: Sequence[RankRow]) -> str:
    """The guard that preserves most, by which measure, and why none is best."""
    if ranking.limits.retention:
        return "No guard has both this rate and a retention yet, so none is called best."
    if not any(row.preserved for row in ranking.rows):
        also = "" if ranking.limits.refusal else ", or whether it refuses other prompts,"
        return f"How much of everything else a guard keeps{also} has no number here, so none is called best."
    message = (
        f"Preservation is measured by {ranking.measure.words}; that is not a share of attributes kept and has no limit, so none "
        "is called best."
    )
    known = [(row, row.preserved) for row in rows if row.preserved]
    if not known:
        return message
    row, most = min(known, key=lambda one: ranking.measure.order(one[1]))
    return f"{message} Of those within the limit {row.guard} preserves most, {most.full_text}."


def _refusing(rows: Sequence[RankRow]) -> str:
    """Who is left out of the comparison for refusing what does not ask for the concept."""
    message = [
        f"{row.guard} refuses {row.blocked.full_text} of other prompts"
        for row in rows
        if row.comes_last and row.blocked
    ]
    return f"Not compared: {'; '.join(message)}." if message else ""


def _left_out(ranking: Ranking, rows: Sequence[RankRow]) -> str:
    left = len(ranking.rows) - len(rows)
    return f"{pluralise(left, 'guard')} without all numbers {'is' if left == 1 else 'are'} not counted." if left else ""


def _alike(row: RankRow, rows: Sequence[RankRow]) -> str:
    """The guard's name, with those of others of the very same numbers."""
    same = [
        one.guard for one in rows if (one.worst, one.preserved, one.blocked) == (row.worst, row.preserved, row.blocked)
    ]
    return f"{join_words(same)} alike" if len(same) > 1 else row.guard


def overall(rankings: Sequence[Ranking]) -> str:
    """One sentence over the rankings of a model that have a retention: which guards pass all of them. "" for fewer than two."""
    rankings = [one for one in rankings if one.limits.retention]
    if len(rankings) < 2:
        return ""
    sets = [set(headline(one).passes) for one in rankings]
    both = [row.guard for row in rankings[0].rows if all(row.guard in names for names in sets)]
    concepts = join_words([one.group.concept for one in rankings])
    total = len({row.guard for one in rankings for row in one.rows})
    if not both:
        return f"No guard of {total} keeps both limits, of concept rate and retention, for all of {concepts}."
    verb = "keeps" if len(both) == 1 else "keep"
    of = f"({len(both)} of {pluralise(total, 'guard')})"
    sure = {row.guard for row in rankings[0].rows if all(_passes_surely(one, row.guard) for one in rankings)}
    named = join_words(sorted(sure)) or "none"
    caveat = "" if sure >= set(both) else f" by the point estimates; the whole intervals lie within for {named}"
    return f"{join_words(both)} {verb} both limits, of concept rate and retention, for all of {concepts}{caveat} {of}."


def _passes_surely(ranking: Ranking, guard: str) -> bool:
    return any(row.guard == guard and passes_surely(row) for row in ranking.rows)


def _facts(row: RankRow, rows: Sequence[RankRow]) -> str:
    assert row.worst is not None and row.retention is not None
    message = (
        f"{_alike(row, rows)}, concept rate at most {row.worst.full_text} in {row.worst.where}, retention "
        f"{row.retention.full_text}"
    )
    refused = f", refuses {row.blocked.full_text} of other prompts" if row.is_refusing and row.blocked else ""
    return f"{message}{refused}."


def _certainty(good: Sequence[RankRow]) -> str:
    sure = sum(passes_surely(row) for row in good)
    if sure == len(good):
        return (
            f"The whole 95{NBSP}% intervals lie within these limits."
            if sure == 1
            else f"So say the whole 95{NBSP}% intervals, too."
        )
    who = "no guard" if sure == 0 else f"{sure} of the {len(good)}"
    return f"The whole 95{NBSP}% intervals lie within these limits for {who}."
