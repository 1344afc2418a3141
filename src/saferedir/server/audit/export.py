"""Records as JSON lines or Parquet."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from saferedir.server.audit.store import AuditStore, canonical
from saferedir.utils.extras import require_extra
from saferedir.utils.files import replacing

_BATCH = 1000
#: columns of a Parquet file; all the rest of a record is in `body`
_COLUMNS = ("seq", "image_id", "time", "action", "key", "model", "image_sha256", "body", "previous", "hash")


def export_json_lines(store: AuditStore, out: Path) -> int:
    """Write every record as a line of JSON; how many."""
    count = 0
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in store.records():
            file.write(json.dumps(record, sort_keys=True) + "\n")
            count += 1
    return count


def export_parquet(store: AuditStore, out: Path) -> int:
    """Write every record as a row of a Parquet file; how many. Needs pyarrow, of the extra `bench`."""
    pa: Any = require_extra("pyarrow", "bench", "an export to Parquet")
    parquet: Any = require_extra("pyarrow.parquet", "bench", "an export to Parquet")
    types = {"seq": pa.int64()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in _COLUMNS])
    count = 0
    with replacing(out) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        every = store.records()
        while records := list(islice(every, _BATCH)):
            writer.write_table(pa.Table.from_pylist([_row(record) for record in records], schema=schema))
            count += len(records)
    return count


def _row(record: dict[str, Any]) -> dict[str, Any]:
    chain = ("seq", "previous", "hash")
    row = {name: record.get(name) for name in _COLUMNS}
    return {**row, "body": canonical({name: value for name, value in record.items() if name not in chain})}
