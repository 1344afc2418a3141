"""The losses of DUO: preference of the safe member of a pair over the unsafe one, and staying put at pure noise.

Implements Sec. 3 of "Direct Unlearning Optimization for Robust and Safe Text-to-Image Models" (arXiv:2407.21035):
docs/methods/duo.md (1) to (7) and (10). Pure functions; imports torch, `schedules` and `errors`. Shapes: latents, noise and model
outputs (B, C, h, w); errors and margins (B,), means over channels and pixels, so that beta does not depend on the size.
Deviations: one formula for epsilon, v, sample and flow models; where the released code and the paper differ, `variant` chooses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from saferedir.errors import GuardConfigError
from saferedir.pipelines.schedules import to_x0


class NoiseLevel(NamedTuple):
    """Where on the schedule B rows stand: t (B,) as the denoiser takes it, x_t = alpha x0 + sigma eps, alpha and sigma (B,)."""

    t: Tensor
    alpha: Tensor
    sigma: Tensor

    def like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma as (B, 1, ...) on the device of `x` (B, ...)."""
        shape = (len(self.t),) + (1,) * (x.ndim - 1)
        return self.alpha.to(x.device).view(shape), self.sigma.to(x.device).view(shape)

    def noised(self, x0: Tensor, eps: Tensor) -> Tensor:
        """alpha x0 + sigma eps."""
        alpha, sigma = self.like(x0)
        return alpha * x0 + sigma * eps

    def cat(self, *others: NoiseLevel) -> NoiseLevel:
        """All rows, those of `others` below."""
        return NoiseLevel(*(torch.cat(parts) for parts in zip(self, *others, strict=True)))


@dataclass(frozen=True)
class DUOTerms:
    """What one step's outputs amount to. Everything (B,) is per pair.

    Attributes:
        margin: u = [l(theta, x+) - l(phi, x+)] - [l(theta, x-) - l(phi, x-)]; below 0 where the safe member is preferred.
        safe, unsafe: the two brackets: how much worse than the base model each member is denoised.
        dpo: -log sigmoid(-beta u), per pair.
        prior: squared distance to the base model at pure noise, per pair.
    """

    margin: Tensor
    safe: Tensor
    unsafe: Tensor
    dpo: Tensor
    prior: Tensor

    def total(self, prior_weight: float) -> Tensor:
        """L = L_DPO + lambda L_prior, means over the pairs."""
        return self.dpo.mean() + prior_weight * self.prior.mean()


def duo_terms(
    kind: str, trained: Tensor, base: Tensor, clean: Tensor, eps: Tensor, moment: NoiseLevel, *, beta: float
) -> DUOTerms:
    """The terms of B pairs from the outputs (3B, ...) of the trained and the base model.

    Rows: B noised unsafe latents, B noised safe ones, B of pure noise. `clean` (2B, ...): the latents of the first two;
    `eps` (B, ...): the noise all three share; `moment`: of all 3B rows. `kind`: the prediction type, as `schedules` has it.
    """
    pairs = len(eps)
    noised = torch.cat([moment_rows(moment, 0, 2 * pairs).noised(clean, eps.repeat(2, *[1] * (eps.ndim - 1))), eps])
    wanted = target(kind, clean, eps, moment_rows(moment, 0, 2 * pairs))
    ours, theirs = (compared(kind, output.float(), noised, moment) for output in (trained, base))
    worse = mean_square(ours[: 2 * pairs] - wanted) - mean_square(theirs[: 2 * pairs] - wanted)
    unsafe, safe = worse.chunk(2)
    margin = safe - unsafe
    prior = mean_square(ours[2 * pairs :] - theirs[2 * pairs :])
    return DUOTerms(margin, safe, unsafe, preference(margin, beta), prior)


def moment_rows(moment: NoiseLevel, start: int, stop: int) -> NoiseLevel:
    """Some rows of a moment."""
    return NoiseLevel(*(part[start:stop] for part in moment))


def preference(margin: Tensor, beta: float) -> Tensor:
    """-log sigmoid(-beta u) (B,), stable for any margin; ln 2 at u = 0, slope beta sigmoid(beta u)."""
    return F.softplus(beta * margin)


def mean_square(difference: Tensor) -> Tensor:
    """(B,): mean of squares over all but the first dimension, in float32."""
    return difference.float().square().flatten(1).mean(dim=1)


def compared(kind: str, output: Tensor, x_t: Tensor, moment: NoiseLevel) -> Tensor:
    """A model output in the form in which errors are taken: as it is, for flow models as a denoised estimate
    (docs/methods/duo.md (7)).
    """
    return to_x0(kind, output, x_t, *moment.like(x_t)) if kind == "flow" else output


def target(kind: str, x0: Tensor, eps: Tensor, moment: NoiseLevel) -> Tensor:
    """What `compared` should be, rows as `x0` (kB, ...); `eps` (B, ...) serves every group of B rows."""
    noise = eps.repeat(len(x0) // len(eps), *[1] * (eps.ndim - 1))
    if kind == "epsilon":
        return noise
    if kind in ("flow", "sample"):
        return x0
    if kind == "v_prediction":
        alpha, sigma = moment.like(x0)
        return alpha * noise - sigma * x0
    raise GuardConfigError(
        f"DUO cannot train a model of prediction type {kind!r}; expected epsilon, v, sample or flow."
    )


class Rates(NamedTuple):
    """Learning rate and weight of the preserving term, as the optimiser gets them."""

    learning_rate: float
    prior_weight: float


def rescaled(rule: str, beta: float, learning_rate: float, prior_weight: float) -> Rates:
    """Rule "none": both as given. "reference": lr = base 100 / beta, lambda = base beta / 100, as the released code does."""
    if not (math.isfinite(beta) and beta > 0):
        raise GuardConfigError(f"DUO's beta is {beta!r}; expected a finite number > 0.")
    if rule == "none":
        return Rates(learning_rate, prior_weight)
    if rule == "reference":
        return Rates(learning_rate * 100 / beta, prior_weight * beta / 100)
    raise GuardConfigError(f"DUO's rescale is {rule!r}; expected 'none' or 'reference'.")
