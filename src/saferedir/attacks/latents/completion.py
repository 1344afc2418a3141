"""Diffusion completion: the guarded model is given latents on which the bare model has begun.

The probe of "When Are Concepts Erased From Diffusion Models?" (arXiv:2505.17013): the first h of n steps by the bare model, the
rest guarded. It says what a guard can still do late, and where its window ends.
Deviations: shares of the run in place of 1, 2, 3 steps of 50; guards begin anew where they take over, and see the index of that
step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from saferedir.attacks.base import Attack, AttackConfig, Candidate, Proposals
from saferedir.attacks.references import random_seed
from saferedir.prompts.sets import PromptItem
from saferedir.target import Target


@dataclass(frozen=True)
class CompletionConfig(AttackConfig):
    """Settings of completion.

    Attributes:
        shares: of the run that the bare model makes, in (0, 1), ascending.
        prompt: "own", or "empty" for the guarded rest.
    """

    shares: tuple[float, ...] = (0.1, 0.3, 0.6)
    prompt: str = "own"
    paper: ClassVar[dict[str, Any]] = {"shares": (0.02, 0.04, 0.06)}

    def __post_init__(self) -> None:
        holds = bool(self.shares) and all(0 < share < 1 for share in self.shares)
        self.require(holds and list(self.shares) == sorted(self.shares), "shares", "shares in (0, 1), ascending")
        self.require_choice("prompt", ("empty", "own"))


class Completion(Attack[CompletionConfig]):
    """Lets the bare model begin."""

    name: ClassVar[str] = "completion"
    keeps_best: ClassVar[bool] = False
    stops_on_success: ClassVar[bool] = False
    config_class = CompletionConfig

    def propose(self, target: Target, item: PromptItem, generator: torch.Generator) -> Proposals:
        """One candidate for each share."""
        seed, moments = random_seed(generator), target.moments
        steps = moments[-1].index + 1
        for share in self.config.shares:
            begun = min(max(1, round(share * steps)), steps - 1)
            start = next(moment.evaluation for moment in moments if moment.index == begun)
            with target.undefended() as bare, torch.no_grad():
                source = torch.Generator().manual_seed(seed)
                run = bare.roll_out(None, 0, start, prompt=[item.text], generator=[source])
            prompt = item.text if self.config.prompt == "own" else ""
            yield Candidate(
                prompt,
                latents=run[-1].latents.detach(),
                start=start,
                is_checkpoint=True,
                label=f"{begun} of {steps} steps",
            )
