"""The released SafeRedir loop, vectorised: row by row what the authors' code does to a batch of one.

Implements docs/methods/saferedir.md (15) and (16) (arXiv:2601.08623). Deviations: state is reset at every pipeline call
unless `carry_countdown`; any current diffusers works.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from saferedir.decisions import Decision
from saferedir.errors import GuardError
from saferedir.guards.base import Conditioning, Run, Step
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.guards.saferedir.reference import apply_reference_shift, reference_shift
from saferedir.utils.device import is_readable, may_hold, to_host


@dataclass
class FaithfulState:
    """One row per image: countdown until the next check, and the current embeddings once something fired."""

    countdown: Tensor  # (B,) int
    redirected: Tensor  # (B,) int, denoiser calls made with a shifted embedding
    first_fired: Tensor  # (B,) int, -1 while nothing fired
    e0: Tensor | None = None  # what the pipeline passed, conditional half (B, L, D)
    e0_uncond: Tensor | None = None
    cond: Tensor | None = None  # e, conditional half
    uncond: Tensor | None = None
    scores: list[Tensor] = field(default_factory=list)
    checked: list[Tensor] = field(default_factory=list)
    strengths: Tensor | None = None

    def uncond_of(self, negative: Tensor) -> Tensor:
        """The current unconditional half, or the pipeline's own before anything fired."""
        return negative if self.uncond is None else self.uncond


class FaithfulLoop:
    """Decide on x_t and the current embedding just before the scheduler's step, act from the next call on."""

    def __init__(self, network: Any, config: SafeRedirConfig) -> None:
        self.network = network
        self.config = config
        self._carried: Tensor | None = None

    def start(self, run: Run) -> FaithfulState:
        """Fresh state, or the last call's countdown with `carry_countdown`."""
        rows, device = run.batch_size, run.device
        countdown = torch.zeros(rows, dtype=torch.long, device=device)
        if self.config.carry_countdown and self._carried is not None and len(self._carried) == rows:
            countdown = self._carried.to(device)
        return FaithfulState(
            countdown=countdown,
            redirected=torch.zeros_like(countdown),
            first_fired=torch.full_like(countdown, -1),
        )

    def embeds(self, step: Step) -> Tensor | Conditioning:
        """The current e; untouched until a check has fired."""
        state: FaithfulState = step.state
        state.e0, state.e0_uncond = step.prompt_embeds, step.negative_prompt_embeds
        if state.cond is None or not may_hold(state.first_fired >= 0):
            return step.prompt_embeds
        state.redirected = state.redirected + (state.first_fired >= 0)
        fired = (state.first_fired >= 0).view(-1, 1, 1)
        answer = step.conditioning.with_cond(prompt=torch.where(fired, state.cond, step.prompt_embeds))
        if (negative := step.negative_prompt_embeds) is None:
            return answer
        return answer.with_uncond(prompt=torch.where(fired, state.uncond_of(negative), negative))

    def decide(self, step: Step) -> None:
        """One pass of the released check, per row."""
        state: FaithfulState = step.state
        due = state.countdown <= 0
        state.countdown = (state.countdown - 1).clamp(min=0)
        if may_hold(due):
            e0, negative = state.e0, state.e0_uncond
            if e0 is None:
                raise GuardError("SafeRedir was asked for a verdict before it saw a denoiser call; attach it anew.")
            current = e0 if state.cond is None else state.cond
            out = self.network(step.model_input.float(), current.float(), step.t)
            score = out.logits[:, 1] - out.logits[:, 0]
            state.scores.append(torch.where(due, score.detach(), torch.nan))
            state.checked.append(due)
            unsafe = due & (score.detach() > 0)  # a tie counts as safe
            mask = out.mask if self.config.mask_again else None
            scale = self.config.scale
            new = apply_reference_shift(e0, reference_shift(out.delta, out.alpha, e0.float(), mask), scale).to(e0.dtype)
            state.cond = torch.where(unsafe.view(-1, 1, 1), new, current)
            if negative is not None:
                other = apply_reference_shift(
                    negative, reference_shift(out.delta, out.alpha, negative.float(), mask), scale
                ).to(negative.dtype)
                state.uncond = torch.where(unsafe.view(-1, 1, 1), other, state.uncond_of(negative))
            strength = out.alpha[..., 0].detach() * (1 if mask is None else mask.detach())
            strength = strength if is_readable(due) else torch.where(due.any(), strength, 0.0)
            state.strengths = strength if state.strengths is None else torch.maximum(state.strengths, strength)
            state.first_fired = torch.where(unsafe & (state.first_fired < 0), step.index, state.first_fired)
            state.countdown = torch.where(unsafe, self.config.replace_steps, state.countdown)
        self._carried = state.countdown

    def verdict(self, run: Run, state: FaithfulState) -> list[Decision]:
        """One record per image; the score is that of the joint classifier."""
        nothing = torch.full((1, run.batch_size), torch.nan, device=run.device)
        scores, all_first, all_redirected, strengths = to_host(
            torch.stack(state.scores) if state.scores else nothing,
            state.first_fired,
            state.redirected,
            nothing if state.strengths is None else state.strengths,
        )
        decisions = []
        for row in range(run.batch_size):
            first, redirected = int(all_first[row]), int(all_redirected[row])
            row_scores = [s for s in scores[:, row].tolist() if s == s]
            decisions.append(
                Decision(
                    guard="saferedir",
                    concept=self.config.concept,
                    image=row,
                    fired=redirected > 0,
                    action="redirected" if redirected else "none",
                    image_score=max(row_scores) if row_scores else None,
                    thresholds={"image": 0.0},
                    first_fired_step=first if redirected else None,
                    steps_redirected=redirected,
                    unresolved=first >= 0 and not redirected,
                    token_strengths=tuple(strengths[row].tolist())
                    if first >= 0 and state.strengths is not None
                    else None,
                    image_scores=tuple(row_scores),
                    message=message_of(first, redirected),
                )
            )
        return decisions


def message_of(first: int, redirected: int) -> str:
    """`first`: step of the first check that found the concept, -1 if none did; `redirected`: denoiser calls edited since."""
    if redirected:
        return f"Redirected by the joint score of step {first}."
    if first >= 0:
        return f"The joint score of step {first}, the last, found the concept when no call was left to redirect; take more steps."
    return ""
