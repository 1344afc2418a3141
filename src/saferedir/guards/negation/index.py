"""An approximate index over a huge negation set: pick k candidates a row, then weigh those exactly.

Optional: needs faiss (`pip install 'saferedir[index]'`). Imports `engine`, `bank`, `kernels`, errors. Valid only while the
kernel's effective sample size is far below k, because everything else is taken for zero, in the gate's score too.
The index holds product-quantised codes (some 64 bytes a reference), so that a set beyond memory stays in its file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saferedir.errors import GuardConfigError, GuardError
from saferedir.guards.negation.bank import ReferenceRows
from saferedir.guards.negation.engine import Attention, Block, attend
from saferedir.guards.negation.kernels import Query

#: references that the quantisers are fitted on
TRAIN_ON = 65536


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
        """Fit and fill an index in one pass over the set, block by block; `probes` of its `lists` are searched."""
        faiss = _faiss()
        count, dim = len(references), references.centre.numel()
        lists = lists or max(1, min(4096, int(4 * math.sqrt(count)), count // 40))
        codes = next((m for m in (64, 32, 16, 8, 4, 2) if dim % m == 0), 1)
        kind = f"IVF{lists},PQ{codes}" if count >= 4 * TRAIN_ON // 64 else f"IVF{lists},Flat"
        index = faiss.index_factory(dim, kind)
        chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:TRAIN_ON].sort().values
        index.train(references.pick(chosen).rows.float().cpu().numpy())
        for block in references.blocks():
            index.add(block.rows.float().cpu().numpy())
        index.nprobe = min(probes, lists)
        return cls(index, references)

    @classmethod
    def open(cls, path: str | Path, references: ReferenceRows) -> CandidateIndex:
        """Read an index that `save` wrote."""
        if not Path(path).is_file():
            raise GuardConfigError(f"there is no index {path}; build it with CandidateIndex.build(...).save(path).")
        return cls(_faiss().read_index(str(path)), references)

    def save(self, path: str | Path) -> None:
        """Write the index; the rows stay in the set's file."""
        _faiss().write_index(self.index, str(path))

    def search(self, points: Tensor, count: int) -> Tensor:
        """(B, count) indices of the nearest references of points (B, D); -1 where fewer were found."""
        centred = (points - self.references.centre.to(points)).detach().float().cpu().numpy()
        _, found = self.index.search(centred, min(count, len(self.references)))
        return torch.from_numpy(found)


def attend_near(query: Query, points: Tensor, index: CandidateIndex, count: int) -> Attention:
    """`engine.attend` over the `count` references nearest to each row's point (B, D); a row sees its own candidates only.

    For the Gaussian kernel of x_t the point is x_t / alpha: the order of distances is that of the logits.
    """
    found = index.search(points, count)
    if bool((found < 0).all(dim=1).any()):
        raise GuardError("the index found no reference near an image; build it again with more probes.")
    union, places = torch.unique(found.clamp(min=0), return_inverse=True)
    own = torch.zeros(len(found), len(union), dtype=torch.bool).scatter_(1, places, True)
    own = own.to(query.centred.device)

    def logits(products: Tensor, norms: Tensor) -> Tensor:
        return query.logits(products, norms).masked_fill(~own, -torch.inf)

    block = index.references.pick(union)
    return attend(query._replace(logits=logits), Shortlist(block, index.references.centre))


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise GuardError(
            "an approximate index needs faiss; install it with `pip install 'saferedir[index]'`."
        ) from error
    return faiss
