"""Numbers of papers, in tables of their own: they never share one with measured numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from saferedir.bench.report.content.data import PublishedRow


@dataclass(frozen=True)
class PublishedTable:
    """Numbers of one table of one paper.

    Attributes:
        columns: (attack, metric, unit, n, judge preset, model), each a protocol of its own.
        rows: system -> per column the values reported there, usually one, with their evidence label and note.
    """

    name: str
    source: str
    columns: tuple[tuple[str, str, str, int | None, str, str], ...]
    rows: Mapping[str, tuple[tuple[PublishedRow, ...], ...]]


def published_tables(rows: Sequence[PublishedRow]) -> tuple[PublishedTable, ...]:
    """One table for each (table, source), a column for each thing that must agree before two numbers may be compared."""
    found = []
    for name, source in dict.fromkeys((row.table, row.source) for row in rows):
        own = [row for row in rows if (row.table, row.source) == (name, source)]
        columns = tuple(dict.fromkeys(_facts(row) for row in own))
        systems = dict.fromkeys(row.system for row in own)
        values = {
            system: tuple(tuple(row for row in own if (row.system, _facts(row)) == (system, one)) for one in columns)
            for system in systems
        }
        found.append(PublishedTable(name, source, columns, values))
    return tuple(found)


def _facts(row: PublishedRow) -> tuple[str, str, str, int | None, str, str]:
    return row.attack, row.metric, row.unit, row.n, row.judge_preset, row.model
