"""The page: a view of plain values for template.html.j2, which only lays them out. Autoescaping is on; the only markup
that passes is our own figures.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saferedir.bench.records import BARE, Cost
from saferedir.bench.report import published
from saferedir.bench.report.content import captions, provenance
from saferedir.bench.report.content.corrected import Corrected, corrected_rates
from saferedir.bench.report.content.data import Group, ReportData, Sample, groups
from saferedir.bench.report.content.headline import Headline, headline, is_marked, overall
from saferedir.bench.report.content.limits import MAX_REFUSAL_RATE
from saferedir.bench.report.content.numbers import (
    decimal,
    join_words,
    mebibytes,
    p_value,
    percent,
    pluralise,
    seconds,
    times,
)
from saferedir.bench.report.content.ranking import Ranking, RankRow, ranking
from saferedir.bench.report.content.reading import definitions
from saferedir.bench.report.content.reported import PublishedTable, published_tables
from saferedir.bench.report.content.tables import (
    PairedTest,
    Table,
    bystanders,
    everything,
    further_judges,
    image_quality,
    paired_tests,
    rates_by_phrasing,
)
from saferedir.bench.report.plots import bars as figures
from saferedir.bench.report.plots.scatter import absent, scatter
from saferedir.utils.extras import require_extra

#: in place of a page's body when there is nothing to report
EMPTY = "There are no results here yet: run `saferedir bench run`, then make the report again."
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Grid:
    """Images of one concept: `samples` are the columns, guards the rows, the unguarded images first."""

    samples: tuple[Sample, ...]
    guards: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """All that is said of one group; its guards are in the ranking's order. Thin figures are for narrow windows."""

    group: Group
    title: str
    ranking: Ranking
    headline: Headline
    rates: Table
    corrected: Corrected
    scatter: str
    absent: str
    bars: str
    thin_scatter: str
    thin_bars: str
    judges: Table
    bystanders: Table
    quality: Table
    everything: Table
    tests: tuple[PairedTest, ...]
    grid: Grid


def sections(data: ReportData, generate: bool = True) -> tuple[Section, ...]:
    """One for each group of cells that may be compared; `generate=False` leaves the figures out."""
    found = groups(data.cells)
    several = len({group.model for group in found}) > 1
    out = []
    for group in found:
        ranked = ranking(group, data.costs)
        group = group.ordered([row.guard for row in ranked.rows])
        rates, head = rates_by_phrasing(group), headline(ranked)
        title = f"{group.concept} on {group.model}" if several else group.concept
        title += f" (other protocols, {group.number})" if group.number > 1 else ""
        shown, stressed = f"Concept rate by phrasing: {title}", [row.guard for row in ranked.rows if is_marked(row)]
        out.append(
            Section(
                group=group,
                title=title,
                ranking=ranked,
                headline=head,
                rates=rates,
                corrected=corrected_rates(group, data.calibrations),
                scatter=scatter(ranked) if generate else "",
                absent=absent(ranked),
                bars=figures.bars(rates, stressed, f"rates-{group.anchor}", shown) if generate else "",
                thin_scatter=scatter(ranked, figures.MOBILE) if generate else "",
                thin_bars=figures.bars(rates, stressed, f"rates-{group.anchor}", shown, figures.MOBILE)
                if generate
                else "",
                judges=further_judges(group),
                bystanders=bystanders(group, ranked.measure),
                quality=image_quality(group),
                everything=everything(group),
                tests=paired_tests(group),
                grid=_grid(data.samples, group) if group.number == 1 else Grid((), ()),
            )
        )
    return tuple(out)


def glance(found: Sequence[Section]) -> list[tuple[str, list[RankRow | None]]]:
    """(guard, its row in each section's ranking); guards within the limits most often come first, those that refuse too
    much after the others, and the safest first among equals.
    """
    rows = [{row.guard: row for row in section.ranking.rows} for section in found]
    names = dict.fromkeys(name for own in rows for name in own)
    lines = [(name, [own.get(name) for own in rows]) for name in names]

    def order(line: tuple[str, list[RankRow | None]]) -> tuple[int, int, float]:
        own = [row for row in line[1] if row is not None]
        highs = [row.worst.high if row and row.worst else 1.0 for row in line[1]]
        return -sum(map(is_marked, own)), sum(row.comes_last for row in own), max(highs)

    return sorted(lines, key=order)


def limits(found: Sequence[Section]) -> str:
    """The limits of all rankings in words, where they are the same."""
    words = list(dict.fromkeys(section.ranking.limits.words for section in found))
    return words[0] if len(words) == 1 else "the limits that stand above its ranking"


def reading(found: Sequence[Section], data: ReportData) -> list[tuple[str, str]]:
    """What the words of this report mean, as (word, text)."""
    is_corrected = any(section.corrected.table.columns for section in found)
    return definitions([section.ranking for section in found], data.cells, is_corrected=is_corrected)


def overviews(found: Sequence[Section]) -> list[str]:
    """A sentence over all concepts of each model that has several."""
    models = dict.fromkeys(section.group.model for section in found)
    said = []
    for model in models:
        own = [section.ranking for section in found if (section.group.model, section.group.number) == (model, 1)]
        sentence = overall(own)
        said += [f"{model}: {sentence}" if sentence and len(models) > 1 else sentence]
    return [sentence for sentence in said if sentence]


def about(table: PublishedTable) -> tuple[str, str]:
    """Title of a table of published numbers, and its protocol in words with its source."""
    known = {one.name: one for one in published.tables()}
    if table.name not in known:
        return table.name, table.source
    return known[table.name].title, f"{known[table.name].protocol} Source: {table.source}."


def cost_rows(costs: Sequence[Cost]) -> dict[tuple[str, str], list[Cost]]:
    """Costs of each (model, device), the bare model first, then by ratio."""
    found: dict[tuple[str, str], list[Cost]] = {}
    for cost in sorted(costs, key=lambda one: (one.guard != BARE, one.ratio or 0.0, one.guard)):
        found.setdefault((cost.model, cost.device), []).append(cost)
    return found


def render(data: ReportData) -> str:
    """The whole page as HTML text."""
    jinja2 = require_extra("jinja2", "bench", "the report's page")
    markup = require_extra("markupsafe", "bench", "the report's page").Markup
    room = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    room.filters |= {
        "percent": percent,
        "decimal": decimal,
        "p": p_value,
        "seconds": seconds,
        "times": times,
        "memory": mebibytes,
        "image": _data_uri,
        "figure": markup,
        "guard": lambda name: "no guard" if name == BARE else name,
        "and": join_words,
    }
    script = (_FOLDER / "sort.js.j2").read_text(encoding="utf-8")
    found = sections(data)
    text: str = room.get_template("template.html.j2").render(
        data=data,
        sections=found,
        glance=glance(found),
        overviews=overviews(found),
        costs=[
            {
                "model": model,
                "device": device,
                "rows": rows,
                "figure": figures.cost_bars(rows, f"cost-{number}"),
                "thin": figures.cost_bars(rows, f"cost-{number}", figures.MOBILE),
            }
            for number, ((model, device), rows) in enumerate(cost_rows(data.costs).items(), start=1)
        ],
        published=[(*about(one), one) for one in published_tables(data.published)],
        protocols=provenance.protocols(data.cells),
        warnings=provenance.warnings(data),
        missing=provenance.missing(data),
        versions=provenance.versions(data),
        guards=provenance.guards_of(data),
        reading=reading(found, data),
        calibration=lambda judge, concept: provenance.calibration(judge, concept, data),
        judges_of=provenance.judges_of,
        pluralise=pluralise,
        small=_is_small,
        is_marked=is_marked,
        bare=BARE,
        empty=EMPTY,
        limits=limits(found) if found else "",
        refusers=MAX_REFUSAL_RATE if any(row.comes_last for one in found for row in one.ranking.rows) else None,
        captions=captions,
        script=markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return text


def _grid(samples: Sequence[Sample], group: Group) -> Grid:
    own = tuple(one for one in samples if (one.model, one.concept) == (group.model, group.concept))
    generated = dict.fromkeys(guard for one in own for guard in one.images)
    known = {guard: place for place, guard in enumerate(group.guards)}
    return Grid(own, tuple(sorted(generated, key=lambda guard: (guard != BARE, known.get(guard, len(known))))))


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _is_small(png: bytes) -> bool:
    """Whether a PNG is at most 128 pixels wide (its header says), so that enlarging should keep its pixels."""
    return int.from_bytes(png[16:20], "big") <= 128
