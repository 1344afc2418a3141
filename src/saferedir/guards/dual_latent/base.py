"""What the dual latent reconstructions share: levels of safety per image, the safe row, the weights of "learned".

The methods are r1 and r2. Shapes: w (B,), predictions (B, C, h, w).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from saferedir.errors import GuardConfigError, GuardError
from saferedir.guards.base import Guard, Run, Step
from saferedir.guards.dual_latent.config import DualLatentConfig
from saferedir.guards.dual_latent.providers import SAFE_POOLED, SAFE_PROMPT, Learned, SafeTexts, safe_row, words_of
from saferedir.guards.guidance import Tally
from saferedir.pipelines.conditioning import PromptEmbeds

ConfigT = TypeVar("ConfigT", bound=DualLatentConfig)


@dataclass
class Levels:
    """State of one run; every tensor has B rows. Those called `known` are on the CPU, whatever the run's device."""

    tally: Tally
    w: Tensor
    is_retried: Tensor
    known_w: Tensor
    known_is_retried: Tensor
    texts: SafeTexts
    _copies: dict[tuple[bool, ...], Tensor] = field(default_factory=dict, repr=False)

    def on_device(self, rows: Tensor) -> Tensor:
        """`rows` (B,) bool of the CPU on the run's device; each pattern is copied once."""
        if self.w.device == rows.device:
            return rows
        pattern = tuple(rows.tolist())
        if pattern not in self._copies:
            self._copies[pattern] = rows.to(self.w.device)
        return self._copies[pattern]


class DualLatent(Guard[ConfigT]):
    """Base of both. safe_prompt_embeds (L, D), safe_pooled_embeds (P,): the weights of the provider "learned"."""

    always_acts: ClassVar[bool] = True
    replaces_guidance: ClassVar[bool] = True

    def __init__(
        self, config: ConfigT, safe_prompt_embeds: Tensor | None = None, safe_pooled_embeds: Tensor | None = None
    ) -> None:
        super().__init__(config)
        self.safe_prompt_embeds, self.safe_pooled_embeds = safe_prompt_embeds, safe_pooled_embeds
        self.needs_text = config.provider == "context_text"
        self.needs_text_encoder = config.provider != "learned"

    def levels(self, run: Run) -> Levels:
        """w of each image, with 1 - w halved at each retry level, and what the provider needs encoded."""
        levels, rows = self.config.levels, run.batch_size
        if len(levels) not in (1, rows):
            raise GuardError(
                f"guard {self.method!r} has {len(levels)} levels w for {rows} images; give one, or {rows}."
            )
        if self.config.provider == "learned" and self.safe_prompt_embeds is None:
            raise GuardError(f"guard {self.method!r} has no weights; pass safe_prompt_embeds, or use another provider.")
        known = torch.tensor(levels).expand(rows)
        retry_level = torch.tensor(run.retry_level or (0,) * rows)
        known = torch.where(retry_level > 0, torch.maximum(known, 1 - (1 - known) * 0.5**retry_level), known)
        texts = SafeTexts(words_of(self.config, run) if bool((known > 0).any()) else None)
        w, is_retried = known.to(run.device), (retry_level > 0).to(run.device)
        return Levels(Tally(run), w, is_retried, known, retry_level > 0, texts)

    def safe_row(self, step: Step, texts: SafeTexts) -> PromptEmbeds:
        """Conditioning of the safe row, (1, B, ...)."""
        learned = Learned(self.safe_prompt_embeds, self.safe_pooled_embeds)
        return safe_row(step, self.config, texts, learned, self.method)

    def is_dual(self, step: Step) -> bool:
        """Whether this call is past the context phase, or before it in phase order "dual_first"; the same for all images."""
        tau, is_first = self.config.tau, self.config.phase_order == "dual_first"
        if self.config.tau_mode == "similarity":
            return True
        if self.config.tau_mode == "noise":
            alpha, sigma = map(torch.tensor, step.numbers)
            u = sigma / (alpha + sigma)
            return bool(u > tau if is_first else u <= 1 - tau)
        context = round(tau * step.num_steps)
        return step.index < step.num_steps - context if is_first else step.index >= context

    def tensors(self) -> dict[str, Tensor]:
        tensors = {SAFE_PROMPT: self.safe_prompt_embeds, SAFE_POOLED: self.safe_pooled_embeds}
        return {name: value for name, value in tensors.items() if value is not None}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        unknown = sorted(set(tensors) - {SAFE_PROMPT, SAFE_POOLED})
        if unknown:
            raise GuardConfigError(f"guard {self.method!r} has no weights called {', '.join(unknown)}.")
        prompt, pooled = tensors.get(SAFE_PROMPT), tensors.get(SAFE_POOLED)
        if (prompt is not None and prompt.ndim != 2) or (pooled is not None and pooled.ndim != 1):
            raise GuardConfigError(f"guard {self.method!r} needs {SAFE_PROMPT} (L, D) and {SAFE_POOLED} (P,).")
        self.safe_prompt_embeds, self.safe_pooled_embeds = prompt, pooled
