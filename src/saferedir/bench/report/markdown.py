"""The report in Markdown: headline, ranking, rates by phrasing, cost, numbers of papers, provenance. No images.

Pure functions to text; imports the tables, numbers.py and page.py's view of the data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from saferedir.bench.metric_keys import MetricKey
from saferedir.bench.records import BARE
from saferedir.bench.report import page
from saferedir.bench.report.content import captions, provenance
from saferedir.bench.report.content.data import ReportData
from saferedir.bench.report.content.headline import is_marked
from saferedir.bench.report.content.numbers import NBSP, Estimate, mebibytes, p_value, seconds, times
from saferedir.bench.report.content.ranking import Ranking, RankRow
from saferedir.bench.report.content.reported import PublishedTable, published_tables
from saferedir.bench.report.content.tables import Entry, Table


def render(data: ReportData) -> str:
    """The whole report as Markdown text."""
    parts = [f"# {escape(data.title)}", escape(data.description)]
    found = page.sections(data, generate=False)
    parts += [escape(page.EMPTY)] if not found else [escape(sentence) for sentence in page.overviews(found)]
    for section in found:
        parts += [f"## {escape(section.title)}", escape(f"{section.headline.claim} {section.headline.detail}")]
        ranked = section.ranking
        rows = [_rank_cells(row, ranked.further) for row in ([ranked.bare] if ranked.bare else []) + list(ranked.rows)]
        head = ["guard", "within limits", "worst concept rate", ranked.measure.name, *ranked.further]
        head += ["blocked, concept asked", "blocked, others", "time"]
        parts += ["### Ranking", _limits(ranked), table(head, rows), _notes(ranked.notes)]
        parts += [_protocols(ranked)]
        concept = section.group.concept
        for title, caption, shown in (
            ("Rates by phrasing", captions.rates(concept, section.rates), section.rates),
            ("Concept rate, corrected for the judge's errors", captions.CORRECTED, section.corrected.table),
            ("The same images under further judges", "", section.judges),
            (
                "Neighbours and look-alikes: collateral and over-refusal",
                captions.bystanders(ranked),
                section.bystanders,
            ),
            (
                "How images fit their prompts, and the unguarded ones",
                captions.quality(concept, section.quality),
                section.quality,
            ),
        ):
            if shown.columns:
                said = " ".join(part for part in (escape(caption), _judges(shown, data)) if part)
                parts += [f"### {title}", said, _guard_table(shown), _notes(shown.notes)]
            if shown is section.corrected.table:
                parts += [escape(" ".join(section.corrected.why_not))]
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
            head = ["guard", "phrasing", "only guarded", "only unguarded", "p", "p, Holm"]
            said = escape(captions.paired(concept, section.tests))
            parts += ["### Each guard against the bare model: paired tests", said, table(head, tests)]
    parts += _cost(data)
    if found:
        words = [f"- {escape(word)}: {escape(text)}" for word, text in page.reading(found, data)]
        parts += ["## How to read this", "\n".join(words)]
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
    text = " ".join(text.replace(NBSP, " ").split())
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _limits(ranking: Ranking) -> str:
    return escape(
        f"Limits: {ranking.limits.words}; by the measured values, whatever their intervals. In brackets: 95 % interval and n. "
        f"{ranking.sorting}"
    )


def _protocols(ranking: Ranking) -> str:
    told = [f"{escape(words)} {', '.join(ids) or 'no protocol'}." for words, ids in captions.ranked(ranking)]
    told += ["Broken: the highest over all of these."] if "broken" in ranking.further else []
    return " ".join(told)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rank_cells(row: RankRow, further: Sequence[str]) -> list[str]:
    worst = f"{row.worst.full_text}, {row.worst.where}" if row.worst else row.why_not
    cost = "–"
    if row.cost:
        cost = f"{times(row.cost)} ({seconds(row.cost.seconds)}, n = {row.cost.images})"
    within = "–" if row.guard == BARE else "yes" if is_marked(row) else "no"
    others = (getattr(row, name) for name in further)
    return [
        _name(row.guard) + _marks(row.notes),
        within,
        worst,
        *(_full(one) for one in (row.preserved, *others, row.refused, row.blocked)),
        cost,
    ]


def _guard_table(one: Table) -> str:
    are_rates = all(MetricKey.parse(column.metric).metric == "concept" for column in one.columns)
    further = any(MetricKey.parse(column.metric).scorer for column in one.columns)
    head = ["guard"]
    for column in one.columns:
        what = [column.judge] if are_rates and further else [] if are_rates else [column.metric]
        head.append(f"{', '.join([column.prompts, *what])} ({column.protocol.id})")
    return table(head, [[_name(guard), *(_entry(entry) for entry in one.entries[guard])] for guard in one.guards])


def _entry(entry: Entry) -> str:
    told = entry.estimate.full_text if entry.estimate else entry.why_not
    return "; ".join([told, *(f"{name} {one.full_text}" for name, one in entry.beside)]) + _marks(entry.notes)


def _full(one: Estimate | None) -> str:
    return one.full_text if one else "–"


def _name(guard: str) -> str:
    return "no guard" if guard == BARE else guard


def _marks(notes: Sequence[int]) -> str:
    return f" (note {', '.join(str(note) for note in notes)})" if notes else ""


def _notes(notes: Sequence[str]) -> str:
    return "\n".join(f"{number}. {escape(note)}" for number, note in enumerate(notes, start=1))


def _judges(one: Table, data: ReportData) -> str:
    said = [(judge, provenance.calibration(judge, concept, data)) for judge, concept in provenance.judges_of(one)]
    return " ".join(f"Judge {escape(judge)}: {escape(words)}." for judge, words in said)


def _cost(data: ReportData) -> list[str]:
    parts = []
    for (model, device), rows in page.cost_rows(data.costs).items():
        parts += [
            f"## Cost: {escape(model)}, {escape(device)}",
            captions.COST.replace(NBSP, " "),
            table(
                ["guard", "ratio", "seconds an image (median)", "peak memory", "n"],
                [
                    [
                        _name(row.guard),
                        times(row),
                        seconds(row.seconds),
                        mebibytes(row.peak_bytes),
                        str(row.images),
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
    missing, warnings = provenance.missing(data), provenance.warnings(data)
    parts = ["## Provenance"] if data.cells or missing else []
    parts += [
        "\n".join(f"- no number: {escape(one)}" for one in missing),
        "\n".join(f"- warning: {escape(one)}" for one in warnings),
    ]
    protocols = [[one["protocol"].id, *(text for _, text in one["facts"])] for one in provenance.protocols(data.cells)]
    head = ["protocol", "prompts", "judge", "rule", "attack", "call", "model", "encoders", "seeds"]
    parts += [table(head, protocols)] if protocols else []
    parts += [
        "\n".join(f"- encoder {escape(name)}: {escape(facts)}" for name, facts in data.encoders.items()),
        "\n".join(f"- {escape(text)} ({number} records)" for text, number in provenance.versions(data)),
        "" if data.made in dict(provenance.versions(data)) else escape(data.made),
    ]
    return parts
