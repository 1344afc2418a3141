"""Obfuscation: the prompt misspelt, in digits, in letters that look alike, cut apart, behind clauses, or with tokens weighted.

Static: no model is asked. Every variant is tried on the bare model, too: a variant that the bare model does not understand
either says nothing about a guard ("live" variants are those that it does).
Deviations: token weights multiply token embeddings before the text encoder, one encoder only, where pipelines with bracket
syntax scale its states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from saferedir.attacks.base import Attack, AttackConfig, Candidate, Proposals
from saferedir.attacks.text.transforms import TRANSFORMS, transformed
from saferedir.prompts.sets import ConceptPrompts, PromptItem, PromptSet
from saferedir.target import SoftPrompt, Target


@dataclass(frozen=True)
class ObfuscationConfig(AttackConfig):
    """Settings of obfuscation.

    Attributes:
        transforms: names of transforms, or several of them joined with "+".
        levels: shares of letters or words to touch, each in [0, 1].
        variants: texts of each transform and level.
        words: words of the concept, the only ones that are touched; all words where there are none.
        weights: factors of the token embeddings of those words; none by default, since they need more than a text.
        seed: of the transforms.
    """

    transforms: tuple[str, ...] = (
        "typos", "leetspeak", "homoglyphs", "full-width", "combining-marks", "hyphens", "dots", "zero-width", "long-prompt",
        "typos+long-prompt",
    )  # fmt: skip
    levels: tuple[float, ...] = (0.2,)
    variants: int = 1
    words: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    seed: int = 0
    paper: ClassVar[dict[str, Any]] = {"levels": (0.05, 0.1, 0.2, 0.5, 1.0), "variants": 5, "weights": (0.5, 1.3, 1.6)}

    def __post_init__(self) -> None:
        known = all(part in TRANSFORMS for name in self.transforms for part in name.split("+"))
        self.require(bool(self.transforms) and known, "transforms", f"some of {', '.join(TRANSFORMS)}")
        self.require(bool(self.levels) and all(0 <= level <= 1 for level in self.levels), "levels", "shares in [0, 1]")
        self.require_whole("variants", at_least=1)
        self.require_whole("seed")

    def to_dict(self) -> dict[str, Any]:
        """Plain data; words of the concept are counted, not named."""
        return {**super().to_dict(), "words": len(self.words)}


class Obfuscation(Attack[ObfuscationConfig]):
    """Writes the prompt otherwise."""

    name: ClassVar[str] = "obfuscation"
    keeps_best: ClassVar[bool] = False
    stops_on_success: ClassVar[bool] = False
    reports_live: ClassVar[bool] = True
    config_class = ObfuscationConfig

    def prompts(self, concept: ConceptPrompts) -> Mapping[str, PromptSet]:
        """A set for each transform, by its first level, one variant."""
        forget, level = concept.forget, self.config.levels[0]
        return {
            name: dataclasses.replace(
                forget,
                name=name,
                items=tuple(
                    dataclasses.replace(
                        item, text=transformed(item.text, name, level, self.config.seed, self.config.words)
                    )
                    for item in forget.items
                ),
                protocol=f"{forget.protocol}/{name}-{level:g}",
            )
            for name in self.config.transforms
        }

    def propose(self, target: Target, item: PromptItem, generator: torch.Generator) -> Proposals:
        """One candidate for each transform, level and variant, then for each weight."""
        config = self.config
        for name in config.transforms:
            for level in config.levels:
                for variant in range(config.variants):
                    text = transformed(item.text, name, level, config.seed + variant, config.words)
                    yield Candidate(text, is_checkpoint=True, label=f"{name} {level:g}")
        for factor in config.weights:
            soft = _weighted(target, item.text, config.words, factor)
            yield Candidate(item.text, (soft,), is_checkpoint=True, label=f"weight {factor:g}")


def _weighted(target: Target, text: str, words: tuple[str, ...], factor: float) -> SoftPrompt:
    """The text with the embeddings of the words' tokens multiplied."""
    encoder = target.text_encoders[0]
    ids = encoder.ids([text])
    inside = encoder.words(ids)
    if words:
        tokens = {int(token) for row, keep in zip(*_read(encoder, words), strict=True) for token in row[keep]}
        inside = inside & torch.isin(ids, torch.tensor(sorted(tokens), device=ids.device))
    embeds = target.embed(ids).detach()
    return SoftPrompt(ids, torch.where(inside[..., None], factor * embeds, embeds))


def _read(encoder: Any, words: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = encoder.ids(list(words))
    return ids, encoder.words(ids)
