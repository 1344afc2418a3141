"""The optimiser's loop of ESD: the student generates an image part of the way, and unlearns what it predicts there.

Implements docs/methods/esd.md (1) to (3). Set up by train.py; checkpoints are `LoraLoop`'s. Shapes: B images of (C, h, w), M
moments of each, so R = B M rows.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.lora import adapters_off
from saferedir.training.denoiser_calls import Call
from saferedir.training.esd.loss import esd_loss
from saferedir.training.esd.train_config import TrainConfig
from saferedir.training.lora_loop import LoraLoop, mean_of_last


class Prompts(NamedTuple):
    """Embeddings of N prompts for the concept, of their N references, and of the empty prompt (1 row)."""

    concept: PromptEmbeds
    reference: PromptEmbeds
    empty: PromptEmbeds


class Loop(LoraLoop):
    """Everything that stays the same from step to step."""

    def __init__(
        self,
        denoiser: Any,
        call: Call,
        prompts: Prompts,
        scheduler: Any,
        shape: tuple[int, ...],
        config: TrainConfig,
        work: Path,
    ) -> None:
        super().__init__(
            denoiser,
            work,
            steps=config.steps,
            checkpoint_every=config.checkpoint_every,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        self.call, self.prompts, self.shape, self.config = call, prompts, shape, config
        self.scheduler = scheduler

    @torch.no_grad()
    def generate(
        self, rows: Tensor, stop: int, keep: Sequence[int], generator: torch.Generator
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """The student's images of some prompts, up to sampling step `stop`: at each step of `keep` what the denoiser is given.

        Returns step -> (input (B, C, h, w), timestep).
        """
        device, dtype = self.denoiser.device, self.denoiser.dtype
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        scheduler.set_timesteps(self.config.sampling_steps, device=device)
        sigma = getattr(scheduler, "init_noise_sigma", 1.0)
        latents = torch.randn(len(rows), *self.shape, generator=generator).to(device, dtype) * sigma
        count, scale = len(rows), self.config.guidance_scale
        asked = self.prompts.concept.rows(rows)
        both = self.prompts.empty.map(lambda part: part.expand(count, *part.shape[1:])).cat(asked)
        both = both.map(lambda part: part.to(device))
        is_random = "generator" in inspect.signature(scheduler.step).parameters
        noise = {"generator": generator} if is_random else {}
        kept = {}
        for number, t in enumerate(scheduler.timesteps[: stop + 1]):
            given = scheduler.scale_model_input(latents, t) if hasattr(scheduler, "scale_model_input") else latents
            if number in keep:
                kept[number] = (given, t)
            if number < stop:
                output = self.call(self.model, torch.cat([given, given]), t.expand(2 * count), both)
                uncond, cond = output.chunk(2)
                latents = scheduler.step(uncond + scale * (cond - uncond), t, latents, return_dict=False, **noise)[
                    0
                ].to(dtype)
        return kept

    def step(self, number: int) -> dict[str, Any]:
        """One optimiser step; returns its log line."""
        config = self.config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
        rng = random.Random(f"esd/{config.seed}/{number}")
        rows = torch.randint(len(self.prompts.concept.prompt), (config.batch,), generator=generator)
        stop = rng.randrange(config.moments - 1, config.sampling_steps)
        keep = sorted([*rng.sample(range(stop), config.moments - 1), stop])
        moments = self.generate(rows, stop, keep, generator)
        device = self.denoiser.device
        x = torch.cat([given for given, _ in moments.values()])
        t = torch.cat([time.expand(config.batch) for _, time in moments.values()])
        concept, reference = (
            part.rows(rows.repeat(config.moments)).map(lambda part: part.to(device)) for part in self.prompts[:2]
        )
        with torch.no_grad(), adapters_off(self.denoiser):
            frozen = self.call(self.denoiser, torch.cat([x, x]), torch.cat([t, t]), reference.cat(concept))
        student = self.call(self.model, x, t, concept)
        base, asked = frozen.chunk(2)
        loss = esd_loss(student, base, asked, config.eta)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"The loss is not finite at step {number}; lower the learning rate.")
        start = esd_loss(asked, base, asked, config.eta).item()
        norm = self.descend(loss)
        return {
            "step": number + 1,
            "loss": loss.item(),
            "relative": loss.item() / max(start, 1e-12),
            "sampling_step": stop,
            "gradient_norm": norm,
            "learning_rate": config.learning_rate,
        }

    def facts(self, lines: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        return mean_of_last(lines, ("loss", "relative"))

    def label(self, line: Mapping[str, float]) -> str:
        return f"training, loss {line['relative']:.2f} of before"
