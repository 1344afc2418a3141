"""An approximate index over a huge negation set: pick k candidates a row, then weigh those exactly.

Optional: needs faiss (`pip install 'saferedir[index]'`). Valid only while the kernel's effective sample size is far
below k, because everything else is taken for zero, in the gate's score too. The index holds product-quantised codes
(some 64 bytes a reference), so that a set beyond memory stays in its file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saferedir.errors import GuardConfigError, GuardError
from saferedir.guards.negation.engine import Attention, Block, attend
from saferedir.guards.negation.kernels import Query
from saferedir.guards.negation.reference_rows import ReferenceRows

#: references that the quantisers are fitted on, at most so many and so many bytes as float32
TRAIN_ON = 65536
TRAIN_BYTES = 512 * 1024**2
#: the entries of a codebook, which no fewer references can fill
LEAST = 256
#: first line of an index file, before the identity of the set
HEADER = "saferedir index 1 "


@dataclass(frozen=True)
class Shortlist:
    """References as the engine takes them: a few rows of a set, in one block."""

    block: Block
    centre: Tensor

    def blocks(self) -> Iterator[Block]:
        yield self.block


class CandidateIndex:
    """Nearest references by Euclidean distance, approximately. `search` takes points (B, D) in the latents' own frame."""

    def __init__(self, index: Any, references: ReferenceRows) -> None:
        if index.ntotal != len(references) or index.d != references.centre.numel():
            raise GuardConfigError(
                f"the index holds {index.ntotal} references of {index.d} numbers, the negation set {len(references)} of "
                f"{references.centre.numel()}; build the index again."
            )
        self.index, self.references = index, references

    @classmethod
    def build(
        cls, references: ReferenceRows, *, lists: int | None = None, probes: int = 32, seed: int = 0
    ) -> CandidateIndex:
        """Fit an index on a random sample and fill it, both block by block; `probes` of its `lists` are searched.

        In memory is the sample, 512 MiB (or 256 references, if that is more), beside the index itself.
        """
        faiss = _faiss()
        count, dim = len(references), references.centre.numel()
        sample = min(count, TRAIN_ON, max(LEAST, TRAIN_BYTES // (4 * dim)))
        lists = lists or max(1, min(4096, int(4 * math.sqrt(count)), count // 40, max(1, sample // 16)))
        if lists > sample:
            raise GuardConfigError(
                f"lists is {lists}; expected at most {sample}, the references that are there to fit them."
            )
        codes = next((m for m in (64, 32, 16, 8, 4, 2) if dim % m == 0), 1)
        kind = f"IVF{lists},PQ{codes}" if count >= 4 * TRAIN_ON // 64 else f"IVF{lists},Flat"
        index = faiss.index_factory(dim, kind)
        chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:sample].sort().values
        index.train(_rows_of(references, chosen).numpy())
        for block in references.blocks():
            index.add(block.rows.float().cpu().numpy())
        index.nprobe = min(probes, lists)
        return cls(index, references)

    @classmethod
    def open(cls, path: str | Path, references: ReferenceRows) -> CandidateIndex:
        """Read an index that `save` wrote for these very references."""
        faiss, path = _faiss(), require_index_file(path)
        with open(path, "rb") as file:
            head, of = file.readline(len(HEADER) + 72).decode("latin-1").rstrip("\n"), identity(references)
            if not head.startswith(HEADER):
                raise GuardConfigError(f"{path} is no index; build it with CandidateIndex.build(...).save(path).")
            if head != HEADER + of:
                raise GuardConfigError(f"the index {path} was built for another negation set; build the index again.")
            data = file.read()
        try:
            index = faiss.deserialize_index(np.frombuffer(data, dtype=np.uint8))
        except RuntimeError as error:
            raise GuardConfigError(f"{path} is damaged; build the index again.") from error
        return cls(index, references)

    def save(self, path: str | Path) -> None:
        """Write the index, with the identity of its set in front; the rows stay in the set's file."""
        with open(path, "wb") as file:
            file.write(f"{HEADER}{identity(self.references)}\n".encode())
            file.write(_faiss().serialize_index(self.index).tobytes())

    def search(self, points: Tensor, count: int) -> Tensor:
        """(B, count) indices of the nearest references of points (B, D); -1 where fewer were found."""
        centred = (points - self.references.centre.to(points)).detach().float().cpu().numpy()
        _, indices = self.index.search(centred, min(count, len(self.references)))
        return torch.from_numpy(indices)


def identity(references: ReferenceRows) -> str:
    """A hash of a set's centre and of its rows' norms, the same in memory, streamed and on every device."""
    parts = (references.centre.float(), references.norms.float())
    return hashlib.sha256(b"".join(part.cpu().contiguous().numpy().tobytes() for part in parts)).hexdigest()


def require_index_file(path: str | Path) -> Path:
    """The path of an index, if there is a file."""
    if not Path(path).is_file():
        raise GuardConfigError(f"there is no index {path}; build it with CandidateIndex.build(...).save(path).")
    return Path(path)


def attend_near(query: Query, points: Tensor, index: CandidateIndex, count: int) -> Attention:
    """`engine.attend` over the `count` references nearest to each row's point (B, D); a row attends to its own candidates only.

    For the Gaussian kernel of x_t the point is x_t / alpha: the order of distances is that of the logits.
    """
    candidates = index.search(points, count)
    if bool((candidates < 0).all(dim=1).any()):
        raise GuardError("the index found no reference near an image; build it again with more probes.")
    union, columns = torch.unique(candidates.clamp(min=0), return_inverse=True)
    is_candidate = torch.zeros(len(candidates), len(union), dtype=torch.bool).scatter_(1, columns, True)
    is_candidate = is_candidate.to(query.centred.device)

    def logits(products: Tensor, norms: Tensor) -> Tensor:
        return query.logits(products, norms).masked_fill(~is_candidate, -torch.inf)

    block = index.references.pick(union)
    return attend(query._replace(logits=logits), Shortlist(block, index.references.centre))


def _rows_of(references: ReferenceRows, chosen: Tensor) -> Tensor:
    """(k, D) float32 on the CPU: the centred rows of these sorted indices, read block by block as the file has them."""
    rows, done = torch.empty(len(chosen), references.centre.numel()), 0
    for block in references.blocks():
        first, after = torch.searchsorted(chosen, torch.tensor([block.start, block.start + len(block.rows)])).tolist()
        if after > first:
            local = (chosen[first:after] - block.start).to(block.rows.device)
            rows[first:after] = block.rows[local].float().cpu()
            done += after - first
    if done != len(chosen):
        raise GuardError(f"only {done} of {len(chosen)} references could be read; build the negation set again.")
    return rows


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise GuardError(
            "an approximate index needs faiss; install it with `pip install 'saferedir[index]'`."
        ) from error
    return faiss
