"""What the guards say to a prompt, without an image: one denoiser evaluation of the pipeline's own loop, then it is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from saferedir.attach import attach, find_seam
from saferedir.decisions import Decision
from saferedir.errors import GuardError
from saferedir.guard import Guard, GuardConfig
from saferedir.guards.base import Step
from saferedir.pipelines.families import family_of
from saferedir.server.engine.rows import Outcome
from saferedir.target.partial import run_part


class _LastOfAll(Guard[GuardConfig]):
    """Stands behind the guards, and keeps their verdicts of the first step."""

    method = "prompt_check"

    def __init__(self) -> None:
        super().__init__(GuardConfig(concept="none"))
        self.read: Callable[[], list[list[Decision]]] = list
        self.verdicts: list[list[Decision]] = []

    def on_step_end(self, step: Step, latents: Tensor) -> Tensor:
        self.verdicts = self.read()
        return latents


def check_prompts(pipe: Any, guards: Sequence[Guard[Any]], call: dict[str, Any]) -> list[Outcome]:
    """One outcome a prompt, with the guards' decisions at the first step, as far as they rest on the prompt.

    Args:
        call: arguments of a pipeline call, `prompt` a list.

    Raises:
        GuardError: a guard could not do its work.
    """
    last, prompts = _LastOfAll(), call["prompt"]
    with attach(pipe, [*guards, last]), torch.no_grad():
        seam = find_seam(pipe, family_of(pipe))
        if seam is None:
            raise GuardError("the guards are not on this pipeline, so nothing is known of the prompts.")
        last.read = seam.verdicts_so_far
        run_part(seam, {**call, "output_type": "latent"}, None, 0, 1)
    verdicts = last.verdicts[:-1]
    due = [len(prompts) * max(1, len(guard.decision_names)) for guard in guards]
    if list(map(len, verdicts)) != due:
        raise GuardError("a guard gave no decision, so nothing is known of the prompts.")
    decided = [_of_prompt(d, guard.name) for guard, of in zip(guards, verdicts, strict=True) for d in of]
    return [
        Outcome(
            None, False, tuple(d for d in decided if d.image == row), tokens, expected=sum(due) // max(1, len(prompts))
        )
        for row, tokens in enumerate(_tokens(pipe, prompts))
    ]  # fmt: skip


def _of_prompt(decision: Decision, name: str) -> Decision:
    """A decision without what it says of an image, of which one step knows little."""
    return replace(
        decision, name=decision.name or name, image_score=None, image_scores=(), unresolved=False, unverified=False
    )


def _tokens(pipe: Any, prompts: Sequence[str]) -> list[tuple[str, ...]]:
    """The tokens of each prompt beside a decision's `token_strengths`; "" for those that mark beginning, end and padding."""
    tokenizer = getattr(pipe, "tokenizer", None)
    if tokenizer is None:
        return [() for _ in prompts]
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor takes images first
    ids = tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=tokenizer.model_max_length
    ).input_ids
    special = set(tokenizer.all_special_ids)
    return [
        tuple("" if i in special else word.removesuffix("</w>") for i, word in zip(row, words, strict=True))
        for row in ids
        if (words := tokenizer.convert_ids_to_tokens(row))
    ]
