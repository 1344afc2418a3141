"""Embeddings of what no bench generates: of prompts (texts/) and of reference images (references/), each computed once.

Whoever runs the bench computes them before the first image; counting reads them, without a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from saferedir.bench.generation.generate import Shard
from saferedir.bench.generation.resources import EncoderSpec, Resources
from saferedir.bench.planning.cell_spec import CellSpec
from saferedir.bench.planning.encoders import MatrixEncoder, errors_of
from saferedir.bench.storage.store import Store, column_embeddings, embedding_column, read_parquet, write_parquet
from saferedir.encoders.base import Encoder
from saferedir.errors import EncoderError
from saferedir.judges.images import read_image_tensor
from saferedir.utils.extras import require_extra

_BATCH = 64


@dataclass(frozen=True)
class TextEmbeddings:
    """(P, d) vectors of P prompts; is_truncated: (P,) bool, the encoder read only the beginning."""

    vectors: Tensor
    is_truncated: Tensor


@dataclass(frozen=True)
class CellEmbeddings:
    """What one encoder made of a cell's images and texts.

    Attributes:
        guarded, bare: (N, d), row i of both the same prompt and seed, NaN for an image never made.
        texts: of the cell's prompts, or None.
        reference: (R, d) of the reference images, or None.
        without: (N, d) of the bare model's images of the prompts without the concept, or None.
        without_texts: these prompts, or None.
    """

    guarded: Tensor
    bare: Tensor
    texts: TextEmbeddings | None = None
    reference: Tensor | None = None
    without: Tensor | None = None
    without_texts: TextEmbeddings | None = None


def store_embeddings(
    encoders: Mapping[str, MatrixEncoder],
    texts: Mapping[str, Sequence[str]],
    store: Store,
    resources: Resources,
    on_step: Callable[[str], None] = lambda text: None,
) -> None:
    """Compute the vectors that the folder lacks.

    Args:
        encoders: of the matrix, by name.
        texts: digest of a prompt set -> its texts; every encoder that reads texts encodes them. They are not kept.
        on_step: called before each piece of work.

    Raises EncoderError, which names the section of the matrix, where an encoder fails.
    """
    pa = require_extra("pyarrow", "bench", "the bench")
    for name, encoder in encoders.items():
        for digest, prompts in texts.items() if encoder.spec.reads_texts else ():
            path = store.texts_path(digest, encoder.spec.key)
            if not path.is_file():
                on_step(f"{name}: {len(prompts)} prompts")
                with errors_of(name):
                    read, is_cut = _encode_texts(resources.encoder(encoder.spec), prompts)
                columns = {"features": embedding_column(read), "is_truncated": pa.array(is_cut.tolist(), pa.bool_())}
                write_parquet(path, columns, _facts(digest, encoder.spec))
        if encoder.reference is not None:
            path = store.reference_path(encoder.reference.checksum, encoder.spec.key)
            if not path.is_file():
                on_step(f"{name}: {len(encoder.reference.files)} reference images")
                with errors_of(name):
                    vectors = _encode_files(resources.encoder(encoder.spec), encoder.reference.files)
                write_parquet(
                    path, {"features": embedding_column(vectors)}, _facts(encoder.reference.checksum, encoder.spec)
                )


def _encode_texts(encoder: Encoder, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    vectors = encoder.encode_texts(texts)
    if vectors is None:
        raise EncoderError("reads no texts any more; plan again with `saferedir bench run`.")
    return vectors


def _facts(key: str, spec: EncoderSpec) -> dict[str, object]:
    return {"key": key, "name": spec.name, "options": dict(spec.options), "digest": spec.digest}


def _encode_files(encoder: Encoder, files: Sequence[Path]) -> Tensor:
    """(N, d) of image files of any sizes, consecutive ones of a size together."""
    rows: list[Tensor] = []
    chunk: list[Tensor] = []
    for image in map(read_image_tensor, files):
        if chunk and (len(chunk) == _BATCH or image.shape != chunk[0].shape):
            rows.append(encoder.encode(torch.stack(chunk)))
            chunk = []
        chunk.append(image)
    return torch.cat([*rows, encoder.encode(torch.stack(chunk))])


class EmbeddingReader:
    """Reads what encoders left in a folder, as cells need it. Keeps vectors of texts and references in memory."""

    def __init__(self, store: Store, shards: Mapping[str, Sequence[Shard]]) -> None:
        self.store, self.shards = store, shards
        self._texts, self._reference = cache(self._read_texts), cache(self._read_reference)

    def of(self, cell: CellSpec) -> dict[str, CellEmbeddings]:
        """Encoder's name -> what it made of the cell; BenchError where something is missing or damaged."""
        return {
            name: CellEmbeddings(
                guarded=self._images(cell.image_sets, use.key),
                bare=self._images(cell.bare, use.key),
                texts=self._texts(use.texts, use.key) if use.texts else None,
                reference=self._reference(use.reference, use.key) if use.reference else None,
                without=self._images(cell.without, use.key) if cell.without and use.without else None,
                without_texts=self._texts(use.without, use.key) if cell.without and use.without else None,
            )
            for name, use in cell.encoders.items()
        }

    def _images(self, image_sets: Sequence[str], encoder: str) -> Tensor:
        """(N, d), NaN for images never made; d is 1 where none was."""
        shards = [shard for key in image_sets for shard in self.shards[key]]
        vectors = self.store.features(shards, encoder)
        return torch.full((sum(map(len, shards)), 1), torch.nan) if vectors is None else vectors

    def _read_texts(self, digest: str, encoder: str) -> TextEmbeddings:
        table, _ = read_parquet(self.store.texts_path(digest, encoder), digest)
        return TextEmbeddings(column_embeddings(table["features"]), torch.tensor(table["is_truncated"].to_pylist()))

    def _read_reference(self, checksum: str, encoder: str) -> Tensor:
        return column_embeddings(read_parquet(self.store.reference_path(checksum, encoder), checksum)[0]["features"])
