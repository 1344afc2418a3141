"""Latent inversion: the noise from which the guarded model, asked for nothing, arrives at an image of the concept.

Implements the objective of TINA (text-free inversion attack): per step, min over z_t of ||C1 z_s + C2 eps_guarded(z_t, t,
prompt) - z_t||^2, C1 = alpha_t / alpha_s, C2 = sigma_t - C1 sigma_s, s the step after t; begun with DDIM inversion, then
sampled from z_T. Exact inversion reproduces any latent on any network, so a result counts only beside its controls
(controls.py).
Deviations: alpha and sigma of any schedule; fixed-point iterations before the optimiser's; an optional bound on the energy of
z_t; guards begin anew at every step; the schedule's own solver where that is not DDIM's; where a guard tests latents against
the prior, they are moved until they pass (prior.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from saferedir.attacks.base import Attack, AttackConfig, Candidate, Proposals
from saferedir.attacks.gate_term import GateWeight, with_gates
from saferedir.attacks.latents.prior import prior_limit, within_prior
from saferedir.attacks.latents.steps_back import StepBack, steps_back
from saferedir.attacks.references import reference_latents
from saferedir.prompts.sets import PromptItem
from saferedir.target import Target


@dataclass(frozen=True)
class LatentInversionConfig(AttackConfig):
    """Settings of latent inversion.

    Attributes:
        fixed_point: iterations z_t <- C1 z_s + C2 eps(z_t) at every step, without gradients.
        iterations: optimiser steps at every step of the sampling.
        learning_rate: of AdamW.
        energy: mu of mu max(0, m_t - |z_t|^2 / D)^2, which keeps z_t from having less energy than a noised image has; 0 for none.
        gate_weight: weight of the gate term; 0 for the published form.
        prompt: "empty" as published, or "own" for the attacked prompt.
    """

    fixed_point: int = 2
    iterations: int = 2
    learning_rate: float = 1e-2
    energy: float = 0.0
    gate_weight: float = 0.1
    prompt: str = "empty"
    paper: ClassVar[dict[str, Any]] = {"fixed_point": 0, "iterations": 25, "learning_rate": 1e-3, "gate_weight": 0.0}

    def __post_init__(self) -> None:
        self.require_whole("fixed_point", "iterations", at_least=0)
        self.require_number("learning_rate", above=0)
        self.require_number("energy", "gate_weight", at_least=0)
        self.require_choice("prompt", ("empty", "own"))


class LatentInversion(Attack[LatentInversionConfig]):
    """Inverts an image of the concept through the guarded model."""

    name: ClassVar[str] = "latent-inversion"
    keeps_best: ClassVar[bool] = False
    is_adaptive: ClassVar[bool] = True
    config_class = LatentInversionConfig

    def propose(self, target: Target, item: PromptItem, generator: torch.Generator) -> Proposals:
        """One unfinished candidate for each step that is inverted, and the noise at the end."""
        config = self.config
        prompt = "" if config.prompt == "empty" else item.text
        clean = reference_latents(target, item.text, generator)
        latents = clean
        for step in steps_back(target):
            wanted = step.alpha**2 * float(clean.square().mean()) + step.sigma**2
            latents, loss = self._one_step(target, prompt, latents, step, wanted)
            yield Candidate(prompt, loss=loss, label="unfinished")
        if (limit := prior_limit(target)) is not None:
            scale = float(getattr(target.pipe.scheduler, "init_noise_sigma", 1.0))
            latents = scale * within_prior(latents / scale, limit)
        label = f"energy {float(latents.square().mean()):.3f} kurtosis {_kurtosis(latents):.2f}"
        yield Candidate(prompt, latents=latents, loss=loss, is_checkpoint=True, label=label)

    def _one_step(
        self, target: Target, prompt: str, after: Tensor, step: StepBack, wanted: float
    ) -> tuple[Tensor, float]:
        """(latents before the step that leads to `after`, residual)."""
        config = self.config
        latents = step.inverted(target, prompt, after, config.fixed_point)
        latents = latents.detach().requires_grad_(True)
        weight, residual = GateWeight(config.gate_weight), torch.zeros(())
        optimiser = torch.optim.AdamW([latents], lr=config.learning_rate, weight_decay=0.0)
        for _ in range(config.iterations):
            optimiser.zero_grad()
            prediction = target.predict(latents, step.evaluation, prompt=[prompt])
            residual = (step.ratio * after + step.shift * prediction.eps - latents).square().mean()
            loss = residual
            if config.energy:
                loss = loss + config.energy * torch.relu(wanted - latents.square().mean()).square()
            with_gates(loss, target, [prediction], weight).backward()
            optimiser.step()
        return latents.detach(), float(residual.detach())


def _kurtosis(values: Tensor) -> float:
    """Fourth moment over the squared second: 3 for Gaussian noise."""
    centred = values.float() - values.float().mean()
    return float(centred.pow(4).mean() / centred.square().mean().square())
