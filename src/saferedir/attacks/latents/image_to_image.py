"""Image to image, static: an image of the concept is noised and generated anew by the guarded model.

The starting image is the bare model's; nothing is optimised (SDEdit, arXiv:2108.01073, as image-to-image pipelines do it).
Deviations: latents of the bare model in place of an encoded file; the text-to-image pipeline from the middle of its schedule,
so guards see the index of that step where an image-to-image pipeline begins to count at 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from saferedir.attacks.base import Attack, AttackConfig, Candidate, Proposals
from saferedir.attacks.references import reference_latents
from saferedir.prompts.sets import PromptItem
from saferedir.target import Target


@dataclass(frozen=True)
class ImageToImageConfig(AttackConfig):
    """Settings of static image to image.

    Attributes:
        strengths: shares of the schedule that are run, in (0, 1], descending: the first changes the image most.
        prompt: "empty", or "own" for the attacked prompt.
    """

    strengths: tuple[float, ...] = (0.7, 0.5, 0.3)
    prompt: str = "empty"
    paper: ClassVar[dict[str, Any]] = {"strengths": (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)}

    def __post_init__(self) -> None:
        holds = bool(self.strengths) and all(0 < strength <= 1 for strength in self.strengths)
        ordered = list(self.strengths) == sorted(self.strengths, reverse=True)
        self.require(holds and ordered, "strengths", "shares in (0, 1], descending")
        self.require_choice("prompt", ("empty", "own"))


class ImageToImage(Attack[ImageToImageConfig]):
    """Begins with an image of the concept."""

    name: ClassVar[str] = "image-to-image"
    keeps_best: ClassVar[bool] = False
    stops_on_success: ClassVar[bool] = False
    config_class = ImageToImageConfig

    def propose(self, target: Target, item: PromptItem, generator: torch.Generator) -> Proposals:
        """One candidate for each strength."""
        clean = reference_latents(target, item.text, generator)
        steps = target.moments[-1].index + 1
        prompt = item.text if self.config.prompt == "own" else ""
        for strength in self.config.strengths:
            first = steps - max(1, int(steps * strength))
            start = next(moment.evaluation for moment in target.moments if moment.index == first)
            yield Candidate(prompt, x0=clean, start=start, is_checkpoint=True, label=f"strength {strength:g}")
