"""The layout of a bench's files, and the one converter: files of schema 1 are read as if they were of schema 2.

Nothing is rewritten for it. A folder of schema 1 goes on being used: what is added to it has the new layout, its images stay in
`drawings/`, and both kinds of files may lie side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saferedir.bench.metric_keys import MetricKey
from saferedir.errors import BenchError

#: of plan.json and of every cell's record
SCHEMA = 2

#: schema 1 -> schema 2
METRICS = {
    "acted": "intervened",
    "kept": "retention",
    "rest_kept": "in_prompt_retention",
    "live": "asr_live",
    "changed": "changed_images",
}
#: columns of a shard's table
COLUMNS = {"picture": "image", "acted": "intervened"}
_CELL = {"drawings": "image_sets"}
_PLAN = {"drawings_at": "images_at"}
_PROTOCOL = {"draws": "images_per_prompt"}
_COST = {"pictures": "images"}


def read_record(values: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's record in the layout of schema 2; BenchError for a schema that is not known."""
    if not _is_old(values, "a cell"):
        return dict(values)
    measured = {str(_metric(name)): value for name, value in values.get("measured", {}).items()}
    return {**_cell(values), "schema": SCHEMA, "measured": measured}


def read_plan(values: Mapping[str, Any]) -> dict[str, Any]:
    """plan.json in the layout of schema 2; BenchError for a schema that is not known."""
    if not _is_old(values, "plan.json"):
        return dict(values)
    return {**_renamed(values, _PLAN), "schema": SCHEMA, "cells": [_cell(cell) for cell in values.get("cells", ())]}


def read_cost(values: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of costs.json, which has no number of its own."""
    return _renamed(values, _COST)


def column(name: str) -> str:
    """The name of a shard's column today; what is not renamed stays."""
    return COLUMNS.get(name, name)


def _metric(text: str) -> MetricKey:
    key = MetricKey.parse(text)
    return MetricKey(METRICS.get(key.metric, key.metric), key.scorer, key.against)


def _cell(values: Mapping[str, Any]) -> dict[str, Any]:
    cell = _renamed(values, _CELL)
    if isinstance(cell.get("protocol"), Mapping):
        cell["protocol"] = _renamed(cell["protocol"], _PROTOCOL)
    return cell


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in values.items()}


def _is_old(values: Mapping[str, Any], what: str) -> bool:
    schema = values.get("schema")
    if schema not in (1, SCHEMA):
        raise BenchError(
            f"{what} has schema {schema!r}, expected 1 or {SCHEMA}; update saferedir, or run the bench again."
        )
    return bool(schema == 1)
