"""The search that attacks with token embeddings share: pull the guarded prediction to the bare model's, with the gates shut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from saferedir.attacks.base import AttackConfig, Candidate, Proposals
from saferedir.attacks.gate_term import GateWeight, with_gates
from saferedir.attacks.references import mismatch, noised_references, reference_latents
from saferedir.errors import AttackError
from saferedir.pipelines.text_encoders import TextEncoder
from saferedir.prompts.sets import PromptItem
from saferedir.target import SoftPrompt, Target
from saferedir.target.soft_prompt import table_of

#: how much an earlier loss counts in the running mean by which candidates are compared
MEMORY = 0.9


@dataclass(frozen=True)
class SoftConfig(AttackConfig):
    """Settings of a search over token embeddings.

    Attributes:
        steps: optimiser steps.
        learning_rate: of AdamW, in units of the root mean square of the encoder's token embeddings.
        weight_decay: of AdamW.
        references: images of the bare model that are noised.
        samples: noised references a step (expectation over noise and evaluations).
        objective: "bare" to match the bare model's guided prediction; "noise" to match the noise by the conditional row alone, as
            published for edited weights, which does not see a guard that acts on guidance.
        gate_weight: weight of the gate term to begin with; 0 for the published form.
        checkpoint: every how many steps the embeddings are judged.
    """

    steps: int = 40
    learning_rate: float = 0.3
    weight_decay: float = 0.0
    references: int = 2
    samples: int = 2
    objective: str = "bare"
    gate_weight: float = 0.1
    checkpoint: int = 10
    paper: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        self.require_whole("steps", at_least=0)
        self.require_whole("references", "samples", "checkpoint", at_least=1)
        self.require_number("learning_rate", above=0)
        self.require_number("weight_decay", "gate_weight", at_least=0)
        self.require_choice("objective", ("bare", "noise"))


def first_text_encoder(target: Target) -> TextEncoder:
    """The encoder whose embeddings are searched; AttackError for a family without facts about its encoders."""
    if not target.text_encoders:
        raise AttackError(
            f"a {type(target.pipe).__name__} takes no token embeddings yet; use an attack on latents or on texts."
        )
    return target.text_encoders[0]


def search_embeds(
    target: Target, item: PromptItem, generator: torch.Generator, config: SoftConfig, text: str, free: Tensor
) -> Proposals:
    """Candidates whose embeddings (1, L, d) begin as those of `text` and move where `free` (L,) says.

    Minimises E ||eps - eps_guarded(x_t, t, embeddings)||^2 over noised images of the bare model, plus the gate term. Losses are
    compared by their running mean, since each step has other noise.
    """
    ids = first_text_encoder(target).ids([text])
    start = target.embed(ids).detach()
    unit = float(
        target.embed(torch.arange(len(_table(target)), device=ids.device)[None]).detach().float().square().mean().sqrt()
    )
    references = reference_latents(target, item.text, generator, config.references)
    samples = noised_references(target, item.text, references, generator, config.objective)
    mask, change = free.to(start)[None, :, None], torch.zeros_like(start, dtype=torch.float32, requires_grad=True)
    optimiser = torch.optim.AdamW([change], lr=config.learning_rate, weight_decay=config.weight_decay)
    weight, mean = GateWeight(config.gate_weight), None
    for step in range(config.steps + 1):
        total = 0.0
        optimiser.zero_grad()
        embeds = start + unit * mask * change.to(start)
        chosen = [next(samples) for _ in range(config.samples)]
        is_last = step == config.steps
        for index, sample in enumerate(chosen):
            soft = SoftPrompt(ids, embeds)
            prediction = target.predict(sample.x_t, sample.evaluation, [soft], prompt=[text])
            loss = with_gates(mismatch(prediction, sample, config.objective), target, [prediction], weight)
            total += float(loss.detach()) / len(chosen)
            if loss.requires_grad and not is_last:
                (loss / len(chosen)).backward(retain_graph=index + 1 < len(chosen))
        mean = total if mean is None else MEMORY * mean + (1 - MEMORY) * total
        feedback = yield Candidate(
            text,
            (SoftPrompt(ids, embeds.detach()),),
            loss=mean,
            is_checkpoint=is_last or (step > 0 and step % config.checkpoint == 0),
        )
        weight.update(feedback)
        optimiser.step()


def _table(target: Target) -> Tensor:
    weight: Tensor = table_of(first_text_encoder(target)).weight  # type: ignore[assignment]
    return weight
