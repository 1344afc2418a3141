"""NegationState: what a guard with a negation set remembers of one run, and where in its noise a step is.

Made by `base`, written by the guards and by `released`.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferedir.guards.base import Step
from saferedir.guards.negation.bank import NegationSet
from saferedir.guards.negation.replacement import Replacement
from saferedir.utils.device import to_host

logger = logging.getLogger(__name__)


class Numbers(NamedTuple):
    """What a step is remembered by, each (B,): score; shift, ||delta|| / ||x0||; ess, effective number of references."""

    score: Tensor
    shift: Tensor
    ess: Tensor | None = None


@dataclass
class NegationState:
    """One run: every tensor has B rows. pending: what re-noising adds to x (a function: the step to take
    instead); threshold: of the released code's gate.
    """

    negation: NegationSet
    retry_level: Tensor  # (B,) levels
    indices: list[int] = field(default_factory=list)  # of the steps acted at or only measured
    edits: list[Tensor | None] = field(default_factory=list)  # whether a row was edited; None: every row
    numbers: list[Callable[[], Numbers]] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)  # noise fractions met before one was in the window
    was_due: bool = False
    pending: Any = None
    threshold: float = 0.0
    frame: tuple[Tensor | None, float, float] = (None, 0.0, 0.0)  # a step's alpha; the same and its sigma as numbers
    generators: list[torch.Generator] | None = None
    replacement: Replacement | None = None  # from the first step on at which images are replaced

    def record(self, step: Step, is_edited: Tensor | None, numbers: Callable[[], Numbers]) -> None:
        """Keep one step's numbers, without a host synchronisation; they are worked out for the verdict, not at each step.

        is_edited: (B,), None for every row. `numbers` may hold on to little; under autograd it is asked at once.
        """
        if torch.is_grad_enabled():
            score, shift, ess = numbers()
            record = Numbers(score.detach(), shift.detach(), None if ess is None else ess.detach())
            self.numbers.append(lambda: record)
        else:
            self.numbers.append(numbers)
        self.indices.append(step.index)
        self.edits.append(is_edited)
        if self.is_logging:
            score, shift, ess = self.numbers[-1]()
            edited = torch.ones_like(score) if is_edited is None else is_edited.float()
            values = (score, torch.ones_like(score) if ess is None else ess, edited, shift * edited)
            text = "step %d: score %.4g, effective references %.3g, gates open %.2f, moved by %.4f of x0"
            logger.debug(text, step.index, *(float(value.mean()) for value in values))

    @property
    def is_logging(self) -> bool:
        """Whether anybody reads the log of single steps."""
        return logger.isEnabledFor(logging.DEBUG)

    def sample_noise(self, step: Step, seed: int) -> Tensor:
        """Fresh noise like `step.x_t`, from generators of our own: one a row, seeded by `seed` and that row's initial latents,
        so that a batch equals single runs and the pipeline's random stream stays as it is.
        """
        shape = step.x_t.shape[1:]
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in self.row_generators(step, seed)])
        return noise.to(step.x_t.device)

    def row_generators(self, step: Step, seed: int) -> list[torch.Generator]:
        """One generator a row, seeded by `seed` and that row's initial latents.

        To be asked at the run's first evaluation, acted at or not: later latents hold predictions of the denoiser, whose last
        bits depend on the batch.
        """
        if self.generators is None:
            rows = [row.numpy().tobytes() for row in to_host(step.x_t.detach().float())[0]]
            self.generators = [torch.Generator().manual_seed(seed ^ zlib.crc32(row)) for row in rows]
        return self.generators


def noise_fraction(step: Step) -> float:
    """u = sigma / (alpha + sigma): 0 at the clean end, 1 at pure noise, on every schedule; the same for all rows."""
    alpha, sigma = frame(step)
    return sigma / (alpha + sigma)


def frame(step: Step) -> tuple[float, float]:
    """(alpha, sigma) as numbers: all rows of a run are at the same step."""
    state: NegationState = step.state
    if state.frame[0] is not step.alpha:  # read once a step
        state.frame = step.alpha, *step.numbers
    return state.frame[1:]
