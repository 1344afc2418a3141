"""Latents by gradient: noise from which the whole guarded sampling ends at an image of the concept.

Minimises ||x0_guarded(z_T) - x0||^2 + the gate term over z_T, through every step of the sampling, with z_T kept at the energy
of the prior: what end-to-end optimisation of diffusion latents (DOODL, arXiv:2303.13703) does for other objectives.
Deviations from it: plain back-propagation through a sampler of few steps in place of an invertible one; the reference is an
image of the bare model; where a guard tests latents against the prior, every step ends where they pass (prior.py); where one
replaces a share of them by noise, the loss is the mean over samples of it, and what is judged has the noise of its own values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from saferedir.attacks.base import Attack, AttackConfig, Candidate, Proposals
from saferedir.attacks.gate_term import GateWeight, with_gates
from saferedir.attacks.latents.prior import fresh_share, prior_limit, with_fresh_noise, within_prior
from saferedir.attacks.latents.steps_back import steps_back
from saferedir.attacks.references import gaussian, reference_latents
from saferedir.prompts.sets import PromptItem
from saferedir.target import Target

#: of fresh noise, rows of one roll-out, where a guard replaces a share of given latents by it
FRESH_SAMPLES = 4


@dataclass(frozen=True)
class LatentGradientConfig(AttackConfig):
    """Settings of latents by gradient.

    Attributes:
        steps: optimiser steps.
        learning_rate: of Adam.
        sampler_steps: steps of the sampler that is differentiated, at most the call's own; None for those.
        is_on_prior: whether |z_T|^2 / D is kept at its value under the prior.
        gate_weight: weight of the gate term; 0 for none.
        prompt: "empty", or "own" for the attacked prompt.
        start: "inversion" of the reference through the guarded model, or "noise".
        checkpoint: every how many steps the latents are judged.
    """

    steps: int = 20
    learning_rate: float = 0.05
    sampler_steps: int | None = 10
    is_on_prior: bool = True
    gate_weight: float = 0.1
    prompt: str = "empty"
    start: str = "inversion"
    checkpoint: int = 10
    paper: ClassVar[dict[str, Any]] = {
        "steps": 200,
        "start": "noise",
        "sampler_steps": None,
        "checkpoint": 25,
        "learning_rate": 0.05,
    }

    def __post_init__(self) -> None:
        self.require_whole("steps", at_least=0)
        self.require_whole("checkpoint", at_least=1)
        self.require_whole("sampler_steps", at_least=1, or_none=True)
        self.require_number("learning_rate", above=0)
        self.require_number("gate_weight", at_least=0)
        self.require_flag("is_on_prior")
        self.require_choice("prompt", ("empty", "own"))
        self.require_choice("start", ("inversion", "noise"))


class LatentGradient(Attack[LatentGradientConfig]):
    """Optimises the noise of a run through all of it."""

    name: ClassVar[str] = "latent-gradient"
    is_adaptive: ClassVar[bool] = True
    config_class = LatentGradientConfig

    def propose(self, target: Target, item: PromptItem, generator: torch.Generator) -> Proposals:
        """Every step of the search."""
        config = self.config
        prompt = "" if config.prompt == "empty" else item.text
        clean = reference_latents(target, item.text, generator)
        scale = float(getattr(target.pipe.scheduler, "init_noise_sigma", 1.0))
        is_shorter = config.sampler_steps is not None and config.sampler_steps < target.moments[-1].index + 1
        changes: dict[str, Any] = {"num_inference_steps": config.sampler_steps} if is_shorter else {}
        noise = gaussian(clean, generator)
        energy = noise.square().mean()
        if config.start == "inversion":
            noise = clean
            for back in steps_back(target):
                noise = back.inverted(target, prompt, noise, 0)
            noise = noise / scale
            if config.is_on_prior:
                noise = noise * (energy / noise.square().mean()).sqrt()
        limit, share = prior_limit(target), fresh_share(target)
        samples = FRESH_SAMPLES if share else 1
        noise = noise.detach() if limit is None else within_prior(noise.detach(), limit)
        noise = noise.clone().requires_grad_(True)
        optimiser = torch.optim.Adam([noise], lr=config.learning_rate)
        weight = GateWeight(config.gate_weight)
        for step in range(config.steps + 1):
            optimiser.zero_grad()
            given = with_fresh_noise(noise.expand(samples, *noise.shape[1:]), share, generator)
            run = target.roll_out(scale * given, prompt=[prompt] * samples, **changes)
            loss = with_gates((run[-1].latents - clean).square().mean(), target, run, weight)
            is_last = step == config.steps
            sent = (scale * noise).detach().clone()
            if not is_last:
                loss.backward()
            feedback = yield Candidate(
                prompt,
                latents=sent,
                loss=float(loss.detach()),
                is_checkpoint=is_last or (step > 0 and step % config.checkpoint == 0),
            )
            weight.update(feedback)
            optimiser.step()
            with torch.no_grad():
                if config.is_on_prior:
                    noise.mul_((energy / noise.square().mean()).sqrt())
                if limit is not None:
                    noise.copy_(within_prior(noise, limit))
