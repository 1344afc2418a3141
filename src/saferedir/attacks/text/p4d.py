"""P4D: a text by which the guarded model predicts what the bare model predicts for the prompt.

Implements "Prompting4Debugging" (arXiv:2309.06135): min over e of ||eps_bare(z_t, t, f(p)) - eps_guarded(z_t, t,
f(project(e)))||^2, where project takes each free token to the nearest one of the vocabulary by cosine and the gradient at that
point is applied to e. The form with N free tokens.
Deviations: both predictions are guided, so that guards that act on guidance count; evaluations of the sampler in place of
all training timesteps; texts are compared by a running mean of the loss in place of the similarity of an image to a target; the
gate term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from saferedir.attacks.base import Attack, AttackConfig, Candidate, Proposals
from saferedir.attacks.embeddings.search import first_text_encoder
from saferedir.attacks.gate_term import GateWeight, with_gates
from saferedir.attacks.references import mismatch, noised_references, reference_latents
from saferedir.attacks.text.wording import random_tokens, worded
from saferedir.prompts.sets import PromptItem
from saferedir.target import Target, Vocabulary


@dataclass(frozen=True)
class P4DConfig(AttackConfig):
    """Settings of P4D.

    Attributes:
        steps: optimiser steps.
        tokens: N, free tokens.
        learning_rate, weight_decay: of AdamW.
        samples: noised references a step.
        objective: "bare", or "noise" to match the noise by the conditional row alone.
        gate_weight: weight of the gate term; 0 for the published form.
        starts_with_prompt: whether the first tokens are those of the prompt, in place of random ones.
        checkpoint: every how many steps the text is judged.
    """

    steps: int = 30
    tokens: int = 4
    learning_rate: float = 0.1
    weight_decay: float = 0.1
    samples: int = 1
    objective: str = "bare"
    gate_weight: float = 0.1
    starts_with_prompt: bool = False
    checkpoint: int = 10
    paper: ClassVar[dict[str, Any]] = {"steps": 3000, "tokens": 16, "checkpoint": 50, "gate_weight": 0.0}

    def __post_init__(self) -> None:
        self.require_whole("steps", at_least=0)
        self.require_whole("tokens", "samples", "checkpoint", at_least=1)
        self.require_number("learning_rate", above=0)
        self.require_number("weight_decay", "gate_weight", at_least=0)
        self.require_choice("objective", ("bare", "noise"))
        self.require_flag("starts_with_prompt")


class P4D(Attack[P4DConfig]):
    """Searches a text through the guards, by projection to the nearest tokens."""

    name: ClassVar[str] = "p4d"
    keeps_best: ClassVar[bool] = False
    is_adaptive: ClassVar[bool] = True
    config_class = P4DConfig

    def propose(self, target: Target, item: PromptItem, generator: torch.Generator) -> Proposals:
        """Every step of the search."""
        config, encoder = self.config, first_text_encoder(target)
        vocabulary = Vocabulary(encoder)
        tokens = random_tokens(vocabulary, config.tokens, generator)
        if config.starts_with_prompt:
            own_tokens = vocabulary.words(encoder.ids([item.text]))[0][: config.tokens]
            tokens = own_tokens + tokens[len(own_tokens) :]
        references = reference_latents(target, item.text, generator)
        samples = noised_references(target, item.text, references, generator, config.objective)
        free = vocabulary.table[torch.tensor(tokens)].clone().requires_grad_(True)
        optimiser = torch.optim.AdamW([free], lr=config.learning_rate, weight_decay=config.weight_decay)
        weight = GateWeight(config.gate_weight)
        losses: dict[str, list[float]] = {}
        best = (float("inf"), "")
        for step in range(config.steps + 1):
            optimiser.zero_grad()
            tokens = vocabulary.nearest(free).tolist()
            wording = worded(vocabulary, tokens)
            framed = target.embed(wording.ids).detach()
            projected = vocabulary.table[torch.tensor(tokens)].clone().requires_grad_(True)
            total = 0.0
            is_last = step == config.steps
            for _ in range(config.samples):
                sample = next(samples)
                soft = wording.soft(projected, framed)
                prediction = target.predict(sample.x_t, sample.evaluation, [soft], prompt=[wording.prompt])
                apart = mismatch(prediction, sample, config.objective)
                loss = with_gates(apart, target, [prediction], weight) / config.samples
                total += float(loss.detach())
                loss.backward()
            noted = losses.setdefault(wording.text, [])
            noted.append(total)
            best = min(best, (sum(noted) / len(noted), wording.text))
            is_checkpoint = is_last or (step > 0 and step % config.checkpoint == 0)
            feedback = yield Candidate(
                best[1] if is_checkpoint else wording.text, loss=total, is_checkpoint=is_checkpoint
            )
            weight.update(feedback)
            free.grad = projected.grad
            optimiser.step()
