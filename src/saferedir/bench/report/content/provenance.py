"""Where the numbers come from: judges, protocols, versions, guards, warnings and what has no number, as plain values for page.py
and markdown.py. Pure; imports data.py, numbers.py, tables.py and bench.records.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from saferedir.bench.records import CellRecord, Protocol
from saferedir.bench.report.content.data import ReportData
from saferedir.bench.report.content.numbers import estimate, pluralise
from saferedir.bench.report.content.tables import Table


def calibration(judge: str, concept: str, data: ReportData) -> str:
    """'precision 99.0 % (…), recall …', or 'uncalibrated'."""
    known = data.calibrations.get((judge, concept))
    if known is None:
        return "uncalibrated"
    rates = {"precision": known.precision, "recall": known.recall, "false positives": known.false_positive_rate}
    found = [(name, estimate(rate.to_dict())) for name, rate in rates.items()]
    said = ", ".join(f"{name} {one.full_text}" for name, one in found if one is not None)
    return f"{said}, on {known.source}" if known.source else said


def judges_of(table: Table) -> list[tuple[str, str]]:
    """Who decided the numbers of a table, and about which concept."""
    return list(dict.fromkeys((column.judge, column.concept) for column in table.columns if column.judge))


def protocols(cells: Sequence[CellRecord]) -> list[dict[str, Any]]:
    """Every protocol once, with the cells measured under it."""
    found: dict[str, list[CellRecord]] = {}
    for cell in cells:
        found.setdefault(cell.protocol.id, []).append(cell)
    return [{"protocol": own[0].protocol, "facts": facts_of(own[0].protocol), "cells": own} for own in found.values()]


def facts_of(protocol: Protocol) -> list[tuple[str, str]]:
    """A protocol's fields as (name, text)."""
    seeds = ", ".join(str(seed) for seed in protocol.seeds)
    return [
        (
            "prompts",
            f"{protocol.prompts}, n = {protocol.n}, {pluralise(protocol.images_per_prompt, 'image')} a prompt",
        ),
        ("judge", f"{protocol.judge}, {protocol.preset}"),
        ("rule", _json(protocol.rule)),
        ("attack", protocol.attack + (f", budget {_json(protocol.budget)}" if protocol.budget else "")),
        ("call", _json(protocol.call)),
        ("model", f"{protocol.model}, {protocol.precision}"),
        ("encoders", ", ".join(f"{name} {digest}" for name, digest in protocol.encoders.items()) or "none"),
        ("seeds", seeds),
    ]


def warnings(data: ReportData) -> list[str]:
    """Every warning once, those of the report first."""
    return list(dict.fromkeys([*data.warnings, *(sentence for cell in data.cells for sentence in cell.warnings)]))


def missing(data: ReportData) -> list[str]:
    """What has no number, and why: the runner's sentences, and the cells' own errors that these do not repeat."""
    own = [f"{cell.name.slug}: {cell.error}" for cell in data.cells if cell.error]
    return list(dict.fromkeys([*data.missing, *(one for one in own if not any(one in told for told in data.missing))]))


def versions(data: ReportData) -> list[tuple[str, int]]:
    """Distinct sets of versions with the number of cells made with each."""
    told = [", ".join(f"{name} {value}" for name, value in cell.versions.items()) for cell in data.cells]
    return [(text, told.count(text)) for text in dict.fromkeys(told) if text]


def guards_of(data: ReportData) -> list[tuple[str, str]]:
    """(guard, facts) for every guard's method and digest; one guard trained for several concepts has several."""
    told = [(cell.name.guard, f"{cell.name.concept}: {_json(cell.guard)}") for cell in data.cells if cell.guard]
    return list(dict.fromkeys(told))


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
