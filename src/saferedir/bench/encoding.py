"""From a matrix entry to an encoder and its reference pictures, both checked, and to what a cell takes of them.

Imports config, encoded, resources and judges' pictures; used by plan.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from saferedir.bench.config import EncoderEntry
from saferedir.bench.encoded import EncoderUse
from saferedir.bench.resources import EncoderSpec, Resources, encoder_digest
from saferedir.errors import BenchError
from saferedir.judges.pictures import picture_files
from saferedir.prompts import PromptSet


@dataclass(frozen=True)
class Reference:
    """A folder of pictures: checksum over the bytes of all files in order; files: their paths, sorted."""

    checksum: str
    files: tuple[Path, ...] = field(repr=False)


@dataclass(frozen=True)
class MatrixEncoder:
    """An encoder of the matrix."""

    spec: EncoderSpec
    reference: Reference | None = None


def encoders_of(entries: Mapping[str, EncoderEntry], resources: Resources) -> dict[str, MatrixEncoder]:
    """All encoders by their names in the matrix, each loaded once to know its facts.

    Raises BenchError for a reference that cannot be used; EncoderError, MetricError or JudgeError where an encoder cannot be had.
    """
    references = {
        name: None if one.reference is None else _reference(name, one.reference) for name, one in entries.items()
    }
    return {name: MatrixEncoder(_spec(entry, resources), references[name]) for name, entry in entries.items()}


def uses_of(
    encoders: Mapping[str, MatrixEncoder], role: str, chosen: PromptSet, without: PromptSet | None
) -> dict[str, EncoderUse]:
    """What a cell of these prompts takes of each encoder: on forget prompts only those that read texts have something to say."""
    found = {}
    for name, one in encoders.items():
        reads = one.spec.reads_texts
        if reads or role != "forget":
            found[name] = EncoderUse(
                key=one.spec.key,
                texts=chosen.digest if reads else "",
                reference=one.reference.checksum if one.reference is not None and role != "forget" else "",
                without=without.digest if reads and without is not None else "",
            )
    return found


def checksums_of(encoders: Mapping[str, MatrixEncoder], uses: Mapping[str, EncoderUse]) -> dict[str, str]:
    """What a protocol says of a cell's encoders (`Protocol.encoders`)."""
    found: dict[str, str] = {}
    for name, use in uses.items():
        parts = {"": encoders[name].spec.digest, "@reference": use.reference, "@without": use.without}
        found |= {f"{name}{part}": checksum for part, checksum in parts.items() if checksum}
    return found


def _spec(entry: EncoderEntry, resources: Resources) -> EncoderSpec:
    encoder = resources.encoder(EncoderSpec(entry.name, entry.options))
    return EncoderSpec(entry.name, entry.options, encoder_digest(encoder), encoder.facts(), encoder.reads_texts)


def _reference(name: str, folder: str) -> Reference:
    """The pictures of a folder, each tried, and read once for the checksum."""
    files = picture_files(Path(folder))
    if len(files) < 2:
        raise BenchError(
            f"[encoder.{name}] has {len(files)} picture(s) in its reference folder {folder}, expected at least 2."
        )
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
            with Image.open(path) as image:
                image.draft("RGB", (64, 64))  # JPEG: all of the file, but a quick decoding
                image.load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = " ".join(str(error).replace(str(path), path.name).split())
            raise BenchError(
                f"[encoder.{name}] has a reference picture that cannot be read, {path.name} ({reason}); mend it, or take it out "
                "of the folder."
            ) from error
    return Reference(digest.hexdigest()[:16], tuple(files))
