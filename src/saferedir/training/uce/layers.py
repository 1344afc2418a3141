"""Which linear layers of a denoiser read the prompt's embeddings, one row a family, and what they are given.

Implements docs/methods/uce.md (1). Only layers whose input depends on the prompt alone, not on the image or the timestep, have a
closed form. Where the text stream meets the image stream (SD3, FLUX, AuraFlow, Lumina 2) these are the layers by which it
enters: what `add_k_proj` and its like are given has been modulated by the timestep and mixed with the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from saferedir.errors import GuardError, UnsupportedPipelineError
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.families import family_of, unwrapped


@dataclass(frozen=True)
class TextLayers:
    """Linear layers with one common input.

    Attributes:
        ends: ends of their names in the denoiser.
        through: modules of the denoiser that the embeddings pass before, in order.
        reads: which part of the prompt embeddings their input is made from.
    """

    ends: tuple[str, ...]
    through: tuple[str, ...] = ()
    reads: Literal["prompt", "pooled"] = "prompt"


_CROSS = ("attn2.to_k", "attn2.to_v")
_POOLED = TextLayers(("time_text_embed.text_embedder.linear_1",), reads="pooled")
_JOINT = (TextLayers(("context_embedder",)), _POOLED)

#: family -> its layers; a new family is one row here
TEXT_LAYERS: dict[str, tuple[TextLayers, ...]] = {
    "stable-diffusion": (TextLayers(_CROSS),),
    "stable-diffusion-xl": (TextLayers(_CROSS),),
    "stable-diffusion-3": _JOINT,
    "flux": _JOINT,
    "pixart": (TextLayers(_CROSS, ("caption_projection",)),),
    "sana": (TextLayers(_CROSS, ("caption_projection", "caption_norm")),),
    "lumina-2": (TextLayers(("time_caption_embed.caption_embedder.1",), ("time_caption_embed.caption_embedder.0",)),),
    "aura-flow": (TextLayers(("context_embedder",)),),
    "wan": (TextLayers(_CROSS, ("condition_embedder.text_embedder",)),),
}


def text_layers(pipe: Any) -> tuple[TextLayers, ...]:
    """The rows of a pipeline's family; raises UnsupportedPipelineError where there are none."""
    name = family_of(pipe).name
    if name not in TEXT_LAYERS:
        raise UnsupportedPipelineError(
            f"UCE has no closed form for {name}, whose text projections are not in its table; supported: "
            f"{', '.join(TEXT_LAYERS)}."
        )
    return TEXT_LAYERS[name]


def modules_of(denoiser: nn.Module, layers: TextLayers) -> dict[str, nn.Linear]:
    """The layers of a row by name; raises GuardError where the denoiser has none."""
    ends = tuple(f".{end}" for end in layers.ends)
    modules = {
        name: module
        for name, module in denoiser.named_modules()
        if f".{name}".endswith(ends) and isinstance(module, nn.Linear)
    }
    if not modules:
        raise GuardError(
            f"this {type(denoiser).__name__} has no linear layer called {' or '.join(layers.ends)}, which UCE edits; were its "
            "projections fused?"
        )
    return modules


@torch.no_grad()
def inputs_of(pipe: Any, layers: TextLayers, embeds: PromptEmbeds, batch: int = 64) -> Tensor | None:
    """What the layers are given for N prompts: (N, L, in), or (N, 1, in) for pooled embeddings, in float64 on the CPU.

    None where a pipeline has no pooled embeddings.
    """
    denoiser = unwrapped(getattr(pipe, family_of(pipe).denoiser))
    rows = embeds.prompt if layers.reads == "prompt" else embeds.pooled
    if rows is None:
        return None
    if layers.reads == "pooled":
        rows = rows[:, None]
    parts = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch].to(denoiser.device, denoiser.dtype)
        for name in layers.through:
            part = denoiser.get_submodule(name)(part)
        parts.append(part.double().cpu())
    return torch.cat(parts)
