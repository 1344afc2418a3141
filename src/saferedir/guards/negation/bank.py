"""NegationSet: reference latents of images that must not appear, in memory or streamed from a memory-mapped file.

Written by `build.py` and `from_latents`, read by both guards. One safetensors file: rows F16 (M, C, h, w) less their
mean, centre F32 (C, h, w), norms F32 (M,), the same of optional benign references, calibration; facts about encoder and
size in the header. A latent is (z - shift) * scale, as the sampler has it. Rows may be I8 instead, with units F32 (M,):
half the size, each value rounded to 1/127 of the largest of its row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saferedir.errors import GuardConfigError, GuardError, GuardNotFoundError
from saferedir.guards.negation.calibration import KernelCalibration, calibrate
from saferedir.guards.negation.reference_rows import FileRows, ReferenceRows, in_memory, kept
from saferedir.utils.files import save_tensors

FORMAT = "saferedir negation set 1"
#: a larger set stays on disk, and is not copied into a guard's folder
IN_MEMORY = 256 * 1024**2


@dataclass(frozen=True)
class NegationSet:
    """References and, for the gate, optional benign ones with the same centre.

    `shape` (C, h, w) of one latent; `facts`: "vae" (hash of encoder and its constants), "height", "width", "sources", ….
    """

    shape: tuple[int, ...]
    references: ReferenceRows
    benign: ReferenceRows | None
    calibration: KernelCalibration
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
        references = kept(latents, centre, dtype)
        safe = None if benign is None or not len(benign) else kept(benign, centre, dtype)
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
        """This set on `device`; itself if it is there already."""
        if self.references.device == device:
            return self
        benign = None if self.benign is None else self.benign.to(device)
        return replace(self, references=self.references.to(device), benign=benign)

    def require_shape(self, shape: tuple[int, ...]) -> None:
        """Raise unless latents of this shape (C, h, w) can be compared with the set's."""
        has_other_frames = len(shape) == len(self.shape) == 4 and shape[1] != self.shape[1]
        if has_other_frames and (shape[0], *shape[2:]) == (self.shape[0], *self.shape[2:]):
            what = "single images (num_frames=1)" if self.shape[1] == 1 else "videos of that length"
            raise GuardError(
                f"the negation set holds latents of {self.shape[1]} frames in time, but this run's have {shape[1]}, and frames "
                f"of videos are encoded otherwise than images; generate {what}, or make a set of videos' latents of this "
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
        tensors: dict[str, Tensor] = {"centre": self.references.centre.view(self.shape).float()}
        for name, part in (("", self.references), ("benign_", self.benign)):
            if part is not None:
                tensors |= {f"{name}{key}": value for key, value in part.tensors().items()}
                tensors[f"{name}rows"] = tensors[f"{name}rows"].view(-1, *self.shape)
        return tensors | self.calibration.tensors()

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor | FileRows], facts: Mapping[str, Any] | None = None) -> Self:
        """Inverse of `tensors`; checks names, shapes and values."""
        needed = {"centre", "rows", "norms", *KernelCalibration.NAMES}
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
            is_int = isinstance(rows, Tensor) and not rows.is_floating_point()
            do_fit = tuple(rows.shape) == (len(norms), *shape) and (units is None or units.shape == norms.shape)
            if not do_fit or (is_int and units is None) or not bool(torch.isfinite(norms).all()):
                raise GuardConfigError(
                    "the negation set's tensors do not fit each other or are not finite; build it again."
                )
            if not len(norms):
                raise GuardConfigError("the negation set is empty; give it at least one reference image.")
            parts.append(in_memory(ReferenceRows(rows, norms, centre.flatten(), units=units)))
        assert parts[0] is not None
        return cls(shape, parts[0], parts[1], KernelCalibration.from_tensors(small), dict(facts or {}))

    def save(self, path: str | Path) -> Path:
        """Write the set as one safetensors file, through a temporary sibling."""
        path = Path(path).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {name: value.detach().cpu().contiguous() for name, value in self.tensors().items()}
        save_tensors(values, path, header_facts(self.facts))
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
