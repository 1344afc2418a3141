"""What the guarded model says at one moment of the sampling. Plain tensors, in the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from saferedir.guards.base import Step
from saferedir.guards.gates import Gate
from saferedir.pipelines.schedules import to_epsilon, to_x0


@dataclass(frozen=True)
class Prediction:
    """One evaluation. Shapes: latents (B, C, h, w); alpha, sigma (B, 1, ...); t (B,) in 0..1000.

    Attributes:
        index: sampling step.
        evaluation: denoiser evaluation, the same but for schedulers of higher order.
        x_t: latents before the step, in the sampler's frame, where x_t = alpha x0 + sigma eps.
        pred, pred_cond, pred_uncond: guided prediction after all guards, and the denoiser's raw rows, in the scheduler's own
            parametrisation; pred_uncond is None without guidance.
        x0: denoised estimate after all guards, float32.
        latents: after the scheduler's step and all guards.
        gates: "<guard>.<gate>" -> `Gate`, of the guards that have some.
    """

    index: int
    evaluation: int
    prediction_type: str
    t: Tensor
    alpha: Tensor
    sigma: Tensor
    x_t: Tensor
    pred: Tensor
    pred_cond: Tensor
    pred_uncond: Tensor | None
    x0: Tensor
    latents: Tensor
    gates: Mapping[str, Gate] = field(default_factory=dict)

    @property
    def eps(self) -> Tensor:
        """Noise that x0 implies: (x_t - alpha x0) / sigma, the same frame for every parametrisation."""
        return to_epsilon(self.x0, self.x_t.float(), self.alpha, self.sigma)

    @property
    def eps_cond(self) -> Tensor:
        """Noise that the conditional row alone implies, which no guidance-side defence has touched."""
        x_t = self.x_t.float()
        x0 = to_x0(self.prediction_type, self.pred_cond.float(), x_t, self.alpha, self.sigma)
        return to_epsilon(x0, x_t, self.alpha, self.sigma)


def prediction_of(step: Step, latents: Tensor, gates: Mapping[str, Gate]) -> Prediction:
    """A guard's last view of a step, and the latents after it."""
    assert step.pred is not None and step.pred_cond is not None and step.x0 is not None
    return Prediction(
        index=step.index,
        evaluation=step.evaluation,
        prediction_type=step.run.prediction_type,
        t=step.t,
        alpha=step.alpha,
        sigma=step.sigma,
        x_t=step.x_t,
        pred=step.pred,
        pred_cond=step.pred_cond,
        pred_uncond=step.pred_uncond,
        x0=step.x0,
        latents=latents,
        gates=gates,
    )
