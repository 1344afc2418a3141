"""WeightGuard: the base of guards that are a LoRA of the denoiser. Attach puts it on, detach takes exactly that one off again.

A method adds its name, a config class and how its weights come about (`guards/duo`, `uce`, `esd`). Shapes: lora_A.weight (r, in),
lora_B.weight (out, r); W' = W + weight B A. `model.safetensors` is an ordinary LoRA file:
`pipe.load_lora_weights(folder, weight_name="model.safetensors")` reads it. The LoRA is not fused, so that base weights stay
untouched, to the bit, and guards can be taken off in any order; `saferedir.bake` merges it for good.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from saferedir.decisions import Decision
from saferedir.errors import GuardConfigError
from saferedir.guards.base import Guard, GuardConfig, Run
from saferedir.guards.weight_card import weight_card
from saferedir.pipelines.lora import PREFIX, ensure_adapter, remove_adapter
from saferedir.utils.checks import is_nonempty_str

#: attributes of a pipeline that may hold the denoiser
COMPONENTS = ("unet", "transformer")


@dataclass(frozen=True, kw_only=True)
class WeightConfig(GuardConfig):
    """Settings of a guard that is a LoRA of the denoiser.

    Attributes:
        component: attribute of the pipeline that holds the adapted denoiser, "unet" or "transformer".
        rank: r of the LoRA, whose alpha equals it (so that any LoRA loader scales it rightly).
        targets: ends of the names of the adapted projections.
        weight: factor on the LoRA's delta; several concepts are several guards, whose weighted deltas add up.
    """

    component: str = "unet"
    rank: int = 32
    targets: tuple[str, ...] = ()
    weight: float = 1.0

    def validate(self) -> None:
        self.require_choice("component", COMPONENTS)
        self.require_whole("rank", at_least=1)
        is_named = isinstance(self.targets, tuple) and bool(self.targets) and all(map(is_nonempty_str, self.targets))
        self.require(is_named, "targets", "at least one name of a projection")
        self.require_number("weight")


WeightConfigT = TypeVar("WeightConfigT", bound=WeightConfig)


class WeightGuard(Guard[WeightConfigT]):
    """Weights that have unlearned a concept; they act on every image, whatever the prompt."""

    config_class = WeightConfig
    always_acts: ClassVar[bool] = True
    #: how the method is called in sentences
    title: ClassVar[str] = ""
    #: its paper's name, for the card
    paper: ClassVar[str] = ""
    #: what its card says first of the LoRA; {concept} stands for the concept
    origin: ClassVar[str] = ""

    def __init__(self, config: WeightConfigT, lora: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(config)
        #: `<module>.lora_A.weight` and `<module>.lora_B.weight` of every adapted layer
        self.lora: dict[str, Tensor] = {}
        self._has_delta = False
        if lora is not None:
            self.load_tensors({f"{config.component}.{name}": value for name, value in lora.items()})

    @property
    def adapter_name(self) -> str:
        """Name of this guard's adapter in peft; no two living guards share one, copies of a guard included."""
        return f"{PREFIX}{self.method}_{id(self):x}"

    def with_weight(self, weight: float) -> Self:
        """Another guard with the same LoRA at another weight."""
        other = type(self)(replace(self.config, weight=weight), self.lora)
        other.image_verifier = self.image_verifier
        return other

    def deltas(self) -> dict[str, Tensor]:
        """What is added to the weight of each adapted layer, in float64: weight B A, as (out, in) or (out, in, kh, kw)."""
        deltas = {}
        for name, down in self.lora.items():
            module, _, part = name.rpartition(".lora_")
            if part == "A.weight":
                up = self.lora[f"{module}.lora_B.weight"]
                product = up.double().flatten(1) @ down.double().flatten(1)
                deltas[module] = self.config.weight * product.reshape(up.shape[0], *down.shape[1:])
        return deltas

    def load(self, denoiser: nn.Module) -> None:
        """Have the LoRA on the denoiser, acting; see `Guard.load`."""
        self.require_weights()
        ensure_adapter(denoiser, self.adapter_name, self.lora, self.config.weight)

    def unload(self, denoiser: nn.Module) -> None:
        """Take the LoRA off; see `Guard.unload`."""
        remove_adapter(denoiser, self.adapter_name)

    def require_weights(self) -> None:
        """Raise GuardConfigError if this guard was neither trained nor loaded."""
        if not self.lora:
            raise GuardConfigError(
                f"the {self.title} guard for {self.config.concept!r} has no weights yet; train or load one."
            )

    @property
    def is_zero(self) -> bool:
        """Whether the LoRA changes nothing: weight 0, or one half of every layer all zero."""
        return self.config.weight == 0 or not self._has_delta

    def require_effect(self) -> None:
        """Raise GuardConfigError if the LoRA changes nothing."""
        if self.is_zero:
            raise GuardConfigError(
                f"the {self.title} guard for {self.config.concept!r} changes nothing: its weight is 0, or every prompt says "
                "the same as what replaces it; give pairs that differ, within what the text encoder reads."
            )

    def verdict(self, run: Run, state: Any) -> list[Decision]:
        """Weights cannot tell one image from another: every one of them was generated by the edited denoiser."""
        intervened = not self.is_zero
        message = (
            f"generated with weights that have unlearned {self.config.concept!r} (LoRA at weight {self.config.weight:g}); "
            "whether the prompt asked for it is not checked."
        )
        return [
            Decision(
                guard=self.method,
                concept=self.config.concept,
                image=image,
                fired=intervened,
                action="edited" if intervened else "none",
                first_fired_step=0 if intervened else None,
                steps_redirected=run.num_evaluations if intervened else 0,
                message=message if intervened else "",
            )
            for image in range(run.batch_size)
        ]

    def tensors(self) -> dict[str, Tensor]:
        return {f"{self.config.component}.{name}": value for name, value in self.lora.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        prefix = f"{self.config.component}."
        lora = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if not lora or len(lora) != len(tensors):
            stray = next((name for name in tensors if not name.startswith(prefix)), "nothing")
            raise GuardConfigError(
                f"a {self.title} guard holds LoRA weights named {prefix}…, but found {stray}; train it again."
            )
        for name, value in lora.items():
            module, _, part = name.rpartition(".lora_")
            axis = {"A.weight": 0, "B.weight": 1}.get(part)
            twin = f"{module}.lora_{'B' if part.startswith('A') else 'A'}.weight"
            if axis is None or value.ndim not in (2, 4) or value.shape[axis] != self.config.rank or twin not in lora:
                raise GuardConfigError(
                    f"{name} {tuple(value.shape)} is no half of a rank-{self.config.rank} LoRA; train the guard again."
                )
            if not torch.isfinite(value).all():
                raise GuardConfigError(f"{name} holds values that are not finite; download or train the guard again.")
        self.lora = {name: value.detach().float().cpu() for name, value in lora.items()}
        ups = {name: value for name, value in self.lora.items() if ".lora_B." in name}
        self._has_delta = any(
            bool(up.any()) and bool(self.lora[name.replace(".lora_B.", ".lora_A.")].any()) for name, up in ups.items()
        )

    def card(self) -> str:
        return weight_card(self.config, title=self.title, paper=self.paper, origin=self.origin)
