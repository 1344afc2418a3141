"""What was counted before: cells and costs, each kept with a checksum of all that it is counted from.

So that resuming, counting again and judging again take time for what is new. counted.json lies beside costs.json; without it,
or where it is damaged, everything is counted anew. A file that has its size and time of writing is not read again. The checksum
covers the code that counts, and what is counted is saved now and then, so that a run that is cut off is not counted anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from saferedir.bench.planning.cell_spec import CellSpec
from saferedir.bench.records import CellRecord, Cost
from saferedir.bench.storage.saved_plan import SavedPlan
from saferedir.bench.storage.store import Store, write_json
from saferedir.errors import BenchError, SaferedirError
from saferedir.utils.packaged import library_version

FILE = "counted.json"
_FORMAT = 1
#: seconds from one save to the next, while cells are counted
SAVE_EVERY = 30.0
#: files and folders of the package by whose code scores become numbers
_CODE = (
    "metrics",
    "bench/evaluation",
    "bench/storage",
    "bench/records.py",
    "bench/metric_keys.py",
    "judges/base.py",
    "judges/rules.py",
)


@dataclasses.dataclass(frozen=True)
class SetCost:
    """What a set of images cost.

    Attributes:
        seconds: an image, one entry a shard.
        peak_bytes: highest of all shards, None where nobody measured it.
        device: in words.
        images: how many.
    """

    seconds: tuple[float, ...]
    peak_bytes: int | None
    device: str
    images: int

    @classmethod
    def joined(cls, parts: Sequence[SetCost]) -> SetCost:
        """Of several sets together."""
        peaks = [part.peak_bytes for part in parts if part.peak_bytes is not None]
        return cls(
            seconds=tuple(seconds for part in parts for seconds in part.seconds),
            peak_bytes=max(peaks, default=None),
            device=parts[0].device,
            images=sum(part.images for part in parts),
        )


class Counted:
    """What a folder has counted, and the checksums of the files that it was counted from.

    Args:
        store: takes what is counted now.
        source: holds the sets of images.
    """

    def __init__(self, store: Store, source: Store, planned: SavedPlan) -> None:
        self._store, self._source, self._planned = store, source, planned
        is_one = store.root.resolve() == source.root.resolve()
        self._folders = [store.root] if is_one else [store.root, source.root]
        self._earlier = [_read(folder) for folder in self._folders]
        self._known_files: dict[str, Any] = {}
        for values in reversed(self._earlier):
            self._known_files |= values["files"]
        self._files: dict[str, Any] = {}
        self._cells: dict[str, Any] = {}
        self._costs: dict[str, Any] = {}
        self._sets: dict[tuple[str, str], str] = {}
        self._facts: dict[str, str] = {}
        self._set_costs: dict[str, SetCost] = {}
        self._saved_at = time.monotonic()

    def key(self, cell: CellSpec, why: str, notes: Sequence[str]) -> str:
        """Checksum of all that a cell's record is counted from; `why` it has no number, `notes` on what is missing."""
        if cell.prompts not in self._facts:
            self._facts[cell.prompts] = _checksum(dataclasses.asdict(self._planned.prompts[cell.prompts]))
        scorers = [cell.judge, *(further["judge"] for further in cell.second.values())]
        encoders = list(cell.encoders.values())
        sets = [
            self._set(key, scorer) for key in cell.needs for scorer in ("", *scorers, *(use.key for use in encoders))
        ]
        more = [
            self._file(path)
            for use in encoders
            for path in (
                *(self._source.texts_path(digest, use.key) for digest in (use.texts, use.without) if digest),
                *(self._source.reference_path(digest, use.key) for digest in (use.reference,) if digest),
            )
        ]
        facts = [
            library_version(),
            code_checksum(),
            cell.to_dict(),
            self._facts[cell.prompts],
            why,
            list(notes),
            sets,
            more,
        ]
        return _checksum(facts)

    def record(self, cell: CellSpec, key: str) -> CellRecord | None:
        """The record of a cell that was counted from the same, if it is there and as it was written."""
        slug = cell.name.slug
        for folder, values in zip(self._folders, self._earlier, strict=True):
            path = folder / "cells" / f"{slug}.json"
            if values["cells"].get(slug, [None])[0] != key or not path.is_file():
                continue
            written = path.read_bytes()
            if hashlib.sha256(written).hexdigest() != values["cells"][slug][1]:
                continue
            try:
                record = CellRecord.from_dict(json.loads(written))
            except (SaferedirError, ValueError):
                continue
            if folder != self._store.root:
                self._store.write_cell(record)
            self._keep(slug, key)
            return record
        return None

    def write(self, record: CellRecord, key: str) -> None:
        """Write a record, and keep it where it has a number."""
        self._store.write_cell(record)
        if not record.error:
            self._keep(record.name.slug, key)
        if time.monotonic() - self._saved_at >= SAVE_EVERY:
            self.save(is_end=False)

    def _keep(self, slug: str, key: str) -> None:
        written = (self._store.root / "cells" / f"{slug}.json").read_bytes()
        self._cells[slug] = [key, hashlib.sha256(written).hexdigest()]

    def set_cost(self, keys: Sequence[str]) -> SetCost:
        """What some sets of images cost."""
        for key in keys:
            if key not in self._set_costs:
                self._set_costs[key] = self._read_cost(key)
        return SetCost.joined([self._set_costs[key] for key in keys])

    def _read_cost(self, key: str) -> SetCost:
        kept = next((values["sets"][key] for values in self._earlier if key in values["sets"]), None)
        checksum = self._set(key, "")
        if kept is not None and kept[0] == checksum:
            return SetCost(**{**kept[1], "seconds": tuple(kept[1]["seconds"])})
        shards = self._planned.shards[key]
        facts = [self._source.facts(shard) for shard in shards]
        peaks = [each["peak_bytes"] for each in facts if each["peak_bytes"] is not None]
        return SetCost(
            seconds=tuple(each["seconds"] / len(shard) for shard, each in zip(shards, facts, strict=True)),
            peak_bytes=max(peaks, default=None),
            device=facts[0]["device"],
            images=sum(map(len, shards)),
        )

    def cost(self, name: str, sets: Sequence[str]) -> tuple[str, Cost | None]:
        """(checksum of what a guard's cost is measured from, that cost where it was measured from the same)."""
        key = _checksum([library_version(), code_checksum(), [[each, self._set(each, "")] for each in sets]])
        for values in self._earlier:
            kept = values["costs"].get(name)
            if kept is not None and kept[0] == key:
                return key, Cost(**kept[1])
        return key, None

    def keep_cost(self, name: str, key: str, cost: Cost) -> None:
        """Keep a guard's cost."""
        self._costs[name] = [key, dataclasses.asdict(cost)]

    def save(self, *, is_end: bool = True) -> None:
        """Write counted.json; before the end, what an earlier count left and nobody has asked for yet stays in it."""
        sets = {key: [self._set(key, ""), dataclasses.asdict(cost)] for key, cost in self._set_costs.items()}
        values: dict[str, Any] = {"files": self._files, "cells": self._cells, "costs": self._costs, "sets": sets}
        if not is_end:
            values = {name: self._earlier[0][name] | kept for name, kept in values.items()}
        write_json(self._store.root / FILE, {"format": _FORMAT, **values})
        self._saved_at = time.monotonic()

    def _set(self, key: str, scorer: str) -> str:
        """Checksum of a set of images, without the images themselves, or of what a judge or an encoder said of it."""
        if (key, scorer) not in self._sets:
            paths = [self._source.path(shard, scorer) for shard in self._planned.shards[key]]
            self._sets[key, scorer] = _checksum([self._file(path) for path in paths])
        return self._sets[key, scorer]

    def _file(self, path: Path) -> str:
        """Checksum of a file's columns; "" for one that is missing."""
        name = path.relative_to(self._source.root).as_posix()
        try:
            status = path.stat()
        except OSError:
            return ""
        stamp = [status.st_size, status.st_mtime_ns]
        known = self._known_files.get(name)
        if known is None or known[0] != stamp:
            try:
                known = [stamp, self._source.checksum(path)]
            except BenchError:
                return ""  # counting it says what is wrong
        self._files[name] = known
        checksum: str = known[1]
        return checksum


def _read(root: Path) -> dict[str, Any]:
    """counted.json of a folder; nothing where it is missing, damaged or of another format."""
    empty: dict[str, Any] = {"files": {}, "cells": {}, "costs": {}, "sets": {}}
    try:
        values = json.loads((root / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return empty
    is_ours = isinstance(values, Mapping) and values.get("format") == _FORMAT and empty.keys() <= values.keys()
    return dict(values) if is_ours else empty


@cache
def code_checksum(root: Path = Path(__file__).parents[2]) -> str:
    """Checksum of the code that counts, as it lies in the package's folder."""
    paths = [
        path
        for name in _CODE
        for path in ([root / name] if name.endswith(".py") else sorted((root / name).rglob("*.py")))
    ]
    return _checksum(
        [[path.relative_to(root).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()] for path in paths]
    )


def _checksum(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:32]
