"""What a SafeRedir guard remembers during one pipeline call, and the decisions it leaves."""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import torch
from torch import Tensor

from saferedir.decisions import Decision
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.guards.saferedir.embeds_test import Distances
from saferedir.guards.saferedir.redirect import Redirection
from saferedir.guards.step import Run
from saferedir.pipelines.conditioning import Conditioning, PromptEmbeds
from saferedir.utils.broadcast import per_sample
from saferedir.utils.device import is_readable, refuse, to_host
from saferedir.utils.writes import written_error

logger = logging.getLogger(__name__)

METHOD = "saferedir"
#: a redirection that begins after this share of the steps comes when the layout is settled: the last score is then that of an
#: image half redirected, which nothing was calibrated on
LATE = 0.25


class Kept(NamedTuple):
    """Conditioning of all images redirected at one level.

    Attributes:
        prompt: (B, L, D).
        pooled: (B, P), None where there is none.
        strength: (B, L), how far each token was moved.
    """

    prompt: Tensor
    pooled: Tensor | None
    strength: Tensor

    def onto(self, other: Kept, rows: Tensor) -> Kept:
        """`other` with this in the place of `rows` (B,) bool."""
        parts = (
            theirs if mine is None or theirs is None else torch.where(per_sample(rows, mine), mine, theirs)
            for mine, theirs in zip(self, other, strict=True)
        )
        return Kept(*parts)  # type: ignore[arg-type]


class Source:
    """Conditioning that something was made from, and whether another one still holds the same values.

    Values are compared with a copy. Where that would wait, objects and their counts of writes are, and what neither shows (a
    write under `inference_mode`, or through `.data`) is refused at the end of the run.
    """

    def __init__(self, given: PromptEmbeds) -> None:
        self._given, self._writes = given, given.writes
        self._copy = given.map(lambda part: part.detach().clone())

    def is_unchanged(self, now: PromptEmbeds) -> bool:
        """Whether `now` has the values that were given."""
        if is_readable(now.prompt):
            return same_conditioning(now, self._copy)
        if not now.is_same(self._given) or now.writes != self._writes:
            return False
        for part, kept in zip(now, self._copy, strict=True):
            if part is not None and kept is not None:
                refuse(part != kept, written_error)
        return True


@dataclass
class RedirState:
    """What SafeRedir remembers during one pipeline call; every tensor has B rows."""

    prompt_weight: Tensor  # (B,) 1 while the prompt verdict stands, in [0, 1] under a soft gate
    image_weight: Tensor  # (B,) the same for the image verdict; never falls
    safe_streak: Tensor  # (B,) int, prompt checks in a row below the lower threshold
    unsafe_streak: (
        Tensor  # (B,) int, image checks in a row above the threshold while redirected; float, the evidence of them
    )
    level: Tensor  # (B,) int, 0 redirect, 1 stronger, 2 the anchor's embedding
    redirected: Tensor  # (B,) int, denoiser calls with another embedding
    first_fired: Tensor  # (B,) int, -1 while nothing happened
    is_high: Tensor  # (B,) bool, whether the last image check was at or above the threshold
    is_retried: Tensor  # (B,) bool, redirected from step 0 whatever the verdicts say
    is_allowed: Tensor  # (B,) bool, whose prompt verdict is passed over
    renoised: Tensor  # (B,) int, steps after which fresh noise was put on
    renoised_now: Tensor | None = None  # (B,) gate in [0, 1], whose latents get fresh noise after this step
    row_seeds: tuple[int, ...] = ()
    fired_now: Tensor | None = None  # (B,) bool, whose prediction of this step was taken again
    score_before: Tensor | None = None  # (B,) image score of the predictions that were not
    candidate_level: Tensor | None = None  # (B,) int, level of the embeddings in the extra rows of this step
    image_threshold: float = 0.0  # of the run's image verdict
    num_steps: int = 0
    lowest_level: int = 0  # above it an image counts as escalated
    countdown: int = 0
    image_countdown: int = 0
    standing: Conditioning | None = None  # what this step's redirection is made from
    source: Source | None = None  # what `score`, `redirection` and `kept` were made from
    score: Tensor | None = None
    image_score: Tensor | None = None  # of the latest check
    is_last: bool = False  # whether the latest check was that of the last evaluation
    distances: Distances | None = None  # of the caller's embeddings over the bound, for attacks with gradients
    negative_source: Source | None = None  # negative prompts that they were last taken of
    redirection: Redirection | None = None
    kept: dict[int, Kept] = field(default_factory=dict)  # by level
    left_alone: Tensor | None = None  # (B,) bool, whose redirection was not finite
    strengths: Tensor | None = None  # (B, L)
    run_warning: str | None = None  # why this run's record says less than usual
    weak_end: str | None = None  # why its last image verdict says little
    prompt_scores: list[Tensor] = field(default_factory=list)
    image_scores: list[Tensor] = field(default_factory=list)

    @classmethod
    def begun(
        cls,
        config: SafeRedirConfig,
        run: Run,
        is_allowed: Tensor,
        image_threshold: float,
        run_warning: str | None = None,
        weak_end: str | None = None,
        lowest_level: int = 0,
    ) -> Self:
        """State of a run that begins; images of a retry level above 0 are redirected from step 0."""
        rows, device, retry_level = run.batch_size, run.device, run.retry_levels

        def zeros(dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(rows, dtype=dtype, device=device)

        return cls(
            prompt_weight=(retry_level > 0).float(),
            image_weight=zeros(torch.float32),
            safe_streak=zeros(),
            unsafe_streak=zeros(torch.long if config.escalation == "streak" else torch.float32),
            level=retry_level.clamp(min=lowest_level, max=2),
            lowest_level=lowest_level,
            is_retried=retry_level > 0,
            is_allowed=is_allowed,
            redirected=zeros(),
            first_fired=torch.full((rows,), -1, dtype=torch.long, device=device),
            is_high=zeros(torch.bool),
            renoised=zeros(),
            image_threshold=image_threshold,
            num_steps=run.num_steps,
            run_warning=run_warning,
            weak_end=weak_end,
        )

    @property
    def weight(self) -> Tensor:
        """(B,) 1 where one of the verdicts stands, in [0, 1] under a soft gate."""
        return torch.maximum(self.prompt_weight, self.image_weight)

    def note_redirected(self, rows: Tensor, index: int) -> None:
        """Count step `index` for the images `rows` (B,) bool that are redirected in it."""
        self.redirected = self.redirected + rows
        self.first_fired = torch.where(rows & (self.first_fired < 0), index, self.first_fired)

    def fresh_noise(self, like: Tensor, seed: int, evaluation: int) -> Tensor:
        """Noise like `like`, each row's from the row's own seed: a batch equals single runs."""
        seeds = [(seed + row) * 1_000_003 + evaluation for row in self.row_seeds]
        rows = [torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(each)) for each in seeds]
        return torch.stack(rows).to(like.device)


def row_seeds(latents: Tensor) -> tuple[int, ...]:
    """A seed for each row of the latents that a run begins with."""
    (copied,) = to_host(latents.detach().float())
    return tuple(zlib.crc32(row.numpy().tobytes()) for row in copied)


def same_conditioning(first: PromptEmbeds, second: PromptEmbeds) -> bool:
    """Whether every part that is there has the same values."""
    parts = zip(first, second, strict=True)
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in parts)


def relative_shift(prompt: Tensor, e0: Tensor) -> Tensor:
    """|e' - e0| / |e0| per token, (B, L): how far each token was moved."""
    lengths: Tensor = torch.linalg.vector_norm(torch.stack([prompt - e0, e0]).float(), dim=-1)
    return lengths[0] / lengths[1].clamp(min=1e-6)


def decisions(config: SafeRedirConfig, state: RedirState) -> list[Decision]:
    """One record per image, in batch order; everything is read in one copy."""
    nothing = torch.zeros(0, device=state.level.device)
    none_left = state.level.new_zeros(len(state.level), dtype=torch.bool)
    (
        prompt,
        image,
        strengths,
        first_fired,
        levels,
        prompt_weight,
        image_weight,
        redirected,
        is_high,
        is_retried,
        renoised_steps,
        left,
    ) = to_host(
        torch.stack(state.prompt_scores) if state.prompt_scores else nothing,
        torch.stack(state.image_scores) if state.image_scores else nothing,
        nothing if state.strengths is None else state.strengths,
        state.first_fired,
        state.level,
        state.prompt_weight,
        state.image_weight,
        state.redirected,
        state.is_high,
        state.is_retried,
        state.renoised,
        none_left if state.left_alone is None else state.left_alone,
    )
    if bool(left.any()):
        rows = left.nonzero().flatten().tolist()
        logger.warning("SafeRedir left image(s) %s alone: the redirection is not finite.", rows)
    thresholds = {"prompt": config.prompt_threshold, "image": state.image_threshold}
    if config.last_threshold is not None:
        thresholds["last"] = config.last_threshold
    records = []
    for row in range(len(levels)):
        first = int(first_fired[row])
        fired, level = first >= 0, int(levels[row])
        weights = {"prompt": prompt_weight, "image": image_weight}
        by = [name for name, weight in weights.items() if weight[row].item() > 0.5]
        late = fired and first > LATE * state.num_steps
        unresolved = bool(is_high[row]) or late
        message = ""
        if fired:
            why = f"its {' and '.join(by) or 'prompt'} score"
            if bool(is_retried[row]):
                why = "request, whatever its scores"
            message = f"Redirected by {why} from step {first}."
        if late:
            message = f"{message} That was after the layout of the image had settled; block this image."
        if bool(is_high[row]):
            message = f"{message} The image score was still above its threshold at the end; block this image."
        if renoised := int(renoised_steps[row]):
            message = f"{message} Fresh noise was put on its latents after {renoised} of the steps."
        message = " ".join(part for part in (message.strip(), state.run_warning, state.weak_end) if part)
        records.append(
            Decision(
                guard=METHOD,
                concept=config.concept,
                image=row,
                fired=fired,
                action="escalated" if level > state.lowest_level else "redirected" if fired else "none",
                prompt_score=float(prompt[:, row].max()) if state.prompt_scores else None,
                image_score=float(image[:, row].max()) if state.image_scores else None,
                thresholds=thresholds,
                first_fired_step=first if fired else None,
                steps_redirected=int(redirected[row]),
                unresolved=unresolved,
                unverified=state.weak_end is not None,
                token_strengths=tuple(strengths[row].tolist()) if fired and state.strengths is not None else None,
                prompt_scores=tuple(prompt[:, row].tolist()) if state.prompt_scores else (),
                image_scores=tuple(image[:, row].tolist()) if state.image_scores else (),
                message=message,
            )
        )
    return records
