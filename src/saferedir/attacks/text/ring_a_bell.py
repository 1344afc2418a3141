"""Ring-A-Bell: a text whose embedding is the prompt's, moved along the concept's direction. No diffusion model is asked.

Implements "Ring-A-Bell! How Reliable are Concept Removal Methods for Diffusion Models?" (arXiv:2310.10012): c = mean_i of
f(p_i with the concept) - f(p_i without it), then a genetic search over K tokens for min of ||f(text) - (f(p) + eta c)||^2.
Deviations: the best individuals stay as they are (`is_faithful` also mutates survivors, as released); an individual is scored
as its text is read again; pairs of prompts are the caller's, by default the prompt and the empty one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from saferedir.attacks.base import Attack, AttackConfig, Candidate, Proposals
from saferedir.attacks.embeddings.search import first_text_encoder
from saferedir.attacks.text.wording import random_tokens
from saferedir.errors import AttackError
from saferedir.prompts.sets import PromptItem
from saferedir.target import Target, Vocabulary


@dataclass(frozen=True)
class RingABellConfig(AttackConfig):
    """Settings of Ring-A-Bell.

    Attributes:
        population: individuals.
        generations: of the search.
        tokens: K, length of an individual.
        eta: how far along the concept's direction.
        crossover: share of children with two parents.
        mutation: share of children with one token replaced.
        with_concept, without_concept: prompts p_i with the concept, and the same without it.
        seed_prompt: the prompt p; None for the attacked one.
        is_faithful: also mutate survivors, so that the best can be lost.
        checkpoint: every how many generations the best text is judged.
    """

    population: int = 32
    generations: int = 20
    tokens: int = 8
    eta: float = 3.0
    crossover: float = 0.5
    mutation: float = 0.25
    with_concept: tuple[str, ...] = ()
    without_concept: tuple[str, ...] = ()
    seed_prompt: str | None = None
    is_faithful: bool = False
    checkpoint: int = 10
    paper: ClassVar[dict[str, Any]] = {"population": 200, "generations": 3000, "tokens": 16, "checkpoint": 500}

    def __post_init__(self) -> None:
        self.require_whole("generations", at_least=0)
        self.require_whole("population", at_least=4)
        self.require_whole("tokens", "checkpoint", at_least=1)
        self.require_number("eta")
        self.require_number("crossover", "mutation", at_least=0, at_most=1)
        self.require(
            len(self.with_concept) == len(self.without_concept), "with_concept", "as many prompts as without_concept"
        )
        self.require_flag("is_faithful")

    def to_dict(self) -> dict[str, Any]:
        """Plain data; prompts are counted, not named."""
        counts = {"with_concept": len(self.with_concept), "without_concept": len(self.without_concept)}
        return {**super().to_dict(), **counts, "seed_prompt": self.seed_prompt is not None}


class RingABell(Attack[RingABellConfig]):
    """Searches a text by its embedding alone."""

    name: ClassVar[str] = "ring-a-bell"
    config_class = RingABellConfig

    def propose(self, target: Target, item: PromptItem, generator: torch.Generator) -> Proposals:
        """Every generation of the search."""
        config, encoder = self.config, first_text_encoder(target)
        vocabulary = Vocabulary(encoder)
        room = encoder.length - encoder.first_word - 1
        if config.tokens > room:
            raise AttackError(
                f"RingABellConfig.tokens is {config.tokens}; expected at most {room}, which this encoder reads."
            )

        def states(texts: list[str]) -> Tensor:
            with torch.no_grad():
                return encoder.states(encoder.ids(texts))[0]

        with_concept = list(config.with_concept) or [item.text]
        direction = (states(with_concept) - states(list(config.without_concept) or [""])).mean(dim=0)
        seed = item.text if config.seed_prompt is None else config.seed_prompt
        wanted = states([seed])[0] + config.eta * direction

        def scored(rows: list[list[int]]) -> list[tuple[float, list[int]]]:
            read_states = states(vocabulary.texts(vocabulary.ids(rows)))
            losses = (read_states - wanted).square().sum(dim=(1, 2)).tolist()
            return list(zip(losses, rows, strict=True))

        people = scored([random_tokens(vocabulary, config.tokens, generator) for _ in range(config.population)])
        for generation in range(config.generations + 1):
            people.sort(key=lambda person: person[0])
            loss, tokens = people[0]
            is_last = generation == config.generations
            yield Candidate(
                vocabulary.texts(vocabulary.ids([tokens]))[0],
                loss=loss,
                is_checkpoint=is_last or (generation > 0 and generation % config.checkpoint == 0),
            )
            if is_last:
                return
            survivors = people[: config.population // 2]
            parents = [tokens for _, tokens in survivors]
            children = [self._child(parents, vocabulary, generator) for _ in range(config.population - len(survivors))]
            if config.is_faithful:
                survivors = scored([self._mutated(tokens, vocabulary, generator) for tokens in parents])
            people = survivors + scored(children)

    def _child(self, parents: list[list[int]], vocabulary: Vocabulary, generator: torch.Generator) -> list[int]:
        first, second = (parents[int(torch.randint(len(parents), (1,), generator=generator))] for _ in range(2))
        child = list(first)
        if float(torch.rand((), generator=generator)) < self.config.crossover:
            cut = int(torch.randint(len(first) + 1, (1,), generator=generator))
            child = first[:cut] + second[cut:]
        return self._mutated(child, vocabulary, generator)

    def _mutated(self, tokens: list[int], vocabulary: Vocabulary, generator: torch.Generator) -> list[int]:
        changed = list(tokens)
        if float(torch.rand((), generator=generator)) < self.config.mutation:
            spot = int(torch.randint(len(tokens), (1,), generator=generator))
            changed[spot] = random_tokens(vocabulary, 1, generator)[0]
        return changed
