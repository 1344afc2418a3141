"""From a matrix entry to an encoder and its reference images, both checked, and to what a cell takes of them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from saferedir.bench.generation.resources import EncoderSpec, Resources, encoder_digest
from saferedir.bench.generation.score import in_words
from saferedir.bench.planning.cell_spec import MIN_IMAGES, EncoderUse
from saferedir.bench.planning.config import EncoderEntry
from saferedir.errors import EncoderError, ImageFileError, SaferedirError
from saferedir.judges.images import image_folder
from saferedir.prompts.sets import PromptSet
from saferedir.utils.file_names import shown_name
from saferedir.utils.images import check_image

#: files named in a warning
_MAX_NAMED = 5
#: an image to try encoders with: greys from dark to bright, for some divide by an image's contrast
_TRIAL = torch.linspace(0.2, 0.8, 64).expand(1, 3, 64, 64)


@dataclass(frozen=True)
class Reference:
    """A folder of images: checksum over the bytes of all files in order; files: their paths, sorted."""

    checksum: str
    files: tuple[Path, ...] = field(repr=False)


@dataclass(frozen=True)
class MatrixEncoder:
    """An encoder of the matrix."""

    spec: EncoderSpec
    reference: Reference | None = None


def encoders_of(entries: Mapping[str, EncoderEntry], resources: Resources) -> dict[str, MatrixEncoder]:
    """All encoders by their names in the matrix, each loaded once to know its facts, and tried.

    Raises EncoderError, which names the section, for a reference that cannot be used, or an encoder that cannot be had or fails.
    """
    references: dict[str, Reference | None] = {}
    for name, entry in entries.items():
        with errors_of(name):
            references[name] = None if entry.reference is None else _reference(entry.reference, name)
    encoders = {}
    for name, entry in entries.items():
        with errors_of(name):
            encoders[name] = MatrixEncoder(_spec(entry, resources), references[name])
    return encoders


@contextmanager
def errors_of(name: str) -> Iterator[None]:
    """Whatever goes wrong with an encoder as an EncoderError that leads back to its section of the matrix."""
    try:
        yield
    except SaferedirError as error:
        raise EncoderError(f"[encoder.{name}] {error}") from error
    except Exception as error:
        raise EncoderError(f"[encoder.{name}] fails ({in_words(error)}); check its `options`.") from error


def uses_of(
    encoders: Mapping[str, MatrixEncoder], role: str, chosen: PromptSet, without: PromptSet | None
) -> dict[str, EncoderUse]:
    """What a cell of these prompts takes of each encoder: on forget prompts only those that read texts have something to say."""
    uses = {}
    for name, encoder in encoders.items():
        reads = encoder.spec.reads_texts
        if reads or role != "forget":
            uses[name] = EncoderUse(
                key=encoder.spec.key,
                texts=chosen.digest if reads else "",
                reference=encoder.reference.checksum if encoder.reference is not None and role == "retain" else "",
                without=without.digest if reads and without is not None else "",
            )
    return uses


def checksums_of(encoders: Mapping[str, MatrixEncoder], uses: Mapping[str, EncoderUse]) -> dict[str, str]:
    """What a protocol says of a cell's encoders (`Protocol.encoders`)."""
    checksums: dict[str, str] = {}
    for name, use in uses.items():
        parts = {"": encoders[name].spec.digest, "@reference": use.reference, "@without": use.without}
        checksums |= {f"{name}{part}": checksum for part, checksum in parts.items() if checksum}
    return checksums


def _spec(entry: EncoderEntry, resources: Resources) -> EncoderSpec:
    """The encoder, tried with an image and a text."""
    encoder = resources.encoder(EncoderSpec(entry.name, entry.options))
    image, text = encoder.encode(_TRIAL), encoder.encode_texts(["an image"])
    if text is not None and text[0].shape[1] != image.shape[1]:
        raise EncoderError(
            f"gives {image.shape[1]} numbers for an image and {text[0].shape[1]} for a text, expected as many, for the "
            "two are compared; check its `options`."
        )
    return EncoderSpec(entry.name, entry.options, encoder_digest(encoder), encoder.facts(), text is not None)


def _reference(folder: str, encoder: str) -> Reference:
    """The images of a folder, each tried, and read once for the checksum; a warning names those left out."""
    files, left_out = image_folder(Path(folder))
    if left_out:
        names = "; ".join(f"{name} ({reason})" for name, reason in list(left_out.items())[:_MAX_NAMED])
        warnings.warn(
            f"[encoder.{encoder}] {len(left_out)} image files in {folder} are left out: {names}"
            f"{' …' if len(left_out) > _MAX_NAMED else '.'}",
            stacklevel=2,
        )
    if len(files) < MIN_IMAGES:
        raise EncoderError(
            f"has {len(files)} image(s) in its reference folder {folder}, expected at least {MIN_IMAGES}: fewer "
            "give no distance."
        )
    digest = hashlib.sha256()
    for path in files:
        try:
            check_image(path)
        except ImageFileError as error:
            raise EncoderError(
                f"has a reference image that cannot be read, {shown_name(path.name)} ({error.reason}); mend it, or take it out."
            ) from error
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return Reference(digest.hexdigest()[:16], files)
