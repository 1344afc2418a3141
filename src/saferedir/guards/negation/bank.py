"""NegationSet: reference latents of images that must not appear, in memory or streamed from a memory-mapped file.

Imports torch, safetensors, `engine`, `calibration`, `errors`. Written by `build.py` and `from_latents`, read by both guards.
One safetensors file: rows F16 (M, C, h, w) less their mean, centre F32 (C, h, w), norms F32 (M,), the same of optional benign
references, calibration; facts about encoder and size in the header. A latent is (z - shift) * scale, as the sampler has it.
Rows may be I8 instead, with units F32 (M,): half the size, each value rounded to 1/127 of the largest of its row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saferedir.errors import GuardConfigError, GuardError, GuardNotFoundError
from saferedir.guards.negation.calibration import Calibration, calibrate
from saferedir.guards.negation.engine import BLOCK, MOST_ROWS, Block

FORMAT = "saferedir negation set 1"
#: a larger set stays on disk, and is not copied into a guard's folder
IN_MEMORY = 256 * 1024**2
#: up to this size rows are kept as float32, which saves converting them at every step
AS_FLOAT32 = 64 * 1024**2
#: blocks read from a file at a time; the mapping is dropped after them, and with it the pages it holds
READ_AHEAD = 8
CPU = torch.device("cpu")


@dataclass(frozen=True)
class FileRows:
    """Rows (M, ...) of one tensor in a safetensors file, read slice by slice."""

    path: Path
    name: str
    shape: tuple[int, ...]

    def __getitem__(self, where: slice) -> Tensor:
        with safe_open(self.path, framework="pt") as file:
            found: Tensor = file.get_slice(self.name)[where]
        return found


@dataclass(frozen=True)
class ReferenceRows:
    """References as the engine takes them: rows (M, ...) centred, norms (M,), centre (D,).

    units (M,): what 1 stands for in a row of 8-bit numbers. Rows in memory may have been converted; they are saved as such again.
    """

    rows: Tensor | FileRows
    norms: Tensor
    centre: Tensor
    device: torch.device = CPU
    units: Tensor | None = None

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    def blocks(self) -> Iterable[Block]:
        """All rows in order, some 4 MB (as float32) at a time."""
        is_held = isinstance(self.rows, Tensor) and self.rows.dtype != torch.int8
        return self._held if is_held else self._cut()

    @cached_property
    def _held(self) -> tuple[Block, ...]:
        """Views of rows in memory, which need not be cut anew at every step."""
        return tuple(self._cut())

    def _cut(self) -> Iterator[Block]:
        size = min(MOST_ROWS, max(1, BLOCK // self.centre.numel()))
        stride = size * READ_AHEAD if isinstance(self.rows, FileRows) else len(self)
        for first in range(0, len(self), stride):
            part = self.rows[first : min(first + stride, len(self))].flatten(1)
            for start in range(0, len(part), size):
                at = first + start
                rows = self._floats(part[start : start + size].to(self.device), slice(at, at + size))
                yield Block(rows, self.norms[at : at + len(rows)], at)
            del part

    def pick(self, indices: Tensor) -> Block:
        """The rows of these indices (k,), in their order, whatever way the set is kept."""
        places = indices.cpu()
        if isinstance(self.rows, Tensor):
            rows = self.rows.flatten(1)[indices.to(self.rows.device)]
        else:
            with safe_open(self.rows.path, framework="pt") as file:
                source = file.get_slice(self.rows.name)
                rows = torch.cat([source[i : i + 1] for i in places.tolist()]).flatten(1)
        own = indices.to(self.norms.device)
        return Block(self._floats(rows.to(self.device), own), self.norms[own], 0)

    def _floats(self, rows: Tensor, which: slice | Tensor) -> Tensor:
        if rows.dtype != torch.int8 or self.units is None:
            return rows
        return rows.float() * self.units[which, None]

    def to(self, device: torch.device) -> ReferenceRows:
        """The same on `device`; streamed rows go there block by block."""
        rows = self.rows if isinstance(self.rows, FileRows) else self.rows.to(device)
        units = None if self.units is None else self.units.to(device)
        return ReferenceRows(rows, self.norms.to(device), self.centre.to(device), device, units)

    def tensors(self) -> dict[str, Tensor]:
        """By the names of the file format; rows as float16, or as the 8-bit numbers they were made from."""
        rows = self.rows if isinstance(self.rows, Tensor) else self.rows[:]
        if self.units is None:
            return {"rows": rows.half(), "norms": self.norms.float()}
        if rows.dtype != torch.int8:
            rows = (rows.flatten(1) / self.units[:, None]).round().to(torch.int8)
        return {"rows": rows, "norms": self.norms.float(), "units": self.units}


@dataclass(frozen=True)
class NegationSet:
    """References and, for the gate, optional benign ones with the same centre.

    `shape` (C, h, w) of one latent; `facts`: "vae" (hash of encoder and its constants), "height", "width", "sources", ….
    """

    shape: tuple[int, ...]
    references: ReferenceRows
    benign: ReferenceRows | None
    calibration: Calibration
    facts: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.references)

    @property
    def is_streamed(self) -> bool:
        """Whether the rows stay in their file."""
        return isinstance(self.references.rows, FileRows)

    @classmethod
    def from_latents(
        cls,
        latents: Tensor,
        benign: Tensor | None = None,
        facts: Mapping[str, Any] | None = None,
        *,
        dtype: torch.dtype = torch.float16,
    ) -> Self:
        """A calibrated set in memory from latents (M, C, h, w) in the sampler's frame, kept in `dtype`; int8: 8-bit rows."""
        require_latents(latents)
        shape = tuple(latents.shape[1:])
        if benign is not None and tuple(benign.shape[1:]) != shape:
            raise GuardConfigError(f"benign latents {tuple(benign.shape[1:])} differ in shape from the set's {shape}.")
        centre = latents.float().mean(dim=0).flatten()
        references = _kept(latents, centre, dtype)
        safe = None if benign is None or not len(benign) else _kept(benign, centre, dtype)
        return cls(shape, references, safe, calibrate(references), dict(facts or {}))

    def latents(self) -> Tensor:
        """(M, C, h, w) float32: the references as they were encoded, all in memory."""
        blocks = [block.rows.float() for block in self.references.blocks()]
        return (torch.cat(blocks) + self.references.centre.float()).view(len(self), *self.shape)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> NegationSet:
        """Another set whose latents are `function` of these, in memory; without benign references."""
        if self.is_streamed:
            raise GuardError("this works with sets in memory only; use fewer references, or a guard in default mode.")
        return NegationSet.from_latents(function(self.latents()), facts=self.facts, dtype=torch.float32)

    def to(self, device: torch.device) -> NegationSet:
        """The same on `device`; itself if it is there already."""
        if self.references.device == device:
            return self
        benign = None if self.benign is None else self.benign.to(device)
        return replace(self, references=self.references.to(device), benign=benign)

    def require_shape(self, shape: tuple[int, ...]) -> None:
        """Raise unless latents of this shape (C, h, w) can be compared with the set's."""
        has_other_frames = len(shape) == len(self.shape) == 4 and shape[1] != self.shape[1]
        if has_other_frames and (shape[0], *shape[2:]) == (self.shape[0], *self.shape[2:]):
            what = "single pictures (num_frames=1)" if self.shape[1] == 1 else "videos of that length"
            raise GuardError(
                f"the negation set holds latents of {self.shape[1]} frames in time, but this run's have {shape[1]}, and frames "
                f"of videos are encoded otherwise than pictures; generate {what}, or make a set of videos' latents of this "
                "length with NegationSet.from_latents."
            )
        if shape != self.shape:
            size = f" of {self.facts['height']}x{self.facts['width']} px images" if "height" in self.facts else ""
            raise GuardError(
                f"the negation set holds latents {self.shape}{size}, but this run's are {shape}; generate at that size, or "
                "build a set for this one with `saferedir negation build --height … --width …`."
            )

    def tensors(self) -> dict[str, Tensor]:
        """Everything but the facts, by the names of the file format."""
        found: dict[str, Tensor] = {"centre": self.references.centre.view(self.shape).float()}
        for name, part in (("", self.references), ("benign_", self.benign)):
            if part is not None:
                found |= {f"{name}{key}": value for key, value in part.tensors().items()}
                found[f"{name}rows"] = found[f"{name}rows"].view(-1, *self.shape)
        return found | self.calibration.tensors()

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor | FileRows], facts: Mapping[str, Any] | None = None) -> Self:
        """Inverse of `tensors`; checks names, shapes and values."""
        needed = {"centre", "rows", "norms", *Calibration.NAMES}
        known = needed | {"units", "benign_rows", "benign_norms", "benign_units"}
        if not needed <= set(tensors) <= known:
            raise GuardConfigError(
                f"this is no negation set: it has {', '.join(sorted(tensors)) or 'nothing'}; build it again."
            )
        small = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
        centre, shape = small["centre"].float(), tuple(small["centre"].shape)
        parts: list[ReferenceRows | None] = []
        for name in ("", "benign_"):
            rows = tensors.get(f"{name}rows")
            if rows is None:
                parts.append(None)
                continue
            norms, units = small[f"{name}norms"].float(), small.get(f"{name}units")
            is_whole = isinstance(rows, Tensor) and not rows.is_floating_point()
            do_fit = tuple(rows.shape) == (len(norms), *shape) and (units is None or units.shape == norms.shape)
            if not do_fit or (is_whole and units is None) or not bool(torch.isfinite(norms).all()):
                raise GuardConfigError(
                    "the negation set's tensors do not fit each other or are not finite; build it again."
                )
            if not len(norms):
                raise GuardConfigError("the negation set is empty; give it at least one reference image.")
            parts.append(_in_memory(ReferenceRows(rows, norms, centre.flatten(), units=units)))
        assert parts[0] is not None
        return cls(shape, parts[0], parts[1], Calibration.from_tensors(small), dict(facts or {}))

    def save(self, path: str | Path) -> Path:
        """Write the set as one safetensors file, through a temporary sibling."""
        path = Path(path).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            values = {name: value.detach().cpu().contiguous() for name, value in self.tensors().items()}
            save_file(values, temporary, metadata=header_facts(self.facts))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    @classmethod
    def open(cls, path: str | Path, *, stream: bool | None = None) -> Self:
        """Read a set; `stream` leaves the rows in the file (default: if they are larger than `IN_MEMORY`)."""
        path = Path(path).expanduser().absolute()
        if not path.is_file():
            raise GuardNotFoundError(f"there is no negation set {path}; make one with `saferedir negation build`.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise GuardConfigError(f"{path} is no negation set; make one with `saferedir negation build`.")
                tensors: dict[str, Tensor | FileRows] = {}
                is_streamed = path.stat().st_size > IN_MEMORY if stream is None else stream
                for name in file.keys():
                    if is_streamed and name.endswith("rows"):
                        tensors[name] = FileRows(path, name, tuple(file.get_slice(name).get_shape()))
                    else:
                        tensors[name] = file.get_tensor(name)
                facts = json.loads(metadata.get("facts", "{}"))
        except (SafetensorError, ValueError) as error:
            if isinstance(error, GuardError):
                raise
            raise GuardConfigError(f"{path} is damaged ({error}); build the negation set again.") from error
        return cls.from_tensors(tensors, facts)


def require_latents(latents: Tensor) -> None:
    """Raise unless there is at least one latent and all are finite numbers."""
    if not len(latents):
        raise GuardConfigError("the negation set is empty; give it at least one reference image.")
    if not bool(torch.isfinite(latents).all()):
        raise GuardConfigError("a reference latent is not finite; check the images and encode in float32.")


def header_facts(facts: Mapping[str, Any]) -> dict[str, str]:
    """The file's metadata."""
    return {"format": FORMAT, "facts": json.dumps(dict(facts), allow_nan=False, ensure_ascii=False)}


def _kept(latents: Tensor, centre: Tensor, dtype: torch.dtype) -> ReferenceRows:
    rows, units = latents.float().flatten(1) - centre, None
    if dtype == torch.int8:
        units = (rows.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        rows = (rows / units[:, None]).round().to(torch.int8)
        norms = (rows.float() * units[:, None]).square().sum(dim=1)
    else:
        rows = rows.to(dtype)
        norms = rows.float().square().sum(dim=1)
    return _in_memory(ReferenceRows(rows, norms, centre, centre.device, units))


def _in_memory(part: ReferenceRows) -> ReferenceRows:
    """The same, as float32 if it is in memory and small."""
    if not isinstance(part.rows, Tensor) or part.rows.numel() * 4 > AS_FLOAT32:
        return part
    rows = part.rows.float()
    if part.units is not None:
        rows = rows * part.units.view(-1, *(1,) * (rows.ndim - 1))
    return replace(part, rows=rows)
