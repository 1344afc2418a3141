"""The bench's folder: what was generated and what came of it. Every file appears whole or not at all.

    matrix.json   plan.json                 the matrix and its cells, as last planned
    images/<key>/<shard>.parquet            one row an image: prompt, seed, checksum, what the guard did, the image itself
    images/<key>/<shard>.<judge>.parquet    one row an image: raw scores and features of that judge or encoder
    texts/  references/                     embeddings of prompts and of reference images, see embeddings.py
    cells/<slug>.json                       one record a cell
    costs.json  counted.json  report.html  report.md  figures.json

`drawings/` in place of `images/`, and other names of columns and keys, are those of schema 1: ../schema.py reads them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saferedir.bench import schema
from saferedir.bench.generation.generate import GeneratedShard, GenerationSpec, Shard
from saferedir.bench.generation.resources import JudgeSpec, Scorer
from saferedir.bench.generation.score import ScorerOutput
from saferedir.bench.records import CellRecord
from saferedir.bench.storage.generated_set import GeneratedSet
from saferedir.errors import BenchError, OutputError
from saferedir.judges.base import Scores
from saferedir.utils.extras import require_extra
from saferedir.utils.files import reason, replacing
from saferedir.utils.locks import output_lock

_FORMAT = 2
#: what the bench writes at the top, see the list above
_ROOT_FILES = r"(matrix|plan|costs|counted|figures)\.json|report\.(html|md)"
_SCORE = "score/"  # prefix of score columns, for no label is to meet "features"


class Store:
    """One bench folder. Only one run at a time may write to it (`lock`)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def images_folder(self) -> Path:
        """Where the sets of images lie: `drawings/` in a folder that an earlier version began."""
        old = self.root / "drawings"
        return old if old.is_dir() else self.root / "images"

    def prepare(self, needs_bytes: int) -> None:
        """Make the folder, and find out now whether it can take what will come."""
        for folder in self._folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder) as probe:  # nameless: a kill leaves nothing
                    probe.write(b"x" * 4096)
                    probe.flush()
                    os.fsync(probe.fileno())
            except OSError as error:
                raise BenchError(f"cannot write to {folder} ({reason(error)}); choose another --out.") from error
        free = shutil.disk_usage(self.root).free
        if free < needs_bytes:
            raise BenchError(
                f"the disk of {self.root} has {free / 1e6:.0f} MB free, but this bench needs about {needs_bytes / 1e6:.0f} MB; "
                "free some space, choose another --out, or set keep_images = false."
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder; a second run is refused at once. The lock dies with its process.

        A block that fails before anything is kept leaves no folder behind.
        """
        try:
            with output_lock(self.root):
                made = [folder for folder in (*self._folders[::-1],) if not folder.exists()]
                (self.root / ".lock").unlink(missing_ok=True)  # of an earlier version
                self._sweep()
                try:
                    yield
                except BaseException:
                    for folder in made:
                        with suppress(OSError):  # it is not empty
                            folder.rmdir()
                    raise
        except OutputError as error:
            raise BenchError(str(error)) from error

    @property
    def _folders(self) -> tuple[Path, Path, Path]:
        return self.root, self.images_folder, self.root / "cells"

    def _sweep(self) -> None:
        """Remove half-written files that a killed run left behind: of our names, in our places, and nothing else."""
        folders = [(self.root, _ROOT_FILES), (self.root / "cells", r".+\.json")]
        if self.images_folder.is_dir():
            folders += [
                (folder, r"\d{6,}-\d{6,}.*\.parquet")
                for folder in self.images_folder.iterdir()
                if re.fullmatch(r"[0-9a-f]{16}", folder.name) and folder.is_dir()
            ]
        folders += [(self.root / name, r"[0-9a-f]{16}\.encoder-.+\.parquet") for name in ("texts", "references")]
        for folder, names in folders:
            for litter in folder.glob(".*.tmp"):
                if re.fullmatch(rf"\.({names})\.\d+\.tmp", litter.name) and litter.is_file():
                    litter.unlink(missing_ok=True)

    def has(self, shard: Shard) -> bool:
        """Whether the shard was generated."""
        return self.path(shard).is_file()

    def lacks(self, scorers: Sequence[Scorer], shard: Shard) -> list[Scorer]:
        """Which of the judges and encoders have not scored a shard."""
        return [scorer for scorer in scorers if not self.path(shard, scorer.key).is_file()]

    def has_images(self, shard: Shard) -> bool:
        """Whether a generated shard's images were kept, as far as they were made at all."""
        rest, _ = self._table(shard, without="png")
        return "png" in self._columns(shard) or all(rest["blocked"].to_pylist())

    def _columns(self, shard: Shard) -> list[str]:
        pq = require_extra("pyarrow.parquet", "bench", "the bench")
        names: list[str] = pq.read_schema(self.path(shard)).names
        return names

    def path(self, shard: Shard, scorer: str = "") -> Path:
        """Where a shard lies, or what a judge or an encoder said of it."""
        mark = f".{scorer}" if scorer else ""
        return self.images_folder / shard.key / f"{shard.start:06d}-{shard.stop:06d}{mark}.parquet"

    def write_shard(self, spec: GenerationSpec, shard: Shard, generated: GeneratedShard) -> None:
        """Keep a shard: the scores first, so that a shard that is there lacks only those that failed, or come
        later (`lacks`).
        """
        pa = require_extra("pyarrow", "bench", "the bench")
        if len(generated) != len(shard):
            raise BenchError(f"shard {shard} has {len(generated)} generated, expected {len(shard)}.")
        for scorer, output in generated.judged.items():
            self.write_scores(shard, scorer, output)
        rows = range(shard.start, shard.stop)
        columns: dict[str, Any] = {
            "image": pa.array(list(rows), pa.int32()),
            "prompt": pa.array([spec.prompt_of[row] for row in rows], pa.int32()),
            "seed": pa.array([spec.seeds[row] for row in rows], pa.int64()),
            "blocked": pa.array(generated.blocked.tolist(), pa.bool_()),
            "intervened": pa.array(generated.intervened.tolist(), pa.bool_()),
            "sha256": pa.array(generated.checksums, pa.string()),
            "reason": pa.array([generated.reasons.get(index, "") for index in range(len(shard))], pa.string()),
        }
        if spec.keep_images:
            columns["png"] = pa.array(generated.images, pa.binary())
        cost = {name: getattr(generated, name) for name in ("seconds", "peak_bytes", "device", "precision")}
        write_parquet(self.path(shard), columns, {"key": shard.key, "versions": dict(spec.versions), **cost})

    def write_scores(self, shard: Shard, scorer: Scorer, output: ScorerOutput) -> None:
        """Keep the output of one judge or encoder for a shard."""
        pa = require_extra("pyarrow", "bench", "the bench")
        columns = {"image": pa.array(list(range(shard.start, shard.stop)), pa.int32())}  # where there is nothing else
        for index, label in enumerate(output.scores.labels):
            columns[f"{_SCORE}{label}"] = pa.array(output.scores.values[:, index].numpy(), pa.float32())
        if output.features is not None:
            columns["features"] = embedding_column(output.features)
        facts = {"key": shard.key, "name": scorer.name, "options": dict(scorer.options), "digest": scorer.digest}
        write_parquet(self.path(shard, scorer.key), columns, facts)

    def read(self, shards: Sequence[Shard], judges: Sequence[JudgeSpec], features_of: str) -> GeneratedSet:
        """All shards of a set of images, by some of its judges; BenchError if one is missing or damaged."""
        pa = require_extra("pyarrow", "bench", "the bench")
        read = [self._table(shard, without="png") for shard in shards]
        whole = pa.concat_tables([table for table, _ in read])
        scores: dict[str, Scores] = {}
        for judge in judges:
            tables = [self._table(shard, judge.key, without="features")[0] for shard in shards]
            labels = [name for name in tables[0].column_names if name.startswith(_SCORE)]
            scored = pa.concat_tables([table.select(labels) for table in tables])
            columns = [torch.tensor(scored[name].to_numpy()) for name in labels]
            scores[judge.key] = Scores(tuple(name.removeprefix(_SCORE) for name in labels), torch.stack(columns, dim=1))
        peaks = [facts["peak_bytes"] for _, facts in read if facts["peak_bytes"] is not None]
        return GeneratedSet(
            scores=scores,
            features=self.features(shards, features_of) if features_of in scores else None,
            blocked=torch.tensor(whole["blocked"].to_pylist()),
            intervened=torch.tensor(whole["intervened"].to_pylist()),
            checksums=whole["sha256"].to_pylist(),
            prompt_of=torch.tensor(whole["prompt"].to_pylist()),
            seconds=[facts["seconds"] / len(shard) for shard, (_, facts) in zip(shards, read, strict=True)],
            peak_bytes=max(peaks, default=None),
            device=read[0][1]["device"],
            reasons=whole["reason"].to_pylist(),
        )

    def features(self, shards: Sequence[Shard], scorer: str) -> Tensor | None:
        """(N, d) of all images of these shards by the judge or encoder with this key, NaN for those never made, or None."""
        tables = [self._table(shard, scorer)[0] for shard in shards]
        vectors = [
            column_embeddings(table["features"]) if "features" in table.column_names else None for table in tables
        ]
        width = next((part.shape[1] for part in vectors if part is not None), None)
        if width is None:
            return None
        rows = zip(vectors, tables, strict=True)
        return torch.cat([torch.full((len(table), width), torch.nan) if part is None else part for part, table in rows])

    def prompts_of(self, shard: Shard) -> list[int]:
        """Which prompt each image of a shard belongs to."""
        prompts: list[int] = self._table(shard, without="png")[0]["prompt"].to_pylist()
        return prompts

    def images(self, shard: Shard) -> list[bytes | None]:
        """The kept images of a shard, PNG; None for those never made, all None where none were kept."""
        table, _ = self._table(shard)
        images: list[bytes | None] = table["png"].to_pylist() if "png" in table.column_names else [None] * len(shard)
        return images

    def _table(self, shard: Shard, scorer: str = "", without: str | None = None) -> tuple[Any, dict[str, Any]]:
        path = self.path(shard, scorer)
        table, facts = read_parquet(path, shard.key, without)
        if len(table) != len(shard):
            raise BenchError(f"{path} does not belong to its place; delete it and run the bench again.")
        return table, facts

    def texts_path(self, digest: str, encoder: str) -> Path:
        """Where an encoder's vectors of a prompt set lie."""
        return self.root / "texts" / f"{digest}.{encoder}.parquet"

    def reference_path(self, checksum: str, encoder: str) -> Path:
        """Where an encoder's vectors of reference images lie."""
        return self.root / "references" / f"{checksum}.{encoder}.parquet"

    def facts(self, shard: Shard) -> dict[str, Any]:
        """What is known of a shard beside its rows: "seconds", "peak_bytes", "device"."""
        return _layout(self.path(shard))[1]

    def checksum(self, path: Path) -> str:
        """Of a table's rows and facts, without the images themselves; BenchError where it is damaged."""
        pa = require_extra("pyarrow", "bench", "the bench")
        table, facts = read_parquet(path, _layout(path)[1]["key"], without="png")
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table.combine_chunks())
        digest = hashlib.sha256(sink.getvalue())
        digest.update(json.dumps(facts, sort_keys=True).encode())
        return digest.hexdigest()[:32]

    def write_cell(self, record: CellRecord) -> None:
        """Keep a cell's record."""
        write_json(self.root / "cells" / f"{record.name.slug}.json", record.to_dict())

    def read_cells(self, slugs: Sequence[str]) -> list[CellRecord]:
        """The records that exist, in the order asked for."""
        records = []
        for slug in slugs:
            path = self.root / "cells" / f"{slug}.json"
            if path.is_file():
                records.append(CellRecord.from_dict(read_json(path)))
        return records


def write_parquet(path: Path, columns: dict[str, Any], facts: dict[str, Any]) -> None:
    """A table of pyarrow's columns and what is known of it, "key" at least, whole or not at all."""
    pa, pq = require_extra("pyarrow", "bench", "the bench"), require_extra("pyarrow.parquet", "bench", "the bench")
    text = json.dumps({"format": _FORMAT, **facts})
    table = pa.table(columns).replace_schema_metadata({"saferedir": text})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_parquet(path: Path, key: str, without: str | None = None) -> tuple[Any, dict[str, Any]]:
    """A table and its facts, without one of its columns; BenchError where it is missing, damaged, or of another key."""
    pq = require_extra("pyarrow.parquet", "bench", "the bench")
    layout, facts = _layout(path)
    try:
        table = pq.read_table(path, columns=[name for name in layout.names if name != without])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BenchError(f"{path} is missing or damaged ({error}); delete it and run the bench again.") from error
    if facts.get("format") not in (1, _FORMAT) or facts.get("key") != key:
        raise BenchError(f"{path} does not belong to its place; delete it and run the bench again.")
    return table.rename_columns([schema.column(name) for name in table.column_names]), facts


def _layout(path: Path) -> tuple[Any, dict[str, Any]]:
    """The schema of a table, and its facts; BenchError where it is missing or damaged."""
    pq = require_extra("pyarrow.parquet", "bench", "the bench")
    try:
        layout = pq.read_schema(path)
        return layout, dict(json.loads(layout.metadata[b"saferedir"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BenchError(f"{path} is missing or damaged ({error}); delete it and run the bench again.") from error


def embedding_column(rows: Tensor) -> Any:
    """(N, d) as a column of pyarrow's, one list of d numbers a row."""
    pa = require_extra("pyarrow", "bench", "the bench")
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1).numpy(), pa.float32()), rows.shape[1])


def column_embeddings(column: Any) -> Tensor:
    """Inverse of `embedding_column`."""
    return torch.tensor(column.combine_chunks().flatten().to_numpy(zero_copy_only=False)).reshape(len(column), -1)


def write_json(path: Path, values: Any) -> None:
    """JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """JSON, or one sentence."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} is missing or damaged ({error}); run the bench again.") from error
