"""The report in Markdown: headline, ranking, rates by phrasing, cost, numbers of papers, provenance. No pictures.

Pure functions to text; imports the tables, numbers.py and page.py's view of the data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from saferedir.bench.records import BARE, Protocol
from saferedir.bench.report import page
from saferedir.bench.report.data import ReportData
from saferedir.bench.report.headline import HIGHEST_RATE, LEAST_KEPT, passes
from saferedir.bench.report.numbers import NB, Estimate, mebibytes, p_value, percent, seconds, times
from saferedir.bench.report.ranking import RankRow
from saferedir.bench.report.reported import PublishedTable, published_tables
from saferedir.bench.report.tables import Entry, Table

LIMITS = (
    f"Limits: every phrasing below {percent(HIGHEST_RATE)}, at least {percent(LEAST_KEPT)} kept. In brackets: 95 % interval "
    "and n. Sorted by the upper end of the worst rate's interval, then by the share kept."
)
THREAT = (
    "Out of scope is T4, an attacker who holds the weights: a guard made of hooks can be removed by whoever holds them, so its "
    "rate under T4 is the bare model's."
)


def render(data: ReportData) -> str:
    """The whole report as Markdown text."""
    parts = [f"# {escape(data.title)}", escape(data.description)]
    found = page.sections(data, draw=False)
    parts += [escape(page.EMPTY)] if not found else [escape(sentence) for sentence in page.overviews(found)]
    for section in found:
        parts += [f"## {escape(section.title)}", escape(f"{section.headline.claim} {section.headline.detail}")]
        ranked = section.ranking
        rows = [_rank_cells(row) for row in ([ranked.bare] if ranked.bare else []) + list(ranked.rows)]
        head = ["guard", "within limits", "worst concept rate", "kept", "drift", "broken", "blocked", "time"]
        parts += ["### Ranking", LIMITS, table(head, rows), _notes(ranked.notes)]
        parts += [f"Worst concept rate: protocols {_ids(ranked.forget)}; kept, drift, blocked: {_ids(ranked.retain)}."]
        for title, shown in (
            ("Rates by phrasing", section.rates),
            ("The same pictures under further judges", section.judges),
            ("Neighbours and look-alikes kept", section.bystanders),
        ):
            if shown.columns:
                parts += [f"### {title}", _judges(shown, data), _guard_table(shown), _notes(shown.notes)]
        if section.tests:
            tests = [
                [
                    test.guard,
                    f"{test.prompts} {test.protocol}",
                    str(test.b),
                    str(test.c),
                    p_value(test.p),
                    p_value(test.holm),
                ]
                for test in section.tests
            ]
            head = ["guard", "phrasing", "shown only guarded", "only unguarded", "p", "p, Holm"]
            parts += ["### Against the bare model (McNemar)", table(head, tests)]
    parts += _cost(data) + ([THREAT] if found else [])
    if data.published:
        parts += [
            "## Numbers of papers",
            "As reported by others; none is measured here, and every column is a protocol of its own.",
        ]
        for one in published_tables(data.published):
            title, protocol = page.about(one)
            parts += [f"### {escape(title)}", escape(protocol), _published(one)]
    parts += _provenance(data)
    return "\n\n".join(part for part in parts if part).rstrip() + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is left-aligned, the others right-aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    told = [_line([escape(cell) for cell in lines[0]]), _line(lines[1])]
    return "\n".join([*told, *(_line([escape(cell) for cell in row]) for row in rows)])


def escape(text: str) -> str:
    """Text that Markdown shows as it is and that cannot leave its table cell."""
    text = " ".join(text.replace(NB, " ").split())
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rank_cells(row: RankRow) -> list[str]:
    worst = f"{row.worst.full}, {row.worst.where}" if row.worst else row.why_not
    cost = "–"
    if row.cost:
        cost = f"{times(row.cost)} ({seconds(row.cost.seconds)}, n = {row.cost.pictures})"
    within = "–" if row.guard == BARE else "yes" if passes(row) else "no"
    return [
        _name(row.guard) + _marks(row.notes),
        within,
        worst,
        *(_full(one) for one in (row.kept, row.drift, row.broken, row.blocked)),
        cost,
    ]


def _guard_table(one: Table) -> str:
    head = ["guard", *(f"{column.prompts} ({column.protocol.id})" for column in one.columns)]
    if any(":" in column.metric for column in one.columns):
        head = ["guard", *(f"{column.prompts}, {column.judge} ({column.protocol.id})" for column in one.columns)]
    return table(head, [[_name(guard), *(_entry(entry) for entry in one.entries[guard])] for guard in one.guards])


def _entry(entry: Entry) -> str:
    return (entry.estimate.full if entry.estimate else entry.why_not) + _marks(entry.notes)


def _full(one: Estimate | None) -> str:
    return one.full if one else "–"


def _name(guard: str) -> str:
    return "no guard" if guard == BARE else guard


def _marks(notes: Sequence[int]) -> str:
    return f" (note {', '.join(str(note) for note in notes)})" if notes else ""


def _notes(notes: Sequence[str]) -> str:
    return "\n".join(f"{number}. {escape(note)}" for number, note in enumerate(notes, start=1))


def _judges(one: Table, data: ReportData) -> str:
    said = [(judge, page.calibration(judge, concept, data)) for judge, concept in page.judges_of(one)]
    return " ".join(f"Judge {escape(judge)}: {escape(words)}." for judge, words in said)


def _ids(protocols: Sequence[Protocol]) -> str:
    return ", ".join(protocol.id for protocol in protocols) or "none"


def _cost(data: ReportData) -> list[str]:
    parts = []
    for (model, device), rows in page.cost_rows(data.costs).items():
        parts += [
            f"## Cost: {escape(model)}, {escape(device)}",
            table(
                ["guard", "ratio", "seconds a picture (median)", "peak memory", "n"],
                [
                    [
                        _name(row.guard),
                        times(row),
                        seconds(row.seconds),
                        mebibytes(row.peak_bytes),
                        str(row.pictures),
                    ]
                    for row in rows
                ],
            ),
        ]
    return parts


def _published(one: PublishedTable) -> str:
    head = ["system"]
    for attack, metric, unit, n, judge, model in one.columns:
        head.append(", ".join(part for part in (attack, metric, unit, judge, model, f"n {n or 'not given'}") if part))
    rows = [
        [system, *("; ".join(f"{row.value} ({row.evidence})" for row in cell) or "–" for cell in cells)]
        for system, cells in one.rows.items()
    ]
    return table(head, rows)


def _provenance(data: ReportData) -> list[str]:
    missing, warnings = page.missing(data), page.warnings(data)
    parts = ["## Provenance"] if data.cells or missing else []
    parts += [
        "\n".join(f"- no number: {escape(one)}" for one in missing),
        "\n".join(f"- warning: {escape(one)}" for one in warnings),
    ]
    protocols = [[one["protocol"].id, *(text for _, text in one["facts"])] for one in page.protocols(data.cells)]
    if protocols:
        parts.append(table(["protocol", "prompts", "judge", "rule", "attack", "call", "model", "seeds"], protocols))
    parts += [
        "\n".join(f"- {escape(text)} ({number} records)" for text, number in page.versions(data)),
        escape(data.made),
    ]
    return parts
