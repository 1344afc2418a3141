"""Candidates searched elsewhere, judged here: how an attack transfers to another guard or to other settings of the sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from saferedir.attacks.base import Attack, AttackConfig, Candidate, Proposals
from saferedir.errors import AttackError
from saferedir.prompts.sets import PromptItem
from saferedir.target import ImagePrompt, Inpainting, SoftPrompt, Target

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
        """The candidate, then those of the search. AttackError where it begins beyond this schedule."""
        steps = len(target.moments)
        if self.candidate.start >= steps:
            raise AttackError(
                f"a candidate begins at evaluation {self.candidate.start}, and this run has {steps}; give the call its own steps."
            )
        yield replace(self.candidate, is_checkpoint=True, loss=float("nan"))
        if self.search is not None:
            yield from self.search.propose(target, item, generator)


def save_candidates(candidates: Sequence[Candidate], file: Path) -> None:
    """Write candidates, one a prompt, in order; they hold texts of prompts, so keep the file where those may be."""
    rows = [
        {
            **{name: getattr(entry, name) for name in ("prompt", "latents", "x0", "start", "seed", "label")},
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
