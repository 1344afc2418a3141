"""Where the numbers come from: judges, protocols, versions, guards, warnings and what has no number, as plain values."""

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
    estimates = [(name, estimate(rate.to_dict())) for name, rate in rates.items()]
    text = ", ".join(f"{name} {rate.full_text}" for name, rate in estimates if rate is not None)
    return f"{text}, on {known.source}" if known.source else text


def judges_of(table: Table) -> list[tuple[str, str]]:
    """Who decided the numbers of a table, and about which concept."""
    return list(dict.fromkeys((column.judge, column.concept) for column in table.columns if column.judge))


def protocols(cells: Sequence[CellRecord]) -> list[dict[str, Any]]:
    """Every protocol once, with the cells measured under it."""
    by_id: dict[str, list[CellRecord]] = {}
    for cell in cells:
        by_id.setdefault(cell.protocol.id, []).append(cell)
    return [
        {"protocol": records[0].protocol, "facts": facts_of(records[0].protocol), "cells": records}
        for records in by_id.values()
    ]


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
    errors = [f"{cell.name.slug}: {cell.error}" for cell in data.cells if cell.error]
    further = (error for error in errors if not any(error in sentence for sentence in data.missing))
    return list(dict.fromkeys([*data.missing, *further]))


def versions(data: ReportData) -> list[tuple[str, int]]:
    """Distinct sets of versions with the number of cells made with each."""
    texts = [", ".join(f"{name} {value}" for name, value in cell.versions.items()) for cell in data.cells]
    return [(text, texts.count(text)) for text in dict.fromkeys(texts) if text]


def guards_of(data: ReportData) -> list[tuple[str, str]]:
    """(guard, facts) for every guard's method and digest; one guard trained for several concepts has several."""
    facts = [(cell.name.guard, f"{cell.name.concept}: {_json(cell.guard)}") for cell in data.cells if cell.guard]
    return list(dict.fromkeys(facts))


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
