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
    tables = []
    for name, source in dict.fromkeys((row.table, row.source) for row in rows):
        of_table = [row for row in rows if (row.table, row.source) == (name, source)]
        columns = tuple(dict.fromkeys(_facts(row) for row in of_table))
        systems = dict.fromkeys(row.system for row in of_table)
        values = {
            system: tuple(
                tuple(row for row in of_table if (row.system, _facts(row)) == (system, column)) for column in columns
            )
            for system in systems
        }
        tables.append(PublishedTable(name, source, columns, values))
    return tuple(tables)


def _facts(row: PublishedRow) -> tuple[str, str, str, int | None, str, str]:
    return row.attack, row.metric, row.unit, row.n, row.judge_preset, row.model
