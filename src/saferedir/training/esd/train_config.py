"""How to train an ESD guard, checked, and which layers each variant adapts. Symbols: docs/methods/esd.md (arXiv:2303.07345)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from saferedir.errors import GuardConfigError
from saferedir.training.saferedir.dataset import check_call
from saferedir.utils.checks import Checked, is_nonempty_str

VARIANTS = ("x", "u", "full")
REFERENCES = ("empty", "safe")
#: the layers that listen to the text, by a part of their names: cross-attention; of a joint attention, the text stream
_TEXT = (".attn2.", ".add_q_proj", ".add_k_proj", ".add_v_proj", ".to_add_out")


@dataclass(frozen=True)
class TrainConfig(Checked):
    """How to train an ESD guard; the defaults are the paper's setting for a style, with a LoRA for weights.

    Attributes:
        variant: which layers learn. "x": those that listen to the text; "u": all others; "full": both. The paper takes x for
            what a prompt names (styles), u for what should go whatever the prompt (objects).
        targets: ends of the names of the adapted layers; () for those of the variant.
        eta: how far beyond the reference the prediction is turned, >= 0.
        reference: what the prediction is turned about: "empty", the empty prompt, as the paper has it, or "safe", the
            counterpart of each prompt.
        steps: optimiser steps, >= 1.
        batch: images per step, >= 1.
        moments: timesteps of each image that are trained in a step, >= 1; the last one is where its generation stopped.
        sampling_steps: of the student's images, which stop at one of them at random; >= 2.
        guidance_scale: of the student's images.
        rank: of the LoRA, >= 1.
        learning_rate: of AdamW, constant.
        weight_decay: of AdamW.
        checkpoint_every: optimiser steps between two checkpoints, >= 1.
        size: (height, width) of the images in pixels; None for those in `call`, or what the pipeline generates by default.
        call: arguments of the pipeline's call: its size, and what changes embeddings, such as max_sequence_length.
        seed: of weights, prompts and noise.

    Example:
        >>> from saferedir.training.esd.train_config import TrainConfig
        >>> TrainConfig(variant="u").eta
        1.0
    """

    variant: str = "x"
    targets: tuple[str, ...] = ()
    eta: float = 1.0
    reference: str = "empty"
    steps: int = 1000
    batch: int = 1
    moments: int = 1
    sampling_steps: int = 50
    guidance_scale: float = 3.0
    rank: int = 16
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    checkpoint_every: int = 50
    size: tuple[int, int] | None = None
    call: dict[str, Any] = field(default_factory=dict)
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("targets", "size"):  # JSON has no tuples
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        self.require_choice("variant", VARIANTS)
        self.require_choice("reference", REFERENCES)
        is_named = isinstance(self.targets, tuple) and all(map(is_nonempty_str, self.targets))
        self.require(is_named, "targets", "names of layers, or ()")
        self.require_number("eta", "weight_decay", "guidance_scale", at_least=0)
        self.require_number("learning_rate", above=0)
        self.require_whole("steps", "batch", "moments", "rank", "checkpoint_every", at_least=1)
        self.require_whole("sampling_steps", at_least=2)
        self.require_whole("seed", at_least=0)
        self.require(self.moments <= self.sampling_steps, "moments", f"at most sampling_steps = {self.sampling_steps}")
        is_pair = isinstance(self.size, tuple) and len(self.size) == 2
        is_size = is_pair and all(isinstance(side, int) and side >= 1 for side in self.size or ())
        self.require(self.size is None or is_size, "size", "two whole numbers >= 1, or None")
        check_call(self.call)


def adapted_layers(denoiser: nn.Module, variant: str, targets: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the linear and convolutional layers that a variant adapts, or of those whose names end with `targets`."""
    names = [
        name
        for name, module in denoiser.named_modules()
        if type(module) in (nn.Linear, nn.Conv2d) and _is_whole(module)
    ]
    ends = tuple(f".{end}" for end in targets)
    # beside a joint attention, attn2 is a second attention of the image to itself (Stable Diffusion 3.5)
    is_joint = any(".add_k_proj" in name for name in names)
    text = tuple(part for part in _TEXT if not (is_joint and part == ".attn2."))
    if targets:
        chosen = [name for name in names if f".{name}".endswith(ends)]
    else:
        chosen = [name for name in names if variant == "full" or (variant == "x") == any(p in f".{name}" for p in text)]
    if not chosen:
        wanted = ", ".join(targets) if targets else f"variant {variant!r}"
        raise GuardConfigError(f"{type(denoiser).__name__} has no layers for {wanted}; give other targets.")
    return tuple(chosen)


def _is_whole(module: nn.Module) -> bool:
    """Grouped convolutions cannot carry an ordinary LoRA."""
    return getattr(module, "groups", 1) == 1
