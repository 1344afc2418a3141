"""What a SafeRedir guard remembers during one pipeline call, and the decisions it leaves."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from saferedir.decisions import Decision
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.guards.saferedir.redirect import Redirection
from saferedir.pipelines.conditioning import Conditioning, PromptEmbeds

METHOD = "saferedir"
#: a redirection that begins after this share of the steps comes when the layout is settled: the last score is then that of an
#: image half redirected, which nothing was calibrated on
LATE = 0.25


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
    renoised: Tensor  # (B,) int, steps after which fresh noise was put on
    renoised_now: Tensor | None = None  # (B,) gate in [0, 1], whose latents get fresh noise after this step
    row_seeds: tuple[int, ...] = ()
    fired_now: Tensor | None = None  # (B,) bool, whose prediction of this step was taken again
    score_before: Tensor | None = None  # (B,) image score of the predictions that were not
    candidate_level: Tensor | None = None  # (B,) int, level of the embeddings in the extra rows of this step
    num_steps: int = 0
    countdown: int = 0
    image_countdown: int = 0
    standing: Conditioning | None = None  # what this step's redirection is made from
    given: PromptEmbeds | None = None  # copy of the conditioning that `score` and `redirection` belong to
    score: Tensor | None = None
    image_score: Tensor | None = None  # of the latest check
    redirection: Redirection | None = None
    strengths: Tensor | None = None  # (B, L)
    run_warning: str | None = None  # why this run's record says less than usual
    weak_end: str | None = None  # why its last image verdict says little
    prompt_scores: list[Tensor] = field(default_factory=list)
    image_scores: list[Tensor] = field(default_factory=list)

    def fresh_noise(self, like: Tensor, seed: int, evaluation: int) -> Tensor:
        """Noise like `like`, each row's from the row's own seed: a batch equals single runs."""
        seeds = [(seed + row) * 1_000_003 + evaluation for row in self.row_seeds]
        rows = [torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(each)) for each in seeds]
        return torch.stack(rows).to(like.device)


def row_seeds(latents: Tensor) -> tuple[int, ...]:
    """A seed for each row of the latents that a run begins with."""
    return tuple(zlib.crc32(row.detach().float().cpu().numpy().tobytes()) for row in latents)


def same_conditioning(first: PromptEmbeds, second: PromptEmbeds) -> bool:
    """Whether every part that is there has the same values."""
    parts = zip(first, second, strict=True)
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in parts)


def relative_shift(prompt: Tensor, e0: Tensor) -> Tensor:
    """|e' - e0| / |e0| per token, (B, L): how far each token was moved."""
    lengths: Tensor = torch.linalg.vector_norm(torch.stack([prompt - e0, e0]).float(), dim=-1)
    return lengths[0] / lengths[1].clamp(min=1e-6)


def decisions(config: SafeRedirConfig, state: RedirState) -> list[Decision]:
    """One record per image, in batch order."""
    prompt = torch.stack(state.prompt_scores).cpu() if state.prompt_scores else None
    image = torch.stack(state.image_scores).cpu() if state.image_scores else None
    thresholds = {"prompt": config.prompt_threshold, "image": config.image_threshold}
    if config.last_threshold is not None:
        thresholds["last"] = config.last_threshold
    records = []
    for row in range(len(state.level)):
        fired = int(state.first_fired[row]) >= 0
        level = int(state.level[row])
        weights = {"prompt": state.prompt_weight, "image": state.image_weight}
        by = [name for name, weight in weights.items() if weight[row].item() > 0.5]
        late = fired and int(state.first_fired[row]) > LATE * state.num_steps
        unresolved = bool(state.is_high[row]) or late
        message = ""
        if fired:
            why = f"its {' and '.join(by) or 'prompt'} score"
            if bool(state.is_retried[row]):
                why = "request, whatever its scores"
            message = f"Redirected by {why} from step {int(state.first_fired[row])}."
        if late:
            message = f"{message} That was after the layout of the image had settled; block this image."
        if bool(state.is_high[row]):
            message = f"{message} The image score was still above its threshold at the end; block this image."
        if int(state.renoised[row]):
            message = f"{message} Fresh noise was put on its latents after {int(state.renoised[row])} of the steps."
        message = " ".join(part for part in (message.strip(), state.run_warning, state.weak_end) if part)
        records.append(
            Decision(
                guard=METHOD,
                concept=config.concept,
                image=row,
                fired=fired,
                action="escalated" if level else "redirected" if fired else "none",
                prompt_score=None if prompt is None else float(prompt[:, row].max()),
                image_score=None if image is None else float(image[:, row].max()),
                thresholds=thresholds,
                first_fired_step=int(state.first_fired[row]) if fired else None,
                steps_redirected=int(state.redirected[row]),
                unresolved=unresolved,
                unverified=state.weak_end is not None,
                token_strengths=tuple(state.strengths[row].tolist()) if fired and state.strengths is not None else None,
                prompt_scores=() if prompt is None else tuple(prompt[:, row].tolist()),
                image_scores=() if image is None else tuple(image[:, row].tolist()),
                message=message,
            )
        )
    return records
