"""SPELL: shields around images that must not appear; outside of them nothing changes.

Implements the sparse repellency term of "Shielded Diffusion: Generating Novel and Diverse Images using Sparse Repellency"
(arXiv:2410.06025): x0' = x0 + lambda sum_n relu(r / ||x0 - r_n|| - 1) (x0 - r_n), docs/methods/spell.md (1).
Shapes: x0 (B, C, h, w); references (M, C, h, w) in the sampler's frame.
Deviations of `default`: raw latents and a radius from the set itself (5 % quantile of its nearest-neighbour distances), since
no radius is published per model; a latent that is a reference to the bit leaves along the diagonal. `faithful`: references
divided by their norm over channels and radius 38.746, as in the Safe Denoiser authors' baseline. Images of earlier batches
are not kept; `dynamic` shields the images of one batch from each other, so there a batch is not the same as single runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from saferedir.errors import GuardError
from saferedir.guards.base import GuardConfig, Run, Step
from saferedir.guards.negation import NegationSet, push_out
from saferedir.guards.negation.base import NegationGuard
from saferedir.guards.negation.config import NegationConfig
from saferedir.guards.negation.state import NegationState, Numbers
from saferedir.utils.broadcast import per_sample

FAITHFUL_RADIUS = 38.746


@dataclass(frozen=True, kw_only=True)
class SPELLConfig(NegationConfig):
    """Settings of SPELL (arXiv:2410.06025).

    Attributes:
        radius: of every shield; None: from the set ("auto").
        strength: lambda, "over-compensation"; 1 lands on the sphere of a single shield.
        dynamic: the other images of the batch are shields too.
    """

    radius: float | None = None
    strength: float = 1.6
    dynamic: bool = False

    def validate(self) -> None:
        super().validate()
        self.require_number("radius", above=0, or_none=True)
        self.require_number("strength", at_least=0)
        self.require_flag("dynamic")


class SPELL(NegationGuard[SPELLConfig]):
    """The guard. Make one with `SPELL.from_set(file_or_set, concept=...)`."""

    method: ClassVar[str] = "spell"
    config_class: ClassVar[type[GuardConfig]] = SPELLConfig

    def start(self, run: Run) -> NegationState:
        state = super().start(run)
        if self.config.mode == "faithful":
            state.negation = self.normalised().to(run.device)
        return state

    def check_set(self, negation: NegationSet) -> None:
        if not math.isfinite(self._radius(negation)):
            raise GuardError(
                "SPELL takes its radius from the distances between references, and this set has not two that differ; set "
                "SPELL's radius."
            )

    def radius(self, state: NegationState) -> float:
        """The radius in use."""
        return self._radius(state.negation)

    def _radius(self, negation: NegationSet) -> float:
        if self.config.radius is not None:
            return self.config.radius
        return FAITHFUL_RADIUS if self.config.mode == "faithful" else negation.calibration.radius

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        state: NegationState = step.state
        state.negation.require_shape(tuple(x0.shape[1:]))
        if self.config.strength == 0 or not self.is_due(step):
            return x0
        flat = x0.flatten(1)
        others = flat if self.config.dynamic and len(flat) > 1 else None
        push, entered = push_out(flat, state.negation.references, self.radius(state), others)
        levels = (1 + state.retry_level).unsqueeze(1) if any(step.run.retry_level) else 1
        delta = self.config.strength * levels * push
        is_inside = entered > 0
        shift = torch.linalg.vector_norm(delta.detach(), dim=1) / torch.linalg.vector_norm(flat.detach(), dim=1)
        state.record(step, is_inside, lambda: Numbers(entered, shift, entered))
        return torch.where(per_sample(is_inside, x0), x0 + delta.view_as(x0), x0)
