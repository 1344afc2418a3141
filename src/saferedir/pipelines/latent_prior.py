"""Do latents look like samples of a standard normal? Pure functions of tensors; used by `seam.given_latents`.

Every supported text-to-image pipeline takes `latents` before its scheduler's scaling, and samples N(0, 1) where it is
given none. Three statistics of z (C, ..., h, w) with n values have a known distribution under that null:

    (1)  sum z^2                            ~ chi2(n),      asked on both sides
    (2)  sum over channels of (n / C) mean^2  ~ chi2(C)
    (3)  sum over both axes of (sum z z')^2 / (m (sum z^2 / n)^2)  ~ chi2(2), nearly; z' the neighbour on the axis, m their number

The p-value of a row is three times the smallest of the three (Bonferroni), so that honest noise falls below a with a
probability of at most a.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PriorTest(NamedTuple):
    """What was found in latents, one entry a row; float64.

    Attributes:
        p_value: (B,) in [0, 1]; 0 where the latents are not finite.
        mean_square: (B,), 1 expected.
        channel_mean: (B,) root mean square of the channels' means, 0 expected.
        autocorrelation: (B,) with the next value, the mean of both axes, 0 expected.
    """

    p_value: Tensor
    mean_square: Tensor
    channel_mean: Tensor
    autocorrelation: Tensor


@torch.no_grad()
def prior_test(latents: Tensor) -> PriorTest:
    """Test latents (B, C, ..., h, w) against the standard normal, each row by itself."""
    z = latents.detach().double().cpu()
    is_finite = z.flatten(1).isfinite().all(dim=1)
    z = torch.where(is_finite.view(-1, *(1,) * (z.ndim - 1)), z, 0.0)
    channels, count = z.shape[1], z[0].numel()
    square = z.flatten(1).square().sum(dim=1)
    means = z.flatten(2).mean(dim=2)
    by_axis, correlations = torch.zeros_like(square), []
    variance = (square / count).clamp(min=1e-300)
    for axis in (-1, -2):
        length = z.shape[axis]
        if length < 2:
            continue
        products = (z.narrow(axis, 0, length - 1) * z.narrow(axis, 1, length - 1)).flatten(1)
        correlations.append(products.mean(dim=1) / variance)
        by_axis = by_axis + products.shape[1] * correlations[-1].square()
    below, above = _chi_square(square, count)
    tails = [2 * torch.minimum(below, above), _chi_square(means.square().sum(dim=1) * (count // channels), channels)[1]]
    if correlations:
        tails.append(_chi_square(by_axis, len(correlations))[1])
    smallest = torch.stack(tails).amin(dim=0)
    p_value = (len(tails) * smallest).clamp(max=1.0)
    return PriorTest(
        torch.where(is_finite, p_value, 0.0),
        square / count,
        means.square().mean(dim=1).sqrt(),
        torch.stack(correlations).mean(dim=0) if correlations else torch.zeros_like(square),
    )


def _chi_square(value: Tensor, freedom: int) -> tuple[Tensor, Tensor]:
    """(P(X <= value), P(X >= value)) of a chi-square variable with so many degrees of freedom."""
    half = torch.full_like(value, freedom / 2)
    return torch.special.gammainc(half, value / 2), torch.special.gammaincc(half, value / 2)
