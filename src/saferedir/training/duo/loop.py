"""The optimiser's loop of DUO: 3B rows through trained and base weights, a loss, a step, a log line, a checkpoint.

Implements docs/methods/duo.md (1) to (6). Set up by train.py. Shapes: B pairs make 3B rows (unsafe, safe,
pure noise) of (C, h, w). One process; several at once are not supported.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.lora import adapters_off
from saferedir.training.duo.loss import DUOTerms, NoiseLevel, duo_terms
from saferedir.training.duo.noise import Schedule, StepSamples, sample_step
from saferedir.training.duo.pair_files import PairLatents
from saferedir.training.duo.train_config import TrainConfig
from saferedir.utils.files import replacing
from saferedir.utils.progress import Progress

LOG = "training.jsonl"
NOISE_FLOOR = 0.01  # of the weighted preserving term, where it should be 0
Log = Callable[[dict[str, Any]], None]


def call_unet(denoiser: Any, x: Tensor, t: Tensor, prompt: PromptEmbeds) -> Tensor:
    """Output (R, C, h, w) of a Stable Diffusion UNet."""
    output: Tensor = denoiser(x, t, encoder_hidden_states=prompt.prompt).sample
    return output


def call_mmdit(denoiser: Any, x: Tensor, t: Tensor, prompt: PromptEmbeds) -> Tensor:
    """Output (R, C, h, w) of a Stable Diffusion 3 transformer."""
    output: Tensor = denoiser(
        hidden_states=x, timestep=t, encoder_hidden_states=prompt.prompt, pooled_projections=prompt.pooled
    ).sample
    return output


#: family -> how its denoiser is called; a new family is one line here
CALLS: dict[str, Callable[[Any, Tensor, Tensor, PromptEmbeds], Tensor]] = {
    "stable-diffusion": call_unet,
    "stable-diffusion-3": call_mmdit,
}


class Loop:
    """The optimiser's loop: everything that stays the same from step to step."""

    def __init__(
        self,
        denoiser: Any,
        call: Callable[[Any, Tensor, Tensor, PromptEmbeds], Tensor],
        latents: PairLatents,
        empty: PromptEmbeds,
        asked: PromptEmbeds | None,
        schedule: Schedule,
        config: TrainConfig,
        work: Path,
    ) -> None:
        self.denoiser, self.call, self.latents, self.empty, self.asked = denoiser, call, latents, empty, asked
        self.schedule, self.config, self.work, self.rates = schedule, config, work, config.rates
        self.accelerator = Accelerator(cpu=denoiser.device.type == "cpu")
        self.parameters = [value for value in denoiser.parameters() if value.requires_grad]
        optimiser = torch.optim.AdamW(self.parameters, lr=self.rates.learning_rate, weight_decay=config.weight_decay)
        # the denoiser stays on the device its pipeline is on
        self.model, self.optimiser = self.accelerator.prepare(denoiser, optimiser, device_placement=[False, False])
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
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
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
            "gradient_norm": float(norm),
            "learning_rate": self.rates.learning_rate,
        }

    def fit(self, progress: Progress, log: Log | None) -> dict[str, Any]:
        """All steps, from the last checkpoint on; returns facts for the record."""
        config, start = self.config, self._resume()
        lines = [line for line in _read_log(self.work / LOG) if line["step"] <= start]
        self._write_log(lines, "w")
        number = start
        with progress.task("training", config.steps, start) as advance:
            while number < config.steps and not self._is_saturated:
                line = self.step(number)
                number += 1
                lines.append(line)
                self._write_log([line], "a")
                if log is not None:
                    log(line)
                advance(1, f"training, margin {line['margin']:.1e}")
                if number % config.checkpoint_every == 0 and self.accelerator.is_main_process:
                    self._checkpoint(number)
        last = lines[-10:]
        mean = {
            key: sum(line[key] for line in last) / max(1, len(last))
            for key in ("margin", "accuracy", "prior", "safe", "unsafe")
        }
        return {
            "steps_done": number,
            "effective_learning_rate": self.rates.learning_rate,
            "effective_prior_weight": self.rates.prior_weight,
            **{f"last_{key}": round(value, 8) for key, value in mean.items()},
        }

    def _write_log(self, lines: list[dict[str, Any]], mode: str) -> None:
        if self.accelerator.is_main_process:
            with (self.work / LOG).open(mode, encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)

    @property
    def _is_saturated(self) -> bool:
        return bool(self.config.stop_after) and self.saturated >= self.config.stop_after

    def _resume(self) -> int:
        path = self.work / "checkpoint.pt"
        if not path.exists():
            return 0
        state = torch.load(path, weights_only=True)
        for saved, value in zip(state["lora"], self.parameters, strict=True):
            value.data.copy_(saved)
        self.optimiser.load_state_dict(state["optimiser"])
        self.saturated = state["saturated"]
        return int(state["step"])

    def _checkpoint(self, step: int) -> None:
        state = {
            "step": step,
            "saturated": self.saturated,
            "lora": [value.detach().cpu() for value in self.parameters],
            "optimiser": self.optimiser.state_dict(),
        }
        path = self.work / "checkpoint.pt"
        with replacing(path) as temporary:
            torch.save(state, temporary)


def _read_log(path: Path) -> list[dict[str, Any]]:
    """Whole lines of the log; a line cut off by a kill is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
