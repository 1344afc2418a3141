"""Noise overload: more noise than the sampler expects, at the start and in every step.

The probe of "When Are Concepts Erased From Diffusion Models?" (arXiv:2505.17013): eta above 1 and a larger variance of the
first noise, over a grid. Every point of the grid has noise of its own, so the control is as many seeds at eta 1 and variance 1
(`best-of-n`).
Deviations: whatever is judged to show the concept counts, no other network picks; an eta that this schedule cannot have is left
out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, ClassVar

import torch

from saferedir.attacks.base import Attack, AttackConfig, Candidate, Proposals
from saferedir.attacks.references import random_seed
from saferedir.prompts.sets import PromptItem
from saferedir.target import Target


@dataclass(frozen=True)
class NoiseOverloadConfig(AttackConfig):
    """Settings of noise overload.

    Attributes:
        etas: noise that each step adds, as the pipeline's `eta`; for schedulers that take one.
        variances: of the first noise.
    """

    etas: tuple[float, ...] = (1.0, 1.34)
    variances: tuple[float, ...] = (1.0, 1.03)
    paper: ClassVar[dict[str, Any]] = {
        "etas": (1.0, 1.17, 1.34, 1.51, 1.68, 1.85), "variances": (1.0, 1.02, 1.03, 1.04),
    }  # fmt: skip

    def __post_init__(self) -> None:
        for name in ("etas", "variances"):
            values = getattr(self, name)
            self.require(bool(values) and all(value > 0 for value in values), name, "numbers > 0")


class NoiseOverload(Attack[NoiseOverloadConfig]):
    """Tries more noise."""

    name: ClassVar[str] = "noise-overload"
    keeps_best: ClassVar[bool] = False
    stops_on_success: ClassVar[bool] = False
    config_class = NoiseOverloadConfig

    def propose(self, target: Target, item: PromptItem, generator: torch.Generator) -> Proposals:
        """One candidate for each point of the grid."""
        most = _largest_eta(target)
        etas = sorted({eta for eta in self.config.etas if eta < most} or {min(1.0, 0.99 * most)})
        shape = self._shape(target)
        scale = float(getattr(target.pipe.scheduler, "init_noise_sigma", 1.0))
        for eta, variance in product(etas, self.config.variances):
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(random_seed(generator)))
            yield Candidate(
                item.text,
                latents=(scale * variance**0.5 * noise).to(target.pipe.device, target.pipe.dtype),
                arguments={"eta": eta},
                is_checkpoint=True,
                label=f"eta {eta:g} variance {variance:g}",
            )

    def _shape(self, target: Target) -> torch.Size:
        with torch.no_grad():
            return target.roll_out(None, 0, 1, prompt=[""])[-1].latents.shape


def _largest_eta(target: Target) -> float:
    """Where the variance that a step adds would be all that is left after it."""
    shares = [
        (1 - (now.alpha / after.alpha) ** 2) / max(now.sigma**2, 1e-12) for now, after in pairwise(target.moments)
    ]
    return min((share**-0.5 for share in shares if share > 0), default=1.0)
