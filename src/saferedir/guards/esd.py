"""ESD as a guard: a LoRA that was fine-tuned to predict away from a concept.

Implements the use of "Erasing Concepts from Diffusion Models" (arXiv:2303.07345), docs/methods/esd.md (4).
Shapes: as in `guards.weights`, where the guard itself is; `training/esd` trains the weights.
Deviations: a LoRA in place of new weights, so that it can be taken off again.
"""

from __future__ import annotations

from dataclasses import dataclass

from saferedir.guards.weights import WeightConfig, WeightGuard


@dataclass(frozen=True, kw_only=True)
class ESDConfig(WeightConfig):
    """Settings of an ESD guard (arXiv:2303.07345): those of `WeightConfig`."""

    targets: tuple[str, ...] = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")


class ESD(WeightGuard[ESDConfig]):
    """Weights whose prediction for a concept is turned round; see `WeightGuard`."""

    method = "esd"
    config_class = ESDConfig
    title = "ESD"
    paper = "Erasing Concepts from Diffusion Models (arXiv:2303.07345)"
    origin = 'A LoRA that was fine-tuned on its own images to predict away from "{concept}".'
