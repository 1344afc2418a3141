"""Build a negation set: encode pictures in batches that survive a kill, drop duplicates, write one file, calibrate.

Used by `saferedir negation build`. Memory holds one batch and, while calibrating, a few rows: the finished file is
written block by block.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from saferedir.errors import GuardConfigError, ImageFileError
from saferedir.guards.negation.bank import NegationSet, header_facts
from saferedir.guards.negation.calibration import GRID, Calibration, calibrate
from saferedir.pipelines.fingerprint import vae_fingerprint
from saferedir.pipelines.latents import encode_images, fit_image, latent_constants
from saferedir.pipelines.safety_checker import without_safety_checker
from saferedir.utils.file_names import shown_name
from saferedir.utils.files import replacing, save_tensors, write_text
from saferedir.utils.image_folders import list_images
from saferedir.utils.images import read_image

Picture = np.ndarray[Any, np.dtype[np.uint8]]
PARTS = ("references", "benign")


class Source(NamedTuple):
    """One picture to come: a name for reports, a key that tells whether it has changed, and how to get it (H, W, 3)."""

    name: str
    key: str
    load: Callable[[], Picture]


@dataclass
class BuildReport:
    """What became of the sources: names of `skipped` ones with the reason, counts of the rest."""

    references: int = 0
    benign: int = 0
    duplicates: int = 0
    skipped: dict[str, str] = field(default_factory=dict)


def image_sources(folder: Path, height: int, width: int, left_out: dict[str, str] | None = None) -> list[Source]:
    """Every image file below `folder`, sorted by path; files that are left out go to `left_out`, name -> why."""
    if not folder.is_dir():
        raise GuardConfigError(f"{shown_name(folder)} is no folder; give one with images.")
    found = list_images(folder)
    if left_out is not None:
        left_out.update(found.left_out)
    if not found.files:
        aside = f" that can be read ({', '.join(list(found.left_out)[:3])} …)" if found.left_out else ""
        raise GuardConfigError(f"{shown_name(folder)} holds no image{aside}; the negation set would be empty.")

    def source(path: Path) -> Source:
        def load() -> Picture:
            return fit_image(read_image(path), height, width)

        facts = path.stat()
        name = shown_name(path.relative_to(folder))
        return Source(name, f"{shown_name(path)}:{facts.st_size}:{facts.st_mtime_ns}", load)

    return [source(path) for path in found.files]


def prompt_sources(
    pipe: Any, prompts: Sequence[str], height: int, width: int, *, seed: int, settings: Mapping[str, Any]
) -> list[Source]:
    """One picture a prompt, drawn by the (unguarded) pipeline itself; equal prompts count once."""

    def source(number: int, prompt: str) -> Source:
        def load() -> Picture:
            generator = torch.Generator().manual_seed(seed + number)
            with without_safety_checker(pipe):
                output = pipe(prompt, height=height, width=width, generator=generator, **settings)
            picture = output.images[0] if hasattr(output, "images") else _first_frame(output.frames[0])
            return fit_image(picture, height, width)

        return Source(prompt, f"{prompt}:{seed + number}:{sorted(settings.items())}", load)

    return [source(number, prompt) for number, prompt in enumerate(dict.fromkeys(prompts))]


def _first_frame(frames: Any) -> Image.Image:
    frame = frames[0]
    return (
        frame if isinstance(frame, Image.Image) else Image.fromarray((np.asarray(frame) * 255).round().astype(np.uint8))
    )


def build_negation_set(
    vae: Any,
    sources: Mapping[str, Sequence[Source]],
    out: Path,
    *,
    facts: Mapping[str, Any],
    batch: int = 8,
    advance: Callable[[int], None] = lambda count: None,
) -> BuildReport:
    """Encode `sources` ("references", and optionally "benign") into the file `out`; resumes in `<out>.work`."""
    work = out.with_name(out.name + ".work")
    shift, scale = latent_constants(vae)
    facts = {**facts, "vae": vae_fingerprint(vae), "shift": list(shift), "scale": list(scale)}
    keys = hashlib.sha256("\n".join(s.key for name in PARTS for s in sources.get(name, ())).encode()).hexdigest()
    plan = json.dumps({"facts": facts, "keys": keys, "batch": batch})
    known = work / "plan.json"
    if known.is_file() and known.read_text(encoding="utf-8") != plan:
        raise GuardConfigError(f"{work} is left from other pictures or settings; remove it, or choose another --out.")
    work.mkdir(parents=True, exist_ok=True)
    write_text(known, plan)
    report = BuildReport()
    shards: dict[str, list[Path]] = {}
    for part in PARTS:
        shards[part] = _encode_part(vae, part, sources.get(part, ()), work, batch, report, advance)
    if not shards["references"]:
        reasons = f" ({len(report.skipped)} pictures could not be read)" if report.skipped else ""
        shutil.rmtree(work)  # nothing in it is worth going on from
        raise GuardConfigError(f"the negation set is empty{reasons}; give it at least one reference image.")
    with replacing(out) as temporary:
        _write(temporary, shards, facts)
    shutil.rmtree(work)
    return report


def _encode_part(
    vae: Any,
    part: str,
    sources: Sequence[Source],
    work: Path,
    batch: int,
    report: BuildReport,
    advance: Callable[[int], None],
) -> list[Path]:
    """Shards of one part, those of an earlier try included."""
    seen: set[str] = set()
    shards = []
    for number, start in enumerate(range(0, len(sources), batch)):
        chosen = sources[start : start + batch]
        shard, record_file = work / f"{part}-{number:06d}.safetensors", work / f"{part}-{number:06d}.json"
        if not record_file.is_file():  # written last
            record = _encode_batch(vae, chosen, shard, seen)
            write_text(record_file, json.dumps(record))
        record = json.loads(record_file.read_text(encoding="utf-8"))
        seen.update(record["digests"])
        report.duplicates += record["duplicates"]
        report.skipped.update(record["skipped"])
        count = len(record["digests"])
        setattr(report, part, getattr(report, part) + count)
        if count:
            shards.append(shard)
        advance(len(chosen))
    return shards


def _encode_batch(vae: Any, sources: Sequence[Source], shard: Path, seen: set[str]) -> dict[str, Any]:
    pictures: dict[str, Picture] = {}
    skipped: dict[str, str] = {}
    duplicates = 0
    for source in sources:
        try:
            picture = source.load()
        except ImageFileError as error:
            skipped[source.name] = error.reason
            continue
        digest = hashlib.sha256(picture.tobytes()).hexdigest()
        duplicates += digest in seen or digest in pictures
        if digest not in seen:
            pictures[digest] = picture
    if pictures:
        latents = encode_images(vae, list(pictures.values()))
        if not bool(torch.isfinite(latents).all()):
            raise GuardConfigError(f"the VAE made latents of {sources[0].name!r} or near it that are not finite.")
        save_tensors({"latents": latents.contiguous()}, shard)
    return {"digests": list(pictures), "duplicates": duplicates, "skipped": skipped}


def _latents(shards: Sequence[Path]) -> Iterator[Tensor]:
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            yield file.get_tensor("latents")


def _write(path: Path, shards: Mapping[str, Sequence[Path]], facts: Mapping[str, Any]) -> None:
    """The file of `bank.py`, block by block: rows first with their norms, calibration over the finished rows last."""
    counts: dict[str, int] = dict.fromkeys(PARTS, 0)
    total: Tensor | None = None
    for part in PARTS:
        for latents in _latents(shards[part]):
            counts[part] += len(latents)
            if part == "references":
                total = latents.double().sum(dim=0) + (0 if total is None else total)
    assert total is not None
    centre = (total / counts["references"]).float()
    writer = SetWriter(path, tuple(centre.shape), counts["references"], counts["benign"], facts)
    writer.put("centre", centre)
    for part, prefix in zip(PARTS, ("", "benign_"), strict=True):
        at = 0
        for latents in _latents(shards[part]):
            writer.put_rows(prefix, at, latents - centre)
            at += len(latents)
    writer.calibrate()


class SetWriter:
    """Writes a negation set of known size without holding it: the safetensors header first, then any tensor in any order."""

    def __init__(
        self, path: Path, shape: tuple[int, ...], count: int, benign: int = 0, facts: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {"centre": ("F32", shape)}
        for name in Calibration.NAMES:
            tensors[name] = ("F32", (1,) if name == "radius" else (len(GRID),))
        for prefix, rows in (("", count), ("benign_", benign)):
            if rows:
                tensors[f"{prefix}norms"] = ("F32", (rows,))
                tensors[f"{prefix}rows"] = ("F16", (rows, *shape))
        header: dict[str, Any] = {"__metadata__": header_facts(facts or {})}
        end = 0
        for name, (kind, size) in tensors.items():
            start, end = end, end + int(np.prod(size)) * (4 if kind == "F32" else 2)
            header[name] = {"dtype": kind, "shape": list(size), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._base = 8 + len(text)
        self._offsets = {name: header[name]["data_offsets"][0] for name in tensors}
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(self._base + end)

    def put(self, name: str, values: Tensor, skip: int = 0) -> None:
        """Write `values` (float32, rows float16) into a tensor, `skip` bytes from its start."""
        with open(self.path, "r+b") as file:
            file.seek(self._base + self._offsets[name] + skip)
            file.write(values.contiguous().numpy().tobytes())

    def put_rows(self, prefix: str, at: int, rows: Tensor) -> None:
        """Centred rows (m, ...) from index `at` on, with the norms of what float16 keeps of them."""
        kept = rows.half()
        if not bool(torch.isfinite(kept).all()):
            raise GuardConfigError("a reference latent is too large for float16; check the pictures and the VAE.")
        self.put(f"{prefix}rows", kept, at * kept[0].numel() * 2)
        self.put(f"{prefix}norms", kept.float().flatten(1).square().sum(dim=1), at * 4)

    def calibrate(self) -> None:
        """Calibrate over the rows now in the file, and write the result beside them."""
        placeholder = Calibration(torch.tensor(GRID), torch.zeros(len(GRID)), torch.zeros(len(GRID)), float("nan"))
        for name, value in placeholder.tensors().items():
            self.put(name, value)
        found = calibrate(NegationSet.open(self.path).references)
        for name, value in found.tensors().items():
            self.put(name, value)
