"""Candidates searched elsewhere, judged here: how an attack transfers to another guard or to other settings of the sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from saferedir.attacks.base import Attack, AttackConfig, Candidate, Proposals
from saferedir.errors import AttackError
from saferedir.prompts.sets import PromptItem
from saferedir.target import ImagePrompt, Inpainting, SoftPrompt, Target

#: relative difference of noise levels that latents from the middle of another run may have
SAME_LEVEL = 1e-2
#: relative difference of amplitudes up to which two frames are one
SAME_FRAME = 1e-3
#: fields of a candidate that are dataclasses of tensors and numbers
_PARTS = {"inpainting": Inpainting, "image_prompt": ImagePrompt}


class Replay(Attack[AttackConfig]):
    """Proposes one candidate as it was found, and searches nothing, or goes on with a search where that failed."""

    name: ClassVar[str] = "replay"
    keeps_best: ClassVar[bool] = False

    def __init__(self, candidate: Candidate, search: Attack[Any] | None = None) -> None:
        super().__init__()
        self.candidate, self.search = candidate, search

    def propose(self, target: Target, item: PromptItem, generator: torch.Generator) -> Proposals:
        """The candidate, then those of the search. AttackError where it cannot begin on this schedule."""
        start = start_on(target, self.candidate)
        latents = latents_on(target, self.candidate, start)
        yield replace(self.candidate, start=start, latents=latents, is_checkpoint=True, loss=float("nan"))
        if self.search is not None:
            yield from self.search.propose(target, item, generator)


def with_noise_level(candidate: Candidate, target: Target) -> Candidate:
    """The candidate with noise level and frame of where it begins on the target's schedule; what is noted already stays."""
    moment = target.moments[candidate.start]
    if candidate.noise_level is None and candidate.start:
        candidate = replace(candidate, noise_level=moment.noise_level)
    if candidate.amplitude is None and candidate.latents is not None:
        candidate = replace(candidate, amplitude=moment.amplitude)
    return candidate


def latents_on(target: Target, candidate: Candidate, start: int) -> Tensor | None:
    """The candidate's latents in the frame of the target's sampler; as they are where the frames agree or none was noted."""
    if candidate.latents is None or candidate.amplitude is None:
        return candidate.latents
    ratio = target.moments[start].amplitude / candidate.amplitude
    return candidate.latents if math.isclose(ratio, 1.0, rel_tol=SAME_FRAME) else ratio * candidate.latents


def start_on(target: Target, candidate: Candidate) -> int:
    """The evaluation of the target's schedule at which a candidate begins, whatever schedule it was found on.

    From the start of a run it begins at the start. From the middle it does where the noise level is nearest, and there the
    run puts noise on its clean image; latents that are noised already need a level that is theirs, within `SAME_LEVEL`.

    Raises:
        AttackError: there is no such level, or the candidate was saved without one and begins beyond this schedule.
    """
    if not candidate.start:
        return 0
    steps, level = len(target.moments), candidate.noise_level
    if level is None:
        if candidate.start < steps:
            return candidate.start
        raise AttackError(
            f"a candidate begins at evaluation {candidate.start}, and this run has {steps}; give the call its own steps."
        )
    start = target.evaluation_at(level)
    nearest = target.moments[start].noise_level
    if candidate.x0 is None and not math.isclose(nearest, level, rel_tol=SAME_LEVEL):
        raise AttackError(
            f"a candidate's latents have the noise level {level:.3g}, and the nearest of this run is {nearest:.3g}; give the "
            "call its own steps."
        )
    return start


def save_candidates(candidates: Sequence[Candidate], file: Path) -> None:
    """Write candidates, one a prompt, in order; they hold texts of prompts, so keep the file where those may be."""
    rows = [
        {
            **{
                name: getattr(entry, name)
                for name in ("prompt", "latents", "x0", "start", "noise_level", "amplitude", "seed", "label")
            },
            "arguments": dict(entry.arguments),
            "soft": [(soft.ids, soft.embeds, soft.text_encoder) for soft in entry.soft],
            **{name: vars(part) for name in _PARTS if (part := getattr(entry, name)) is not None},
        }
        for entry in candidates
    ]
    temporary = file.with_suffix(".tmp")
    torch.save(rows, temporary)
    temporary.replace(file)


def load_candidates(file: Path) -> list[Candidate]:
    """What `save_candidates` wrote."""
    rows: list[dict[str, Any]] = torch.load(file, weights_only=True)
    for row in rows:
        row["soft"] = tuple(SoftPrompt(*soft) for soft in row["soft"])
        row.update({name: part(**row[name]) for name, part in _PARTS.items() if name in row})
    return [Candidate(**row) for row in rows]
