"""DUO as a guard: attach puts its LoRA on the denoiser, detach takes exactly that one off again.

Implements docs/methods/duo.md (13), the use of "Direct Unlearning Optimization for Robust and Safe Text-to-Image Models"
(arXiv:2407.21035). Shapes: lora_A.weight (r, in), lora_B.weight (out, r); delta W = weight * B A.
`model.safetensors` is an ordinary LoRA file: `pipe.load_lora_weights(folder, weight_name="model.safetensors")` reads it.
Deviations: the LoRA is not fused, so that base weights stay untouched and guards can be taken off in any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from saferedir.decisions import Decision
from saferedir.errors import GuardConfigError
from saferedir.guards.base import Guard, Run
from saferedir.guards.duo.card import model_card
from saferedir.guards.duo.config import DUOConfig
from saferedir.pipelines.lora import PREFIX, ensure_adapter, remove_adapter


class DUO(Guard[DUOConfig]):
    """Weights that have unlearned a concept; it acts on every picture, whatever the prompt."""

    method = "duo"
    config_class = DUOConfig

    def __init__(self, config: DUOConfig, lora: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(config)
        #: `<module>.lora_A.weight` and `<module>.lora_B.weight` of every adapted layer
        self.lora: dict[str, Tensor] = {}
        if lora is not None:
            self.load_tensors({f"{config.component}.{name}": value for name, value in lora.items()})

    @property
    def adapter_name(self) -> str:
        """Name of this guard's adapter in peft; no two living guards share one, copies of a guard included."""
        return f"{PREFIX}{self.method}_{id(self):x}"

    def with_weight(self, weight: float) -> Self:
        """Another guard with the same LoRA at another weight."""
        return type(self)(replace(self.config, weight=weight), self.lora)

    def load(self, denoiser: nn.Module) -> None:
        """Have the LoRA on the denoiser, acting; see `Guard.load`."""
        if not self.lora:
            raise GuardConfigError(f"the DUO guard for {self.config.concept!r} has no weights yet; train or load one.")
        ensure_adapter(denoiser, self.adapter_name, self.lora, self.config.weight)

    def unload(self, denoiser: nn.Module) -> None:
        """Take the LoRA off; see `Guard.unload`."""
        remove_adapter(denoiser, self.adapter_name)

    def verdict(self, run: Run, state: Any) -> list[Decision]:
        """Weights cannot tell one picture from another: every one of them was drawn by the edited denoiser."""
        acted = self.config.weight != 0
        message = (
            f"drawn with weights that have unlearned {self.config.concept!r} (LoRA at weight {self.config.weight:g}); "
            "whether the prompt asked for it is not looked at."
        )
        return [
            Decision(
                guard=self.method,
                concept=self.config.concept,
                image=image,
                fired=acted,
                action="edited" if acted else "none",
                first_fired_step=0 if acted else None,
                steps_redirected=run.num_evaluations if acted else 0,
                message=message if acted else "",
            )
            for image in range(run.batch_size)
        ]

    def tensors(self) -> dict[str, Tensor]:
        return {f"{self.config.component}.{name}": value for name, value in self.lora.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        prefix = f"{self.config.component}."
        found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if not found or len(found) != len(tensors):
            stray = next((name for name in tensors if not name.startswith(prefix)), "nothing")
            raise GuardConfigError(
                f"a DUO guard holds LoRA weights named {prefix}…, but found {stray}; train it again."
            )
        for name, value in found.items():
            module, _, part = name.rpartition(".lora_")
            axis = {"A.weight": 0, "B.weight": 1}.get(part)
            twin = f"{module}.lora_{'B' if part.startswith('A') else 'A'}.weight"
            if axis is None or value.ndim not in (2, 4) or value.shape[axis] != self.config.rank or twin not in found:
                raise GuardConfigError(
                    f"{name} {tuple(value.shape)} is no half of a rank-{self.config.rank} LoRA; train the guard again."
                )
            if not torch.isfinite(value).all():
                raise GuardConfigError(f"{name} holds values that are not finite; download or train the guard again.")
        self.lora = {name: value.detach().float().cpu() for name, value in found.items()}

    def card(self) -> str:
        return model_card(self.config)
