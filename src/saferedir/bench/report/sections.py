"""All that a report shows, as plain values, once: the page and the Markdown file are two templates over the same `Contents`.

Figures are made by page.py; sentences are in templates/ (content/sentences.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saferedir.bench.records import BARE, Cost
from saferedir.bench.report import published
from saferedir.bench.report.content import captions, provenance
from saferedir.bench.report.content.corrected import corrected_rates
from saferedir.bench.report.content.data import Group, Misses, ReportData, Sample, groups
from saferedir.bench.report.content.headline import Headline, headline, is_marked, overall
from saferedir.bench.report.content.limits import MAX_REFUSAL_RATE
from saferedir.bench.report.content.ranking import Ranking, RankRow, ranking
from saferedir.bench.report.content.reading import definitions
from saferedir.bench.report.content.reported import PublishedTable, published_tables
from saferedir.bench.report.content.sentences import sentence
from saferedir.bench.report.content.tables import (
    PairedTest,
    Table,
    everything,
    further_judges,
    image_quality,
    paired_tests,
    rates_by_phrasing,
    side_effects,
)


@dataclass(frozen=True)
class Grid:
    """Images of one concept: `samples` are the columns, guards the rows, the unguarded images first."""

    samples: tuple[Sample, ...]
    guards: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """A table with its title and caption.

    Attributes:
        title: of the block.
        caption: what the numbers are; "" where the title says it.
        table: the numbers.
        judges: (judge, how far it can be believed) of the table's judges.
        shows_metric: whether each column is headed by its metric, and not by its attack.
    """

    title: str
    caption: str
    table: Table
    judges: tuple[tuple[str, str], ...] = ()
    shows_metric: bool = False


@dataclass(frozen=True)
class Section:
    """All that is said of one group; its guards are in the ranking's order.

    Attributes:
        group: the cells.
        title: the concept, with the model where there are several.
        ranking, headline: the guards, best first, and what that means.
        measured_on: which columns of the ranking come from which protocols, as (words, their ids).
        rates: by phrasing, without columns where no phrasing has a number.
        uncorrected: why rates are not corrected for the judge's errors, "" if all are.
        further: the other tables, those without columns left out.
        everything: every number of every cell.
        tests, tests_caption: paired tests.
        grid: images of the same prompts under every guard.
        misses: of each guard, in the ranking's order: (guard, images that still show the concept, benign images that changed).
    """

    group: Group
    title: str
    ranking: Ranking
    headline: Headline
    measured_on: tuple[tuple[str, tuple[str, ...]], ...]
    rates: Block
    uncorrected: str
    further: tuple[Block, ...]
    everything: Table
    tests: tuple[PairedTest, ...]
    tests_caption: str
    grid: Grid
    misses: tuple[tuple[str, Misses | None, Misses | None], ...]

    @property
    def hides_misses(self) -> bool:
        """Whether some misses may not be shown."""
        return any(misses is not None and misses.is_hidden for _, *pair in self.misses for misses in pair)


@dataclass(frozen=True)
class Contents:
    """The whole report.

    Attributes:
        data: what it is made from.
        sections: one for each group of cells that may be compared.
        glance: (guard, its row in each section's ranking), best guards first.
        overviews: a sentence over all concepts of each model that has several.
        limits: the limits of all rankings in words, where they are the same.
        refusal_limit: the share of other prompts beyond which guards come last; None where none does.
        costs: costs of each (model, device).
        reading: what the words mean, as (word, text).
        published: (title, protocol with its source, table) of numbers of papers.
    """

    data: ReportData
    sections: tuple[Section, ...]
    glance: list[tuple[str, list[RankRow | None]]]
    overviews: list[str]
    limits: str
    refusal_limit: float | None
    costs: dict[tuple[str, str], list[Cost]]
    reading: list[tuple[str, str]]
    published: list[tuple[str, str, PublishedTable]]

    @property
    def values(self) -> Mapping[str, Any]:
        """By the names that the templates use."""
        return {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "protocols": provenance.protocols(self.data.cells),
            "warnings": provenance.warnings(self.data),
            "missing": provenance.missing(self.data),
            "versions": provenance.versions(self.data),
            "guards": provenance.guards_of(self.data),
            "sentence": sentence,
            "is_marked": is_marked,
            "bare": BARE,
        }


def contents(data: ReportData) -> Contents:
    """Everything that the report of these data shows."""
    sections = tuple(_section(group, data) for group in _titled(groups(data.cells)))
    rankings = [section.ranking for section in sections]
    is_corrected = any(block.title == _CORRECTED for section in sections for block in section.further)
    return Contents(
        data=data,
        sections=sections,
        glance=glance(sections),
        overviews=_overviews(sections),
        limits=_limits(rankings),
        refusal_limit=MAX_REFUSAL_RATE if any(row.comes_last for ranked in rankings for row in ranked.rows) else None,
        costs=cost_rows(data.costs),
        reading=definitions(rankings, data.cells, is_corrected=is_corrected) if sections else [],
        published=[(*_about(table), table) for table in published_tables(data.published)],
    )


_CORRECTED = "Concept rate, corrected for the judge's errors"


def _titled(parted: Sequence[Group]) -> list[tuple[Group, str]]:
    several = len({group.model for group in parted}) > 1
    titles = []
    for group in parted:
        title = f"{group.concept} on {group.model}" if several else group.concept
        titles.append((group, title + (f" (other protocols, {group.number})" if group.number > 1 else "")))
    return titles


def _section(titled: tuple[Group, str], data: ReportData) -> Section:
    group, title = titled
    ranked = ranking(group, data.costs)
    group = group.ordered([row.guard for row in ranked.rows])
    concept, rates, corrected = group.concept, rates_by_phrasing(group), corrected_rates(group, data.calibrations)
    beside, quality, tests = side_effects(group, ranked.measure), image_quality(group), paired_tests(group)
    why_not = " ".join(corrected.why_not)
    caption = f"{sentence('captions.corrected')} {why_not}".rstrip()

    def block(title: str, caption: str, table: Table, shows_metric: bool = False) -> Block:
        judges = tuple(
            (judge, provenance.calibration(judge, asked, data)) for judge, asked in provenance.judges_of(table)
        )
        return Block(title, caption, table, judges, shows_metric)

    further = (
        block(_CORRECTED, caption, corrected.table),
        block("Neighbours and look-alikes: collateral and over-refusal", captions.side_effects(ranked), beside, True),
        block(
            "How images fit their prompts, and the unguarded ones", captions.quality(concept, quality), quality, True
        ),
        block("The same images under further judges", "", further_judges(group)),
    )
    return Section(
        group=group,
        title=title,
        ranking=ranked,
        headline=headline(ranked),
        measured_on=captions.measured_on(ranked),
        rates=block("Rates by phrasing", captions.rates(concept, rates), rates),
        uncorrected="" if corrected.table.columns else why_not,
        further=tuple(shown for shown in further if shown.table.columns),
        everything=everything(group),
        tests=tests,
        tests_caption=captions.paired(concept, tests),
        grid=_grid(data.samples, group) if group.number == 1 else Grid((), ()),
        misses=_misses(data.misses, group),
    )


def glance(sections: Sequence[Section]) -> list[tuple[str, list[RankRow | None]]]:
    """(guard, its row in each section's ranking); guards within the limits most often come first, those that refuse too
    much after the others, and the safest first among equals.
    """
    rows = [{row.guard: row for row in section.ranking.rows} for section in sections]
    names = dict.fromkeys(name for by_guard in rows for name in by_guard)
    lines = [(name, [by_guard.get(name) for by_guard in rows]) for name in names]

    def order(line: tuple[str, list[RankRow | None]]) -> tuple[int, int, float]:
        known = [row for row in line[1] if row is not None]
        highs = [row.worst.high if row and row.worst else 1.0 for row in line[1]]
        return -sum(map(is_marked, known)), sum(row.comes_last for row in known), max(highs)

    return sorted(lines, key=order)


def cost_rows(costs: Sequence[Cost]) -> dict[tuple[str, str], list[Cost]]:
    """Costs of each (model, device), the bare model first, then by ratio."""
    rows: dict[tuple[str, str], list[Cost]] = {}
    for cost in sorted(costs, key=lambda cost: (cost.guard != BARE, cost.ratio or 0.0, cost.guard)):
        rows.setdefault((cost.model, cost.device), []).append(cost)
    return rows


def _limits(rankings: Sequence[Ranking]) -> str:
    words = list(dict.fromkeys(ranking.limits.words for ranking in rankings))
    return words[0] if len(words) == 1 else "the limits that stand above its ranking"


def _overviews(sections: Sequence[Section]) -> list[str]:
    models = dict.fromkeys(section.group.model for section in sections)
    texts = []
    for model in models:
        rankings = [part.ranking for part in sections if (part.group.model, part.group.number) == (model, 1)]
        text = overall(rankings)
        texts += [f"{model}: {text}" if text and len(models) > 1 else text]
    return [text for text in texts if text]


def _about(table: PublishedTable) -> tuple[str, str]:
    """Title of a table of published numbers, and its protocol in words with its source."""
    known = {item.name: item for item in published.tables()}
    if table.name not in known:
        return table.name, table.source
    return known[table.name].title, f"{known[table.name].protocol} Source: {table.source}."


def _grid(samples: Sequence[Sample], group: Group) -> Grid:
    of_group = tuple(item for item in samples if (item.model, item.concept) == (group.model, group.concept))
    guards = dict.fromkeys(guard for sample in of_group for guard in sample.images)
    order = {guard: index for index, guard in enumerate(group.guards)}
    return Grid(of_group, tuple(sorted(guards, key=lambda guard: (guard != BARE, order.get(guard, len(order))))))


def _misses(misses: Sequence[Misses], group: Group) -> tuple[tuple[str, Misses | None, Misses | None], ...]:
    protocols = {(cell.name.guard, cell.protocol.id) for cell in group.cells}
    known = {
        (item.guard, item.kind): item
        for item in misses
        if (item.model, item.concept) == (group.model, group.concept)
        and all((item.guard, protocol) in protocols for protocol in item.protocols)
    }
    rows = [(guard, known.get((guard, "forget")), known.get((guard, "benign"))) for guard in group.guards]
    return tuple(row for row in rows if row[0] != BARE and any(row[1:]))
