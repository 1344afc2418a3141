"""Which moments of the schedule DUO trains at, and its random numbers.

Implements docs/methods/duo.md (8) and (9). Reads a diffusers scheduler's config and never changes the
scheduler. Moments are (B,) float32 on the CPU; seeds are per step, so a resumed run samples alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferedir.errors import UnsupportedPipelineError
from saferedir.pipelines.schedules import prediction_type, scheduler_kind
from saferedir.training.duo.loss import NoiseLevel

SIGMA_MODES = ("paper", "as_coded")
U_MIN = 0.001  # of flow models: the least u, of the index in code and of sigma in the paper's sense


@dataclass(frozen=True)
class Schedule:
    """The training-time schedule of a denoiser.

    Attributes:
        kind: its prediction type.
        t_min, t_max: first and last trained timestep; of flow models u runs from t_min / 1000, at least 0.001, to
            (t_max + 1) / 1000, which is 0.75 by default.
        sigma_mode: flow models only. "paper": sigma uniform in the range of u, the prior at sigma 1. "as_coded": the index into
            the *descending* list is uniform, so that sigma runs from 0.9997 down to 0.5013 and the prior sits at 0.0030.
        table: abar (T,) by timestep, for flow models sigma (T,), descending.
    """

    kind: str
    table: Tensor
    t_min: int = 0
    t_max: int = 749
    sigma_mode: str = "paper"

    @property
    def is_flow(self) -> bool:
        """Whether x_s = (1 - s) x0 + s eps."""
        return self.kind == "flow"

    def at_timesteps(self, t: Tensor) -> NoiseLevel:
        """The moment of whole timesteps (B,) of a variance-preserving model."""
        abar = self.table[t]
        return NoiseLevel(t, abar.sqrt().float(), (1 - abar).sqrt().float())

    def at_sigma(self, sigma: Tensor) -> NoiseLevel:
        """The moment of flow models at sigma (B,); their denoisers take 1000 sigma."""
        return NoiseLevel((1000 * sigma).float(), (1 - sigma).float(), sigma.float())

    def sample(self, count: int, generator: torch.Generator) -> NoiseLevel:
        """Moments of `count` rows, uniform over the trained part."""
        if not self.is_flow:
            return self.at_timesteps(torch.randint(self.t_min, self.t_max + 1, (count,), generator=generator))
        r = torch.rand(count, generator=generator, dtype=torch.float64)
        low, high = max(self.t_min / 1000, U_MIN), min((self.t_max + 1) / 1000, 1.0)
        u = high * r + low * (1 - r)
        return self.at_sigma(u if self.sigma_mode == "paper" else self.table[(len(self.table) * u).long()])

    def prior(self, count: int) -> NoiseLevel:
        """The moment at which `count` rows of pure noise are trained."""
        if not self.is_flow:
            return self.at_timesteps(torch.full((count,), len(self.table) - 1))
        sigma = torch.ones((), dtype=torch.float64) if self.sigma_mode == "paper" else self.table[-1]
        return self.at_sigma(sigma.expand(count))


def schedule_of(scheduler: Any, *, t_min: int = 0, t_max: int = 749, sigma_mode: str = "paper") -> Schedule:
    """The training schedule behind a pipeline's scheduler, whatever sampling settings it stands at."""
    kind = prediction_type(scheduler)
    fresh = type(scheduler).from_config(scheduler.config)
    if scheduler_kind(scheduler) == "flow":
        table = (fresh.timesteps.double() / fresh.config.num_train_timesteps).cpu()
        return Schedule("flow", table, t_min, t_max, sigma_mode)
    abar = getattr(fresh, "alphas_cumprod", None)
    if abar is None or kind not in ("epsilon", "v_prediction", "sample"):
        raise UnsupportedPipelineError(
            f"DUO cannot train with {type(scheduler).__name__} ({kind}); give the pipeline a DDIM or flow-matching scheduler."
        )
    return Schedule(kind, abar.double().cpu(), t_min, min(t_max, len(abar) - 1))


class StepSamples(NamedTuple):
    """The random part of one step for B pairs: which pairs (B,), eps (B, C, h, w), the noise of the two members' posteriors
    (2B, C, h, w; unsafe first), and the moments of both members.
    """

    pairs: Tensor
    eps: Tensor
    posterior: Tensor
    unsafe: NoiseLevel
    safe: NoiseLevel


def sample_step(
    schedule: Schedule, shape: tuple[int, ...], available: int, batch: int, step: int,
    *, seed: int, rank: int = 0, shared_t: bool = True, shared_noise: bool = False,
) -> StepSamples:  # fmt: skip
    """Random numbers of optimiser step `step`, the same at every call.

    `shared_t`: both members of a pair at one moment. `shared_noise`: the pairs of a step share eps, moments and posterior noise,
    as in the released code. `rank` separates streams as the released code's processes do: each has noise of its own, or
    with `shared_noise` the same; the pairs are its own anyway. Our training has one stream.
    """
    private = torch.Generator().manual_seed(_seed(seed, step, rank))
    pairs = torch.randint(available, (batch,), generator=private)
    generator = torch.Generator().manual_seed(_seed(seed, step, -1)) if shared_noise else private
    count = 1 if shared_noise else batch
    eps = torch.randn(count, *shape, generator=generator)
    posterior = torch.randn(2, count, *shape, generator=generator)
    unsafe = schedule.sample(count, generator)
    safe = unsafe if shared_t else schedule.sample(count, generator)
    if shared_noise:
        eps, posterior = eps.expand(batch, *shape), posterior.expand(2, batch, *shape)
        unsafe, safe = (NoiseLevel(*(part.expand(batch) for part in moment)) for moment in (unsafe, safe))
    return StepSamples(pairs, eps, posterior.flatten(0, 1), unsafe, safe)


def _seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 4_099 + rank + 1
