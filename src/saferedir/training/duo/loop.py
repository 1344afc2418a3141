"""The optimiser's loop of DUO: 3B rows through trained and base weights, a loss, a step, a log line.

Implements docs/methods/duo.md (1) to (6). Set up by train.py; checkpoints are `LoraLoop`'s. Shapes: B pairs make 3B rows
(unsafe, safe, pure noise) of (C, h, w). One process; several at once are not supported.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.lora import adapters_off
from saferedir.training.denoiser_calls import Call
from saferedir.training.duo.loss import DUOTerms, NoiseLevel, duo_terms
from saferedir.training.duo.noise import Schedule, StepSamples, sample_step
from saferedir.training.duo.pair_files import PairLatents
from saferedir.training.duo.train_config import TrainConfig
from saferedir.training.lora_loop import LOG, Log, LoraLoop, mean_of_last

__all__ = ["LOG", "NOISE_FLOOR", "Log", "Loop"]

NOISE_FLOOR = 0.01  # of the weighted preserving term, where it should be 0


class Loop(LoraLoop):
    """The optimiser's loop: everything that stays the same from step to step."""

    def __init__(
        self,
        denoiser: Any,
        call: Call,
        latents: PairLatents,
        empty: PromptEmbeds,
        asked: PromptEmbeds | None,
        schedule: Schedule,
        config: TrainConfig,
        work: Path,
    ) -> None:
        super().__init__(
            denoiser,
            work,
            steps=config.steps,
            checkpoint_every=config.checkpoint_every,
            learning_rate=config.rates.learning_rate,
            weight_decay=config.weight_decay,
        )
        self.call, self.latents, self.empty, self.asked = call, latents, empty, asked
        self.schedule, self.config, self.rates = schedule, config, config.rates
        self.saturated = 0

    def terms(self, samples: StepSamples) -> DUOTerms:
        """Terms of one step: 3B rows through the trained and through the base weights."""
        device, pairs = self.denoiser.device, len(samples.pairs)
        noise = samples.posterior if self.config.posterior == "sample" else None
        clean = self.latents.sample(samples.pairs, noise).to(device)
        eps = samples.eps.to(device)
        moment = samples.unsafe.cat(samples.safe, self.schedule.prior(pairs))
        halves = NoiseLevel(*(part[: 2 * pairs] for part in moment))
        rows = torch.cat([halves.noised(clean, torch.cat([eps, eps])), eps])
        empty = self.empty.map(lambda part: part.expand(pairs, *part.shape[1:]))
        asked = empty if self.asked is None else self.asked.rows(samples.pairs)
        kept = asked if self.config.prior_conditioning == "prompt" else empty
        given = asked.cat(asked, kept).map(lambda part: part.to(device))
        x, t = rows.to(self.denoiser.dtype), moment.t.to(device)
        with torch.no_grad(), adapters_off(self.denoiser):
            base = self.call(self.denoiser, x, t, given)
        trained = self.call(self.model, x, t, given)
        return duo_terms(self.schedule.kind, trained, base, clean, eps, moment, beta=self.config.beta)

    def step(self, number: int) -> dict[str, Any]:
        """One optimiser step; returns its log line."""
        config = self.config
        samples = sample_step(
            self.schedule, tuple(self.latents.mean.shape[2:]), len(self.latents.mean), config.batch, number,
            seed=config.seed, rank=self.accelerator.process_index,
            shared_t=config.shared_t, shared_noise=config.rank_shared_noise,
        )  # fmt: skip
        terms = self.terms(samples)
        loss = terms.total(self.rates.prior_weight)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss is not finite at step {number}; lower the learning rate or the prior weight."
            )
        prior = terms.prior.mean().item()
        if number == 0 and self.rates.prior_weight * prior > NOISE_FLOOR:
            warnings.warn(
                f"a LoRA that changes nothing yet shows a preserving term of {self.rates.prior_weight * prior:.3g} (rounding); "
                "train in float32, or with a smaller prior weight.",
                stacklevel=2,
            )
        norm = self.descend(loss)
        accuracy = (terms.margin < 0).float().mean().item()
        self.saturated = self.saturated + 1 if accuracy == 1 else 0
        return {
            "step": number + 1,
            "loss": loss.item(),
            "dpo": terms.dpo.mean().item(),
            "prior": prior,
            "margin": terms.margin.mean().item(),
            "accuracy": accuracy,
            "safe": terms.safe.mean().item(),
            "unsafe": terms.unsafe.mean().item(),
            "gradient_norm": norm,
            "learning_rate": self.rates.learning_rate,
        }

    @property
    def is_finished(self) -> bool:
        return bool(self.config.stop_after) and self.saturated >= self.config.stop_after

    def facts(self, lines: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        mean = mean_of_last(lines, ("margin", "accuracy", "prior", "safe", "unsafe"))
        return {
            "effective_learning_rate": self.rates.learning_rate,
            "effective_prior_weight": self.rates.prior_weight,
            **mean,
        }

    def label(self, line: Mapping[str, float]) -> str:
        return f"training, margin {line['margin']:.1e}"

    def extra_state(self) -> dict[str, Any]:
        return {"saturated": self.saturated}

    def take_extra_state(self, state: Mapping[str, Any]) -> None:
        self.saturated = state["saturated"]
