"""UCE as a guard: a closed-form edit of the text projections, carried by a LoRA of full rank.

Implements the use of "Unified Concept Editing in Diffusion Models" (arXiv:2308.14761), docs/methods/uce.md (6).
Shapes: as in `guards.weights`, where the guard itself is; `training/uce/` solves for the weights.
Deviations: the edit W* - W is kept beside the weights, as the product of two factors, and not written over them.
"""

from __future__ import annotations

from dataclasses import dataclass

from saferedir.guards.weights import WeightConfig, WeightGuard


@dataclass(frozen=True, kw_only=True)
class UCEConfig(WeightConfig):
    """Settings of a UCE guard (arXiv:2308.14761): those of `WeightConfig`, with the rank that the edit has."""

    targets: tuple[str, ...] = ("attn2.to_k", "attn2.to_v")


class UCE(WeightGuard[UCEConfig]):
    """Text projections that project a concept as what replaces it; see `WeightGuard`."""

    method = "uce"
    config_class = UCEConfig
    title = "UCE"
    paper = "Unified Concept Editing (arXiv:2308.14761)"
    origin = 'A closed-form edit of the text projections: prompts for "{concept}" are projected as what replaces it.'
