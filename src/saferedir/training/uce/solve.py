"""The closed form of UCE, and the two factors of a LoRA that carry it.

Implements Sec. 4 of "Unified Concept Editing in Diffusion Models" (arXiv:2308.14761): docs/methods/uce.md (3) to (5). Pure
functions in float64. Shapes: a linear layer W (out, in); inputs c (E, in) to be erased, with the inputs t (E, in) that they
are to be projected as; inputs p (P, in) to be preserved; weights s_e (E,) and s_p (P,).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Sums(NamedTuple):
    """What the closed form needs of all inputs: pull (in, in), the sum of s_e (t - c) c^T, and gram (in, in), that of s c c^T."""

    pull: Tensor
    gram: Tensor

    @classmethod
    def of(cls, erased: Tensor, targets: Tensor, preserved: Tensor, s_e: Tensor, s_p: Tensor) -> Sums:
        """From inputs and weights as in the module's docstring."""
        c, t, p = erased.double(), targets.double(), preserved.double()
        weighted = c * s_e.double()[:, None]
        return cls((t - c).T @ weighted, c.T @ weighted + p.T @ (p * s_p.double()[:, None]))


def input_edit(sums: Sums, ridge: float) -> Tensor:
    """D (in, in), with which W* = W (I + D): pull (gram + ridge I)^-1. It is the same for all layers with these inputs."""
    size = len(sums.gram)
    regular = sums.gram + ridge * torch.eye(size, dtype=torch.float64)
    edit: Tensor
    if ridge > 0:
        edit = torch.linalg.solve(regular, sums.pull.T).T
    else:
        edit = sums.pull @ torch.linalg.pinv(regular, hermitian=True)
    return edit


def solve(weight: Tensor, sums: Sums, ridge: float) -> Tensor:
    """W* (out, in), float64: the weight that minimises docs/methods/uce.md (3)."""
    w = weight.double()
    return w + w @ input_edit(sums, ridge)


def factors(edit: Tensor, tolerance: float = 1e-9) -> tuple[Tensor, Tensor]:
    """(left (in, r), right (r, in)) with left right = D, r the rank of D (at least 1): a LoRA of B = W left and A = right."""
    u, s, v = torch.linalg.svd(edit)
    rank = max(1, int((s > tolerance * s[0].clamp(min=1e-300)).sum())) if s[0] > 0 else 1
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]
