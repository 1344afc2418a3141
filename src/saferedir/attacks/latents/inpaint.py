"""Inpainting: an image of the concept is kept but for its centre, which the guarded model generates anew.

Static as in "Image Can Bring Your Memory Back" (arXiv:2507.07139), whose mask is the centre of half the image's sides; with
`iterations` the image is first optimised as that paper does for image to image (recall.py). After every step the kept part is
put back, noised to the level of the sampler (as diffusers' inpainting does for models without a mask channel).
Deviations: latents of the bare model's image in place of an encoded file; the text-to-image pipeline, with what is kept put back
inside of its loop (`target.Inpainting`), so that guards see the steps of its schedule; the mask is one of latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from saferedir.attacks.base import Candidate, Proposals
from saferedir.attacks.gate_term import GateWeight
from saferedir.attacks.latents.recall import Recall, RecallConfig, evenly_chosen
from saferedir.attacks.references import gaussian, noised_references, reference_latents
from saferedir.prompts.sets import PromptItem
from saferedir.target import Inpainting, Target


@dataclass(frozen=True)
class InpaintConfig(RecallConfig):
    """Settings of inpainting; those of `RecallConfig` are of the optimisation, which `iterations` of 0 leaves out.

    Attributes:
        sides: of the centre that is generated anew, as shares of the image's sides in (0, 1], descending.
    """

    sides: tuple[float, ...] = (0.75, 0.5)
    iterations: int = 0
    share: float = 1.0
    strength: float = 1.0
    paper: ClassVar[dict[str, Any]] = {"sides": (0.5,)}

    def __post_init__(self) -> None:
        super().__post_init__()
        holds = bool(self.sides) and all(0 < side <= 1 for side in self.sides)
        self.require(
            holds and list(self.sides) == sorted(self.sides, reverse=True), "sides", "shares in (0, 1], descending"
        )


class Inpaint(Recall):
    """Keeps what surrounds the centre of an image of the concept."""

    name: ClassVar[str] = "inpaint"
    stops_on_success: ClassVar[bool] = False
    config_class = InpaintConfig
    config: InpaintConfig

    def propose(self, target: Target, item: PromptItem, generator: torch.Generator) -> Proposals:
        """One candidate for each side, and those of the optimisation."""
        config = self.config
        prompt = item.text if config.prompt == "own" else ""
        clean = reference_latents(target, item.text, generator)
        mixture = config.share * clean + (1 - config.share) * gaussian(clean, generator)
        kept_noise = gaussian(clean, generator)
        chosen = evenly_chosen(target, config.strength, config.timesteps)
        for side in config.sides:
            mask = centre(clean, side)

            def sent(image: Tensor, label: str, loss: float = float("nan"), *, mask: Tensor = mask) -> Candidate:
                inpainting = Inpainting(image.detach().clone(), kept_noise, mask)
                return Candidate(
                    prompt, x0=inpainting.image if chosen[0] else None, start=chosen[0],
                    inpainting=inpainting, loss=loss, is_checkpoint=True, label=label,
                )  # fmt: skip

            yield sent(mixture, f"side {side:g}")
            image, velocity, weight = mixture, torch.zeros_like(mixture), GateWeight(config.gate_weight)
            for number, evaluation in enumerate(chosen if config.iterations else (), 1):
                plan, loss = [evaluation] * config.iterations, float("nan")
                for reference in noised_references(target, item.text, clean, generator, "bare", plan):
                    image, velocity, loss = self._moved(
                        target, prompt, reference, clean, mixture, image, velocity, weight
                    )
                    yield Candidate(prompt, loss=loss, label="unfinished")
                weight.update((yield sent(image, f"side {side:g} timestep {number} of {len(chosen)}", loss)))


def centre(latents: Tensor, side: float) -> Tensor:
    """(1, 1, h, w) bool: the centre of so long sides, which is generated anew."""
    height, width = latents.shape[-2:]
    mask = torch.zeros(1, 1, height, width, dtype=torch.bool, device=latents.device)
    rows, columns = (max(1, round(side * length)) for length in (height, width))
    top, left = (height - rows) // 2, (width - columns) // 2
    mask[..., top : top + rows, left : left + columns] = True
    return mask
