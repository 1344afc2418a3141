"""ReferenceRows: the references of a negation set, row by row or in blocks, in memory or read from a memory-mapped file.

Used by `bank`, which says what is in the file, and by `index`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from saferedir.guards.negation.engine import BLOCK, MOST_ROWS, Block

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
            rows: Tensor = file.get_slice(self.name)[where]
        return rows


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
        on_cpu = indices.cpu()
        if isinstance(self.rows, Tensor):
            rows = self.rows.flatten(1)[indices.to(self.rows.device)]
        else:
            with safe_open(self.rows.path, framework="pt") as file:
                source = file.get_slice(self.rows.name)
                rows = torch.cat([source[i : i + 1] for i in on_cpu.tolist()]).flatten(1)
        on_device = indices.to(self.norms.device)
        return Block(self._floats(rows.to(self.device), on_device), self.norms[on_device], 0)

    def _floats(self, rows: Tensor, which: slice | Tensor) -> Tensor:
        if rows.dtype != torch.int8 or self.units is None:
            return rows
        return rows.float() * self.units[which, None]

    def to(self, device: torch.device) -> ReferenceRows:
        """These rows on `device`; streamed rows go there block by block."""
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


def kept(latents: Tensor, centre: Tensor, dtype: torch.dtype) -> ReferenceRows:
    """Latents (M, C, h, w) as references around `centre` (D,), rows in `dtype`; int8: 8-bit rows."""
    rows, units = latents.float().flatten(1) - centre, None
    if dtype == torch.int8:
        units = (rows.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        rows = (rows / units[:, None]).round().to(torch.int8)
        norms = (rows.float() * units[:, None]).square().sum(dim=1)
    else:
        rows = rows.to(dtype)
        norms = rows.float().square().sum(dim=1)
    return in_memory(ReferenceRows(rows, norms, centre, centre.device, units))


def in_memory(part: ReferenceRows) -> ReferenceRows:
    """References as float32 if they are in memory and few, else as they are."""
    if not isinstance(part.rows, Tensor) or part.rows.numel() * 4 > AS_FLOAT32:
        return part
    rows = part.rows.float()
    if part.units is not None:
        rows = rows * part.units.view(-1, *(1,) * (rows.ndim - 1))
    return replace(part, rows=rows)
