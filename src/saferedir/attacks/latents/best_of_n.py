"""Best of N: the prompt as it is, on N noise seeds. What any server gives away to whoever asks often enough.

ASR@N by the unbiased estimator: `AttackRecord.success_at`.
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
class BestOfNConfig(AttackConfig):
    """Settings of best of N.

    Attributes:
        n: images.
    """

    n: int = 4
    paper: ClassVar[dict[str, Any]] = {"n": 64}

    def __post_init__(self) -> None:
        self.require_whole("n", at_least=1)


class BestOfN(Attack[BestOfNConfig]):
    """Tries other noise."""

    name: ClassVar[str] = "best-of-n"
    keeps_best: ClassVar[bool] = False
    stops_on_success: ClassVar[bool] = False
    config_class = BestOfNConfig

    def propose(self, target: Target, item: PromptItem, generator: torch.Generator) -> Proposals:
        """One candidate for each seed."""
        for index in range(self.config.n):
            seed = random_seed(generator) % 2**32
            yield Candidate(item.text, seed=seed, is_checkpoint=True, label=f"seed {index + 1}")
