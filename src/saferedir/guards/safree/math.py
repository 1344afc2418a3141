"""The mathematics of SAFREE as pure functions: projections, triggers, the self-validating filter, latent re-attention.

Implements docs/methods/safree.md (1) to (8); the guard around it is guard.py.
Symbols of arXiv:2410.12761: K concept phrases, their pooled embeddings C (K, d); M (n,
d) the pooled embeddings of n copies of a prompt, copy i with token i masked; T (L, d) token states; P_C, P_I orthogonal
projectors on the row spans of C and M, kept as orthonormal bases V (d, r) with P = V V^T, never d x d.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from saferedir.utils.device import is_readable

#: what the phrases are about -> (k, t0) of the filter's length
CALIBRATIONS = {"general": (2.5, 5.333), "artists": (3.5, 5.5)}
LONGEST = 10.0  # gamma
REFERENCE_STEPS = 50


def basis(rows: Tensor, tolerance: float) -> Tensor:
    """V (d, r) of the row span of rows (n, d); singular values up to `tolerance` times the largest are noise."""
    _, values, directions = torch.linalg.svd(rows.float(), full_matrices=False)
    kept: Tensor = directions[values > tolerance * values[:1]].mT
    return kept


def gram_tolerance(rows: int) -> float:
    """The tolerance at which `basis` is the authors' pseudo-inverse of a Gram matrix (rows, rows) in float32."""
    return math.sqrt(rows * torch.finfo(torch.float32).eps)


def onto(x: Tensor, v: Tensor) -> Tensor:
    """P x for each vector of x (..., d)."""
    return (x @ v) @ v.mT


def away(x: Tensor, v: Tensor) -> Tensor:
    """(I - P) x for each vector of x (..., d)."""
    return x - onto(x, v)


def triggers(masked: Tensor, concept: Tensor, margin: float) -> Tensor:
    """(n,) bool for M (n, d): D_i >= (1 + margin) mean_{j != i} D_j, where D_i = |(I - P_C) M_i|. An only token is one."""
    if len(masked) == 1:
        return torch.full((1,), margin < math.inf, device=masked.device)
    distance = torch.linalg.vector_norm(away(masked, concept), dim=1)
    others = (distance.sum() - distance) / (len(distance) - 1)
    is_trigger: Tensor = distance >= (1 + margin) * others
    return is_trigger


def filtered(states: Tensor, concept: Tensor, prompt_basis: Tensor | None, order: str) -> Tensor:
    """New (..., d) of T: (I - P_C) P_I T in the order of the code, P_I (I - P_C) T in the paper's; (I - P_C) T without P_I."""
    if prompt_basis is None:
        return away(states, concept)
    return away(onto(states, prompt_basis), concept) if order == "code" else onto(away(states, concept), prompt_basis)


def strength(states: Tensor, new: Tensor, attended: Tensor) -> Tensor:
    """b (): 1 - the mean cosine between T and New over the attended tokens (L,)."""
    cosine = F.cosine_similarity(states, new, dim=-1)
    if is_readable(attended):
        return 1 - cosine[attended].mean()
    return 1 - torch.where(attended, cosine, 0.0).sum() / attended.sum()


def last_step(b: Tensor, calibration: str) -> Tensor:
    """t' of the authors' code: round(gamma sigmoid(2 k (10 b - t0))), a step of 50."""
    k, t0 = CALIBRATIONS[calibration]
    return (LONGEST * torch.sigmoid(2 * k * (10 * b - t0))).round()


def last_step_paper(pooled: Tensor, new: Tensor) -> Tensor:
    """t' of the paper: round(gamma sigmoid(1 - cos)) between the prompt's pooled embedding (..., d) and its projection."""
    return (LONGEST * torch.sigmoid(1 - F.cosine_similarity(pooled, new, dim=-1))).round()


def is_filtered(index: int, num_steps: int, last: Tensor, faithful: bool) -> Tensor:
    """(B,) bool: whether step `index` of the run is filtered, for t' (B,); -1 stands for never, infinity for always.

    Steps 0..t' of 50, in proportion for other numbers of steps, and none if t' = 0. Faithful: 0..t' of any number.
    """
    if faithful:
        return index <= last
    return (last > 0) & (index * REFERENCE_STEPS < (last + 1) * num_steps)


def damped(skip: Tensor, reference: Tensor, factor: float) -> Tensor:
    """Latent re-attention on skip features (B, C, h, w) of the filtered rows, beside those of the unfiltered `reference`.

    Of the centred 2 x 2 lowest frequencies those coefficients that have the greater magnitude than the reference's are
    multiplied by `factor`; what nothing is taken from keeps every bit.
    """
    wide = skip.float()
    mine, theirs = torch.fft.fft2(wide), torch.fft.fft2(reference.float())
    low = torch.zeros(skip.shape[-2:], dtype=torch.bool, device=skip.device)
    for row in (0, -1):
        for column in (0, -1):
            low[row, column] = True
    excess = torch.where(low & (mine.abs() > theirs.abs()), (1 - factor) * mine, 0.0)
    result: Tensor = (wide - torch.fft.ifft2(excess).real).to(skip.dtype)
    return result
