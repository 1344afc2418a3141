"""UnlearnDiffAtk: tokens before the prompt by which the guarded model predicts the noise in an image of the concept.

Implements "To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy To Generate Unsafe Images ... For Now"
(arXiv:2310.11868): min over u of E ||eps - eps_guarded(z_t(x), t, f(tokens(u) + prompt))||^2, u on the simplex for each of k
tokens, one-hot samples forward and u's gradient backward, Adam, projection to the simplex by bisection; timestep by timestep,
judged after each.
Deviations: the guided prediction of the bare model for the prompt in place of the noise ("noise" is the published form), so
that guards that act on guidance count; the image is the bare model's own; the most likely tokens are judged; the gate term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from saferedir.attacks.base import Attack, AttackConfig, Candidate, Proposals
from saferedir.attacks.embeddings.search import first_text_encoder
from saferedir.attacks.gate_term import GateWeight, with_gates
from saferedir.attacks.references import mismatch, noised_references, reference_latents
from saferedir.attacks.text.wording import worded
from saferedir.prompts.sets import PromptItem
from saferedir.target import Target, Vocabulary


@dataclass(frozen=True)
class UnlearnDiffAtkConfig(AttackConfig):
    """Settings of UnlearnDiffAtk.

    Attributes:
        tokens: k, tokens before the prompt; 0 judges the prompt alone.
        timesteps: evaluations of the sampling that are taken, from the least noise to the most; None for all.
        iterations: at each of them.
        learning_rate, weight_decay: of Adam.
        objective: "bare", or "noise" as published.
        gate_weight: weight of the gate term; 0 for the published form.
        has_prompt: whether the prompt follows; without it the tokens have to say everything.
    """

    tokens: int = 3
    timesteps: int | None = 4
    iterations: int = 5
    learning_rate: float = 0.1
    weight_decay: float = 0.1
    objective: str = "bare"
    gate_weight: float = 0.1
    has_prompt: bool = True
    paper: ClassVar[dict[str, Any]] = {
        "tokens": 5, "timesteps": 50, "iterations": 40, "learning_rate": 0.01, "objective": "noise", "gate_weight": 0.0,
    }  # fmt: skip

    def __post_init__(self) -> None:
        self.require_whole("tokens", "iterations", at_least=0)
        self.require_whole("timesteps", at_least=1, or_none=True)
        self.require_number("learning_rate", above=0)
        self.require_number("weight_decay", "gate_weight", at_least=0)
        self.require_choice("objective", ("bare", "noise"))
        self.require_flag("has_prompt")


class UnlearnDiffAtk(Attack[UnlearnDiffAtkConfig]):
    """Searches tokens before the prompt through the guards, on the simplex."""

    name: ClassVar[str] = "unlearn-diff-atk"
    keeps_best: ClassVar[bool] = False
    is_adaptive: ClassVar[bool] = True
    config_class = UnlearnDiffAtkConfig

    def propose(self, target: Target, item: PromptItem, generator: torch.Generator) -> Proposals:
        """Every iteration; judged after each timestep."""
        config, encoder = self.config, first_text_encoder(target)
        if not config.tokens:
            return
        vocabulary = Vocabulary(encoder)
        allowed = vocabulary.allowed.nonzero()[:, 0]
        table = vocabulary.table[allowed]
        after = vocabulary.words(encoder.ids([item.text]))[0] if config.has_prompt else []
        room = encoder.length - encoder.first_word - 1
        after = after[: room - config.tokens]
        references = reference_latents(target, item.text, generator)
        order = _spread(len(target.moments), config.timesteps)
        plan = [evaluation for evaluation in order for _ in range(config.iterations)]
        samples = noised_references(target, item.text, references, generator, config.objective, plan)
        shares = simplex(torch.rand((config.tokens, len(allowed)), generator=generator)).to(table).requires_grad_(True)
        optimiser = torch.optim.Adam([shares], lr=config.learning_rate, weight_decay=config.weight_decay)
        weight = GateWeight(config.gate_weight)
        for step, sample in enumerate(samples, 1):
            optimiser.zero_grad()
            picked = torch.multinomial(shares.detach().cpu(), 1, generator=generator)[:, 0].to(allowed.device)
            hard = torch.nn.functional.one_hot(picked, len(allowed)).to(table)
            hard = hard + shares - shares.detach()
            wording = worded(vocabulary, [*allowed[picked].tolist(), *after])
            embeds = torch.cat([hard @ table, vocabulary.table[torch.tensor(after, dtype=torch.long)]])
            soft = wording.soft(embeds, target.embed(wording.ids).detach())
            prediction = target.predict(sample.x_t, sample.evaluation, [soft], prompt=[wording.prompt])
            loss = with_gates(mismatch(prediction, sample, config.objective), target, [prediction], weight)
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                shares.copy_(simplex(shares))
            likely = worded(vocabulary, [*allowed[shares.argmax(dim=1)].tolist(), *after])
            feedback = yield Candidate(
                likely.text, loss=float(loss.detach()), is_checkpoint=step % config.iterations == 0
            )
            weight.update(feedback)


def simplex(values: Tensor, iterations: int = 60) -> Tensor:
    """Rows (n, V) projected to the simplex: max(0, value - shift) with the shift, by bisection, for which they sum to 1."""
    low = values.min(dim=1, keepdim=True).values - 1
    high = values.max(dim=1, keepdim=True).values
    for _ in range(iterations):
        middle = (low + high) / 2
        is_too_much = torch.relu(values - middle).sum(dim=1, keepdim=True) > 1
        low, high = torch.where(is_too_much, middle, low), torch.where(is_too_much, high, middle)
    projected = torch.relu(values - (low + high) / 2)
    return projected / projected.sum(dim=1, keepdim=True)


def _spread(count: int, wanted: int | None) -> list[int]:
    """`wanted` of the evaluations, evenly, from the last to the first."""
    number = count if wanted is None else min(wanted, count)
    return [round((count - 1) * (1 - index / max(1, number - 1))) for index in range(number)]
