"""Sampling steps backwards: from the latents after a deterministic step to those before it.

DDIM's step (arXiv:2010.02502, Eq. 12) solved for x_t:
x_t = (alpha_t / alpha_s) x_s + (sigma_t - (alpha_t / alpha_s) sigma_s) eps(x_t, t).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from saferedir.target import Target


@dataclass(frozen=True)
class StepBack:
    """One step. Shapes: latents (1, C, h, w).

    Attributes:
        evaluation: at x_t.
        alpha, sigma: of x_t.
        ratio: alpha_t / alpha_s.
        shift: sigma_t - ratio sigma_s.
    """

    evaluation: int
    alpha: float
    sigma: float
    ratio: float
    shift: float

    def inverted(self, target: Target, prompt: str, after: Tensor, fixed_point: int) -> Tensor:
        """x_t of x_s, by 1 + `fixed_point` iterations, without gradients."""
        with torch.no_grad():
            latents = self.ratio * after
            for _ in range(1 + fixed_point):
                eps = target.predict(latents, self.evaluation, prompt=[prompt]).eps
                latents = self.ratio * after + self.shift * eps
        return latents.detach()


def steps_back(target: Target) -> Iterator[StepBack]:
    """The steps of the target's schedule, from the last to the first; the first evaluation of each."""
    moments = target.moments
    first = [moment for index, moment in enumerate(moments) if index == 0 or moment.index != moments[index - 1].index]
    alpha_after, sigma_after = 1.0, 0.0
    for moment in reversed(first):
        ratio = moment.alpha / alpha_after
        yield StepBack(moment.evaluation, moment.alpha, moment.sigma, ratio, moment.sigma - ratio * sigma_after)
        alpha_after, sigma_after = moment.alpha, moment.sigma
