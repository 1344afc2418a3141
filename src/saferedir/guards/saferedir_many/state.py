"""What a SafeRedir guard of many concepts remembers during one pipeline call."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from saferedir.guards.base import Run
from saferedir.guards.saferedir.assessment import image_threshold
from saferedir.guards.saferedir.network import TokenFeatures
from saferedir.guards.saferedir.state import Source
from saferedir.guards.saferedir_many.config import SafeRedirManyConfig
from saferedir.utils.device import is_readable


class Redirected(NamedTuple):
    """Redirected conditioning of B images, and what it was made by.

    Attributes:
        prompt: (B, L, D); pooled: (B, P), None where there is none.
        strength: (B, L), how far each token was moved.
        chosen: (B, M) the concepts, weight: (B, M) their weights, level: (B,) how often the shift is lengthened.
    """

    prompt: Tensor
    pooled: Tensor | None
    strength: Tensor
    chosen: Tensor
    weight: Tensor
    level: Tensor

    def is_for(self, chosen: Tensor, weight: Tensor, level: Tensor) -> bool:
        """Whether the same concepts act in the same way; False where reading that would wait for a device."""
        pairs = ((self.chosen, chosen), (self.weight, weight), (self.level, level))
        return is_readable(weight) and all(torch.equal(mine, given) for mine, given in pairs)


@dataclass
class ManyState:
    """What the guard remembers during one pipeline call; B images, K concepts."""

    limits: Tensor  # (3, K), thresholds of prompt, image and last score; infinity for concepts that are off
    image_thresholds: tuple[float, ...]  # of the run, off or not
    image_acts: Tensor  # (B, K) bool, whose image verdict has fired; it stays
    streak: Tensor  # (B, K) int, high image checks in a row while redirected
    level: Tensor  # (B,) int, how often the shift is lengthened
    redirected: Tensor  # (B,) int, denoiser calls with another embedding
    redirected_from: Tensor  # (B, K) int, those in which each concept was among what acted
    first_fired: Tensor  # (B, K) int, the step each concept acted in first, -1 for never
    is_high: Tensor  # (B, K) bool, whether the last image check was at or above the threshold
    is_retried: Tensor  # (B,) bool, redirected from step 0
    prompt: Tensor  # (B, K) prompt scores of the embeddings of the run
    image_peak: Tensor  # (B, K) highest image score
    left_out: Tensor  # (B, K) bool, which concepts asked to act in a step in which `most` others did
    is_logged: Tensor  # (K,) bool, which concepts are scored and never act
    is_allowed: Tensor  # (B, K) bool, whose prompt verdict is passed over
    source: Source | None = None  # what `prompt`, `features` and `kept` were made from
    features: TokenFeatures | None = None  # of the embeddings of the run, made when something acts
    kept: Redirected | None = None  # the latest redirection
    strengths: Tensor | None = None  # (B, L)

    @classmethod
    def begin(cls, config: SafeRedirManyConfig, run: Run, *, logged: Collection[str], allowed: Tensor) -> Self:
        """The state before the first step; `logged` are the concepts that never act, `allowed` is `is_allowed`."""
        rows, count, device = run.batch_size, len(config.concepts), run.device
        last = config.last_thresholds or config.image_thresholds
        image = tuple(image_threshold(*both, run.num_steps) for both in zip(config.image_thresholds, last, strict=True))
        limits = torch.tensor([config.prompt_thresholds, image, last], device=device)

        def flags(names: Collection[str]) -> Tensor:
            return torch.tensor([name in names for name in config.concepts], device=device)

        def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        return cls(
            limits=limits.masked_fill(flags(config.off), torch.inf),
            image_thresholds=image,
            image_acts=zeros(torch.bool, rows, count),
            streak=zeros(torch.long, rows, count),
            level=run.retry_levels,
            redirected=zeros(torch.long, rows),
            redirected_from=zeros(torch.long, rows, count),
            first_fired=zeros(torch.long, rows, count) - 1,
            is_high=zeros(torch.bool, rows, count),
            is_retried=run.retry_levels > 0,
            prompt=zeros(torch.float32, rows, count),
            image_peak=zeros(torch.float32, rows, count) - torch.inf,
            left_out=zeros(torch.bool, rows, count),
            is_logged=flags(logged),
            is_allowed=allowed,
        )
