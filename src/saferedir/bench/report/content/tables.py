"""What stands in which column. Rule zero lives here: a column belongs to one protocol, and whoever asks for two protocols in one
column gets a `BenchError`.

Pure functions from records to frozen tables. The ranking: ranking.py; numbers of papers: reported.py; how tables look:
templates/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from saferedir.bench.metric_keys import MetricKey
from saferedir.bench.records import CellRecord, Protocol
from saferedir.bench.report.content.data import Group
from saferedir.bench.report.content.measures import RETENTION, Measure
from saferedir.bench.report.content.numbers import Estimate, estimate
from saferedir.bench.report.content.sentences import sentence
from saferedir.errors import BenchError
from saferedir.metrics.paired import holm

#: metrics that a judge's scores decide
_JUDGED = ("concept", "asr_live", "forgotten", "retention", "in_prompt_retention", "broken")

#: metrics of vectors, whatever encoder stands behind their colon
QUALITY = frozenset({"clip_score", "clip_change", "drift", "kid", "fid", "cmmd", "csdr"})


@dataclass(frozen=True)
class Column:
    """One protocol, and the metric of it that is shown.

    Attributes:
        protocol: what all numbers of the column share.
        prompts, role, threat: of the cells.
        metric: name in `CellRecord.measured`.
        concept: of the cells.
    """

    protocol: Protocol
    prompts: str
    role: str
    threat: Mapping[str, str]
    metric: str
    concept: str

    @property
    def key(self) -> tuple[str, str]:
        """What tells columns apart."""
        return self.protocol.id, self.metric

    @property
    def judge(self) -> str:
        """Who decided: the protocol's judge, the further one in the metric's name, or "" where no judge is asked."""
        key = MetricKey.parse(self.metric)
        return (key.scorer or self.protocol.judge) if key.metric in _JUDGED else ""


@dataclass(frozen=True)
class Entry:
    """A table cell: a number or the reason why there is none, and numbers of footnotes.

    Attributes:
        beside: further numbers in small type, each with its name.
    """

    estimate: Estimate | None
    why_not: str = ""
    notes: tuple[int, ...] = ()
    beside: tuple[tuple[str, Estimate], ...] = ()


@dataclass(frozen=True)
class Table:
    """Guards by columns.

    Attributes:
        columns: in order, all different; guards: in order.
        entries: guard -> one `Entry` a column.
        notes: footnotes, the first is number 1.
    """

    columns: tuple[Column, ...]
    guards: tuple[str, ...]
    entries: Mapping[str, tuple[Entry, ...]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PairedTest:
    """McNemar's exact test of one guard against the bare model on one protocol.

    Attributes:
        b: prompts (with several seeds: pairs of prompt and seed) that show the concept only with the guard; c: only without it.
        is_clustered: whether pairs of one prompt belong together in the test.
        p: of the test; holm: the same, corrected over the whole group.
    """

    guard: str
    prompts: str
    protocol: str
    b: int
    c: int
    p: float
    holm: float
    is_clustered: bool = False


def column(cells: Sequence[CellRecord], metric: str) -> Column:
    """The column that these cells share; two protocols, or none, are an error."""
    protocols = {cell.protocol.id: cell.protocol for cell in cells}
    if len(protocols) != 1:
        names = ", ".join(sorted({f"{cell.name.prompts} ({cell.protocol.id})" for cell in cells})) or "no cell"
        raise BenchError(
            f"a column of the metric {metric!r} must have one protocol, but it was given {names}; "
            "numbers of different protocols cannot be compared, so give each its own column."
        )
    first = cells[0]
    return Column(first.protocol, first.name.prompts, first.name.role, first.threat, metric, first.name.concept)


def table(group: Group, wanted: Callable[[CellRecord, str], bool], beside: str = "") -> Table:
    """The metrics of a group that `wanted(cell, metric)` asks for: a column for each protocol and metric.

    Args:
        beside: a metric that goes with each number in small type where it counts other cases.
    """
    by_protocol: dict[str, list[CellRecord]] = {}
    for cell in group.cells:
        by_protocol.setdefault(cell.protocol.id, []).append(cell)
    columns: list[Column] = []
    for cells in by_protocol.values():
        names = dict.fromkeys(name for cell in cells for name in cell.measured if wanted(cell, name))
        columns += [column(cells, name) for name in names if any(_is_shown(cell, name) for cell in cells)]
    notes: list[str] = []
    entries = {
        guard: tuple(_entry(_only(by_protocol[head.protocol.id], guard), head, notes, beside) for head in columns)
        for guard in group.guards
    }
    return Table(tuple(columns), group.guards, entries, tuple(notes))


def rates_by_phrasing(group: Group) -> Table:
    """Concept rate of every phrasing, by each protocol's own judge, and over live prompts where these are fewer."""
    return table(group, lambda cell, metric: cell.name.role == "forget" and metric == "concept", beside="asr_live")


def is_further_judge(metric: str) -> bool:
    """Whether this is the concept rate by another judge than the protocol's."""
    key = MetricKey.parse(metric)
    return key.metric == "concept" and bool(key.scorer)


def further_judges(group: Group) -> Table:
    """The same images under further judges."""
    return table(group, lambda cell, metric: cell.name.role == "forget" and is_further_judge(metric))


def side_effects(group: Group, measure: Measure) -> Table:
    """What must survive beside the retain prompts: what is preserved of neighbours and look-alikes by the ranking's measure, and
    how often look-alikes, which a careless filter would refuse, made the guard refuse or act at all.
    """
    what = (
        (measure.metric,) if measure == RETENTION else (measure.metric, "blocked")
    )  # only a share kept shows what was refused
    wanted = {"neighbours": what, "look-alikes": (measure.metric, "blocked", "intervened")}
    return table(group, lambda cell, metric: metric in wanted.get(cell.name.role, ()))


def image_quality(group: Group) -> Table:
    """How images fit their prompts, and how far they are from the unguarded ones or a reference; prompts that ask for the
    concept come last.
    """
    cells = tuple(sorted(group.cells, key=lambda cell: cell.name.role == "forget"))
    plain = table(replace(group, cells=cells), lambda cell, metric: MetricKey.parse(metric).metric in QUALITY)
    notes = list(plain.notes)
    most = [
        max(entry.n for entry in (row[index].estimate for row in plain.entries.values()) if entry)
        for index in range(len(plain.columns))
    ]

    def noted(entry: Entry, whole: int) -> Entry:
        if entry.estimate is None or entry.estimate.n == whole:
            return entry
        return replace(
            entry, notes=tuple(sorted({*entry.notes, *numbered([sentence("captions.fewer_images")], notes)}))
        )

    entries = {guard: tuple(map(noted, row, most)) for guard, row in plain.entries.items()}
    return replace(plain, entries=entries, notes=tuple(notes))


def everything(group: Group) -> Table:
    """Every estimate of every cell."""
    return table(group, lambda cell, metric: True)


def paired_tests(group: Group) -> tuple[PairedTest, ...]:
    """The paired tests of a group, with Holm's correction over all of them."""
    tests = [
        (cell, cell.measured["versus_none"])
        for cell in group.cells
        if cell.name.role == "forget" and "p" in (cell.measured.get("versus_none") or {})
    ]
    corrected = holm({str(index): float(test["p"]) for index, (_, test) in enumerate(tests)})
    return tuple(
        PairedTest(
            cell.name.guard,
            cell.name.prompts,
            cell.protocol.id,
            int(test["b"]),
            int(test["c"]),
            float(test["p"]),
            corrected[str(index)],
            "clusters" in test,
        )
        for index, (cell, test) in enumerate(tests)
    )


def _is_shown(cell: CellRecord, metric: str) -> bool:
    value: Any = cell.measured.get(metric)
    return isinstance(value, Mapping) and ("rate" in value or "mean" in value)


def _only(cells: Sequence[CellRecord], guard: str) -> CellRecord | None:
    """A guard's one record under a protocol; two are an error, because the page could show only one."""
    records = [cell for cell in cells if cell.name.guard == guard]
    if len(records) > 1:
        first = records[0]
        raise BenchError(
            f"guard {guard!r} has {len(records)} records under protocol {first.protocol.id} ({first.name.slug}); "
            "keep one of them."
        )
    return records[0] if records else None


def _entry(cell: CellRecord | None, head: Column, notes: list[str], beside: str) -> Entry:
    if cell is None:
        return Entry(None, "not measured")
    value, other = estimate(cell.measured.get(head.metric)), estimate(cell.measured.get(beside))
    why_not = "" if value is not None else cell.error or "does not apply"
    further = ((beside, other),) if value and other and other.n != value.n else ()
    return Entry(value, why_not, numbered(cell.warnings, notes), further)


def numbered(sentences: Iterable[str], notes: list[str]) -> tuple[int, ...]:
    """Numbers of the footnotes, new ones appended to `notes`."""
    unique = list(dict.fromkeys(sentences))
    notes += [text for text in unique if text not in notes]
    return tuple(sorted(notes.index(text) + 1 for text in unique))
