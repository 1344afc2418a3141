"""Latents that pass the test against the prior which guards may put on them: what an attacker sends who knows of the test.

Moves latents as little as it can towards those with the statistics of noise (`pipelines.latent_prior`): energy, channel means
and autocorrelation, each to where the test accepts it. Nothing of an image that lies elsewhere is lost. Where a guard replaces
a share of them by noise ("refresh_all"), an attack takes the expectation over that noise (`with_fresh_noise`): it is decided by
the very values that are searched, so that it can be tried out, and not optimised.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saferedir.pipelines.latent_prior import prior_test
from saferedir.pipelines.latent_refresh import replace_share
from saferedir.target import Target

#: how far above the limit the p-value is brought
MARGIN = 3.0
ROUNDS = 200
#: share of the way to honest statistics that a round goes
STEP = 0.2


def prior_limit(target: Target) -> float | None:
    """Share of honest noise that the strictest test of the target's guards refuses; None where no guard tests latents."""
    limits = [guard.latents_false_positives for guard in target.guards if guard.enabled and guard.latents_test != "off"]
    return max(limits, default=None)


def fresh_share(target: Target) -> float:
    """Largest share of given latents that the target's guards replace by noise; 0 where none does."""
    return max(
        (guard.latents_fresh_share for guard in target.guards if guard.enabled and guard.latents_test == "refresh_all"),
        default=0.0,
    )


def with_fresh_noise(latents: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """What a guard that replaces `share` makes of latents of unit scale, with noise of `generator`; differentiable."""
    if not share:
        return latents
    return replace_share(latents, torch.randn(latents.shape, generator=generator), share)


@torch.no_grad()
def within_prior(latents: Tensor, limit: float) -> Tensor:
    """Latents (B, C, h, w) of unit scale, those that fail at `limit` moved until their p-value is `MARGIN` times as high."""
    z = latents.double()
    for _ in range(ROUNDS):
        failed = prior_test(z).p_value.to(z.device) < MARGIN * limit
        if not bool(failed.any()):
            break
        moved = z - STEP * z.mean(dim=(-2, -1), keepdim=True)
        for axis in (-1, -2):
            length = moved.shape[axis]
            if length < 2:
                continue
            near, far = moved.narrow(axis, 0, length - 1), moved.narrow(axis, 1, length - 1)
            square = moved.square().flatten(1).mean(dim=1)
            correlation = (near * far).flatten(1).mean(dim=1) / square.clamp(min=1e-12)
            neighbours = torch.zeros_like(moved)
            neighbours.narrow(axis, 0, length - 1).add_(far)
            neighbours.narrow(axis, 1, length - 1).add_(near)
            moved = moved - STEP * 0.5 * correlation.view(-1, 1, 1, 1) * neighbours
        size = moved.square().flatten(1).mean(dim=1).sqrt().view(-1, 1, 1, 1)
        moved = moved * (1 + STEP * (1 / size - 1))
        z = torch.where(failed.view(-1, 1, 1, 1), moved, z)
    return z.to(latents)
