"""The bench's folder: what was drawn and what came of it. Every file appears whole or not at all; nothing is ever redrawn.

    matrix.json   plan.json                 the matrix and its cells, as last planned
    drawings/<key>/<shard>.parquet          one row a picture: prompt, seed, checksum, what the guard did, the picture
    drawings/<key>/<shard>.<judge>.parquet  one row a picture: what that judge saw, raw scores and features
    cells/<slug>.json                   one record a cell
    costs.json  report.html  report.md

Imports pyarrow (extra `bench`), drawing and records.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saferedir.bench.cells import Seen
from saferedir.bench.drawing import DrawingSpec, Judged, Pictures, Shard
from saferedir.bench.records import CellRecord
from saferedir.bench.resources import JudgeSpec
from saferedir.errors import BenchError
from saferedir.extras import need
from saferedir.judges.base import Scores

_FORMAT = 1
_ROOT_FILES = r"(matrix|plan|costs)\.json|report\.(html|md)"  # what the bench writes at the top, see the list above
_SCORE = "score/"  # prefix of score columns, for no label is to meet "features"


@dataclass(frozen=True)
class Drawn(Seen):
    """A whole drawing, read back: as a cell needs it, and what it cost.

    Attributes:
        seconds: a picture, one entry a shard; peak_bytes: highest of all shards; device: in words.
    """

    seconds: list[float]
    peak_bytes: int | None
    device: str


def joined(parts: Sequence[Drawn]) -> Drawn:
    """Drawings of the same prompts with several seeds, one after the other; each seed's prompts are cases of their own."""
    if len(parts) == 1:
        return parts[0]
    cases = [int(part.prompt_of.max()) + 1 for part in parts]
    peaks = [part.peak_bytes for part in parts if part.peak_bytes is not None]
    features = [part.features for part in parts if part.features is not None]
    return Drawn(
        scores={
            judge: Scores(found.labels, torch.cat([part.scores[judge].values for part in parts]))
            for judge, found in parts[0].scores.items()
        },
        features=torch.cat(features) if len(features) == len(parts) else None,
        blocked=torch.cat([part.blocked for part in parts]),
        acted=torch.cat([part.acted for part in parts]),
        checksums=[checksum for part in parts for checksum in part.checksums],
        prompt_of=torch.cat([part.prompt_of + sum(cases[:place]) for place, part in enumerate(parts)]),
        seconds=[seconds for part in parts for seconds in part.seconds],
        peak_bytes=max(peaks, default=None),
        device=parts[0].device,
        reasons=[reason for part in parts for reason in part.reasons],
    )


class Store:
    """One bench folder. Only one run at a time may write to it (`lock`)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self, needs_bytes: int) -> None:
        """Make the folder, and find out now whether it can take what will come."""
        for folder in (self.root, self.root / "drawings", self.root / "cells"):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder) as probe:  # nameless: a kill leaves nothing
                    probe.write(b"x" * 4096)
                    probe.flush()
                    os.fsync(probe.fileno())
            except OSError as error:
                raise BenchError(
                    f"cannot write to {folder} ({(error.strerror or str(error)).lower()}); choose another --out."
                ) from error
        free = shutil.disk_usage(self.root).free
        if free < needs_bytes:
            raise BenchError(
                f"the disk of {self.root} has {free / 1e6:.0f} MB free, but this bench needs about {needs_bytes / 1e6:.0f} MB; "
                "free some space, choose another --out, or set keep_images = false."
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder; a second run is refused at once. The lock dies with its process."""
        with (self.root / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise BenchError(
                    f"another run is writing to {self.root}; wait for it, or choose another --out."
                ) from error
            self._sweep()
            yield

    def _sweep(self) -> None:
        """Remove half-written files that a killed run left behind: of our names, in our places, and nothing else."""
        places = [(self.root, _ROOT_FILES), (self.root / "cells", r".+\.json")]
        drawings = self.root / "drawings"
        if drawings.is_dir():
            places += [
                (folder, r"\d{6,}-\d{6,}.*\.parquet")
                for folder in drawings.iterdir()
                if re.fullmatch(r"[0-9a-f]{16}", folder.name) and folder.is_dir()
            ]
        for folder, names in places:
            for litter in folder.glob(".*.tmp"):
                if re.fullmatch(rf"\.({names})\.\d+\.tmp", litter.name) and litter.is_file():
                    litter.unlink(missing_ok=True)

    def has(self, shard: Shard) -> bool:
        """Whether the shard was drawn."""
        return self._path(shard).is_file()

    def lacks(self, judges: Sequence[JudgeSpec], shard: Shard) -> list[JudgeSpec]:
        """Which of the judges have not seen a shard."""
        return [judge for judge in judges if not self._path(shard, judge).is_file()]

    def all_blocked(self, shard: Shard) -> bool:
        """Whether no picture of a drawn shard was made."""
        return all(self._table(shard, without="png")[0]["blocked"].to_pylist())

    def _path(self, shard: Shard, judge: JudgeSpec | None = None) -> Path:
        mark = "" if judge is None else f".{judge.key}"
        return self.root / "drawings" / shard.key / f"{shard.start:06d}-{shard.stop:06d}{mark}.parquet"

    def write_shard(self, spec: DrawingSpec, shard: Shard, pictures: Pictures) -> None:
        """Keep a shard: what the judges saw first, so that a shard that is there is whole."""
        pa = need("pyarrow", "bench", "the bench")
        if len(pictures) != len(shard):
            raise BenchError(f"shard {shard} has {len(pictures)} pictures, expected {len(shard)}.")
        for judge, seen in pictures.judged.items():
            self.write_judged(shard, judge, seen)
        rows = range(shard.start, shard.stop)
        columns: dict[str, Any] = {
            "picture": pa.array(list(rows), pa.int32()),
            "prompt": pa.array([spec.prompt_of[row] for row in rows], pa.int32()),
            "seed": pa.array([spec.seeds[row] for row in rows], pa.int64()),
            "blocked": pa.array(pictures.blocked.tolist(), pa.bool_()),
            "acted": pa.array(pictures.acted.tolist(), pa.bool_()),
            "sha256": pa.array(pictures.checksums, pa.string()),
            "reason": pa.array([pictures.reasons.get(place, "") for place in range(len(shard))], pa.string()),
        }
        if spec.keep_images:
            columns["png"] = pa.array(pictures.images, pa.binary())
        cost = {name: getattr(pictures, name) for name in ("seconds", "peak_bytes", "device", "precision")}
        self._write(self._path(shard), columns, {"key": shard.key, "versions": dict(spec.versions), **cost})

    def write_judged(self, shard: Shard, judge: JudgeSpec, seen: Judged) -> None:
        """Keep what one judge saw in a shard."""
        pa = need("pyarrow", "bench", "the bench")
        columns = {
            f"{_SCORE}{label}": pa.array(seen.scores.values[:, place].numpy(), pa.float32())
            for place, label in enumerate(seen.scores.labels)
        }
        if seen.features is not None:
            flat = pa.array(seen.features.reshape(-1).numpy(), pa.float32())
            columns["features"] = pa.FixedSizeListArray.from_arrays(flat, seen.features.shape[1])
        facts = {"key": shard.key, "judge": judge.name, "options": dict(judge.options), "digest": judge.digest}
        self._write(self._path(shard, judge), columns, facts)

    def _write(self, path: Path, columns: dict[str, Any], facts: dict[str, Any]) -> None:
        pa, pq = need("pyarrow", "bench", "the bench"), need("pyarrow.parquet", "bench", "the bench")
        text = json.dumps({"format": _FORMAT, **facts})
        table = pa.table(columns).replace_schema_metadata({"saferedir": text})
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    def read(self, shards: Sequence[Shard], judges: Sequence[JudgeSpec], features_of: str) -> Drawn:
        """All shards of a drawing, by some of its judges; BenchError if one is missing or damaged."""
        pa = need("pyarrow", "bench", "the bench")
        found = [self._table(shard, without="png") for shard in shards]
        whole = pa.concat_tables([table for table, _ in found])
        scores: dict[str, Scores] = {}
        features = None
        for judge in judges:
            seen = pa.concat_tables([self._table(shard, judge)[0] for shard in shards])
            labels = [name for name in seen.column_names if name.startswith(_SCORE)]
            columns = [torch.tensor(seen[name].to_numpy()) for name in labels]
            scores[judge.key] = Scores(tuple(name.removeprefix(_SCORE) for name in labels), torch.stack(columns, dim=1))
            if judge.key == features_of and "features" in seen.column_names:
                flat = seen["features"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
                features = torch.tensor(flat).reshape(len(seen), -1)
        peaks = [facts["peak_bytes"] for _, facts in found if facts["peak_bytes"] is not None]
        return Drawn(
            scores=scores,
            features=features,
            blocked=torch.tensor(whole["blocked"].to_pylist()),
            acted=torch.tensor(whole["acted"].to_pylist()),
            checksums=whole["sha256"].to_pylist(),
            prompt_of=torch.tensor(whole["prompt"].to_pylist()),
            seconds=[facts["seconds"] / len(shard) for shard, (_, facts) in zip(shards, found, strict=True)],
            peak_bytes=max(peaks, default=None),
            device=found[0][1]["device"],
            reasons=whole["reason"].to_pylist(),
        )

    def prompts_of(self, shard: Shard) -> list[int]:
        """Which prompt each picture of a shard belongs to."""
        found: list[int] = self._table(shard, without="png")[0]["prompt"].to_pylist()
        return found

    def images(self, shard: Shard) -> list[bytes | None]:
        """The kept pictures of a shard, PNG; None for those never made, all None where none were kept."""
        table, _ = self._table(shard)
        found: list[bytes | None] = table["png"].to_pylist() if "png" in table.column_names else [None] * len(shard)
        return found

    def _table(
        self, shard: Shard, judge: JudgeSpec | None = None, without: str | None = None
    ) -> tuple[Any, dict[str, Any]]:
        pq, path = need("pyarrow.parquet", "bench", "the bench"), self._path(shard, judge)
        try:
            schema = pq.read_schema(path)
            facts = json.loads(schema.metadata[b"saferedir"])
            table = pq.read_table(path, columns=[name for name in schema.names if name != without])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise BenchError(f"{path} is missing or damaged ({error}); delete it and run the bench again.") from error
        if facts.get("format") != _FORMAT or facts.get("key") != shard.key or len(table) != len(shard):
            raise BenchError(f"{path} does not belong to its place; delete it and run the bench again.")
        return table, facts

    def write_cell(self, record: CellRecord) -> None:
        """Keep a cell's record."""
        write_json(self.root / "cells" / f"{record.name.slug}.json", record.to_dict())

    def read_cells(self, slugs: Sequence[str]) -> list[CellRecord]:
        """The records that exist, in the order asked for."""
        found = []
        for slug in slugs:
            path = self.root / "cells" / f"{slug}.json"
            if path.is_file():
                found.append(CellRecord.from_dict(read_json(path)))
        return found


def write_json(path: Path, values: Any) -> None:
    """JSON, whole or not at all."""
    with _replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """JSON, or one sentence."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} is missing or damaged ({error}); run the bench again.") from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling that takes the place of `path` when the block ends without an error, flushed to the disk first."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
