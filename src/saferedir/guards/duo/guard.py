"""DUO as a guard: attach puts its LoRA on the denoiser, detach takes exactly that one off again.

Implements docs/methods/duo.md (13), the use of "Direct Unlearning Optimization for Robust and Safe Text-to-Image Models"
(arXiv:2407.21035). Shapes: as in `guards.weights`, where the guard itself is.
Deviations: the LoRA is not fused, so that base weights stay untouched and guards can be taken off in any order.
"""

from __future__ import annotations

from saferedir.guards.duo.config import DUOConfig
from saferedir.guards.weights import WeightGuard


class DUO(WeightGuard[DUOConfig]):
    """Weights that have unlearned a concept from image pairs; see `WeightGuard`."""

    method = "duo"
    config_class = DUOConfig
    title = "DUO"
    paper = "Direct Unlearning Optimization (arXiv:2407.21035)"
    origin = 'A LoRA that has unlearned "{concept}" from pairs of images with and without it.'
