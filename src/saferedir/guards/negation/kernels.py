"""Kernels over a negation set: how near is a noisy latent to each reference, as logits. Pure functions; imports torch only.

Every kernel is a function of inner products with the *centred* references, so that no difference x - r is ever formed:
Implements docs/methods/safe_denoiser.md (2), (9) and (12):
with r = c + r~ and q = x - alpha c,  ||x - alpha r||^2 = ||q||^2 - 2 alpha q.r~ + alpha^2 ||r~||^2.
Shapes: x, x0 (B, D); c (D,); products (B, m); norms (m,); alpha, sigma, kappa, width are numbers, the same for all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Query(NamedTuple):
    """One batch of questions to a negation set.

    centred (B, D): q, to be multiplied with the centred references. logits(products (B, m), norms (m,)) -> (B, m): up to a
    constant per row, which is `offset` (B,): with it log-sum-exp is the score itself.
    """

    centred: Tensor
    logits: Callable[[Tensor, Tensor], Tensor]
    offset: Tensor


def gaussian_xt(x: Tensor, centre: Tensor, alpha: float, sigma: float, kappa: float = 1.0) -> Query:
    """l_n = -kappa ||x - alpha r_n||^2 / (2 sigma^2): the forward process' own kernel, tempered by kappa.

    Only alpha/sigma and x/sigma matter, so VP, k-space and flow frames need no conversion.
    """
    q = torch.sub(x, centre, alpha=alpha)
    rate = kappa / sigma**2

    def logits(products: Tensor, norms: Tensor) -> Tensor:
        return (products * (rate * alpha)).sub(norms, alpha=0.5 * rate * alpha**2)

    return Query(q, logits, q.square().sum(dim=1) * (-0.5 * rate))


def gaussian_x0(x0: Tensor, centre: Tensor, width: float) -> Query:
    """l_n = -||x0 - r_n||^2 / (2 width^2)."""
    return gaussian_xt(x0, centre, 1.0, width)


def laplace_x0(x0: Tensor, centre: Tensor, width: float) -> Query:
    """l_n = -||x0 - r_n|| / (2 width^2), unsquared distance: the kernel of the released code."""
    q = x0 - centre
    square = q.square().sum(dim=1, keepdim=True)

    def logits(products: Tensor, norms: Tensor) -> Tensor:
        return -distances(square, products, norms) / (2 * width**2)

    return Query(q, logits, torch.zeros_like(square.squeeze(1)))


def distances(square: Tensor, products: Tensor, norms: Tensor) -> Tensor:
    """||q - r~_n|| from ||q||^2 (B, 1), q.r~_n (B, m) and ||r~_n||^2 (m,). Small distances lose digits here."""
    tiny = torch.finfo(square.dtype).tiny
    return (square - 2 * products + norms).clamp(min=tiny).sqrt()
