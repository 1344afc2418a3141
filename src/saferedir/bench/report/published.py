"""Numbers that papers report, as data for comparison; never a source of a measured cell.

The numbers are in published.json, one row a number. A table is one protocol: the same attack on the same defence has very
different values in different tables, and no function here joins two of them. A report shows them apart from what it measured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from saferedir.errors import BenchError
from saferedir.utils.names import unknown_name_message

DATA = Path(__file__).with_suffix(".json")
#: how a number reached us: in the authors' code or README, in the paper, in other people's notes on it
EVIDENCE = ("reference", "paper", "second-hand")
#: metric -> whether more of it is better for the defence; "asr" is the share of prompts with the concept in an image
HIGHER_IS_BETTER = {
    "asr": False,
    "safe_rate": True,
    "unsafe_rate": False,
    "target_rate": False,
    "forgetting": True,
    "robustness": True,
    "fid": False,
    "clip_score": True,
}


@dataclass(frozen=True)
class PublishedTable:
    """A protocol and the numbers reported under it.

    Attributes:
        name: what rows and citations call it.
        section: number of its group of tables, which the file is ordered by.
        title: for a caption.
        protocol: prompts, judge and setting in one sentence, as far as they are known to us.
    """

    name: str
    section: str
    title: str
    protocol: str


@dataclass(frozen=True)
class PublishedRow:
    """One reported number.

    Attributes:
        table: name of its table, which is its protocol.
        system: the defence ("ESD"), "undefended" for the bare model.
        attack: attack or prompt file, "none" for plain prompts.
        metric: a key of `HIGHER_IS_BETTER`.
        value: as reported, in `unit`: "percent" (0 to 100), "proportion" (0 to 1) or "score" (>= 0).
        n: number of prompts, None where it is not known.
        judge_preset: who judged; "none" for a metric without judge, "not stated" where we do not know.
        model: the model attacked, "not stated" where we do not know.
        evidence: one of `EVIDENCE`.
        note: what else a reader must know, "" for nothing.
        source: the paper or repository.
    """

    table: str
    system: str
    attack: str
    metric: str
    value: float
    unit: str
    n: int | None
    judge_preset: str
    model: str
    evidence: str
    note: str
    source: str


@cache
def _data() -> tuple[tuple[PublishedTable, ...], tuple[PublishedRow, ...]]:
    data: dict[str, list[dict[str, Any]]] = json.loads(DATA.read_text(encoding="utf-8"))
    return tuple(PublishedTable(**row) for row in data["tables"]), tuple(PublishedRow(**row) for row in data["rows"])


def tables() -> list[PublishedTable]:
    """All tables, in the order of the file."""
    return list(_data()[0])


def published(table: str | None = None) -> list[PublishedRow]:
    """The rows of one table, or all of them, each under its own table's name; raises BenchError for an unknown table."""
    names = [known.name for known in tables()]
    if table is not None and table not in names:
        raise BenchError(unknown_name_message("table of published numbers", table, names))
    return [row for row in _data()[1] if table in (None, row.table)]
