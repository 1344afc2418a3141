"""Facts about each pipeline family, as data: where the denoiser is and how its inputs and outputs are laid
out.

A new family is one row in `FAMILIES`. Imports torch, `errors`, `schedules`; read by `attach` and `session`.
The denoiser's time is no column: the seam takes t from the scheduler, never from the denoiser's arguments
(FLUX passes t/1000, Z-Image 1000 - t).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from saferedir.errors import BackboneMismatchError, UnsupportedPipelineError
from saferedir.schedules import prediction_type

CfgLayout = Literal["uncond_cond", "cond_uncond"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row: everything the seam must know about a family of pipelines.

    Attributes:
        name: our name of the family.
        pipelines: diffusers class names; subclasses count.
        denoiser: attribute of the pipeline holding the UNet or transformer.
        text_encoders: attributes holding the text encoders.
        cfg_layout: order of the rows of one denoiser call under classifier-free guidance.
        latents_arg, prompt_arg: (position, keyword) of the denoiser's latents and prompt embeddings.
        row_kwargs: other keyword arguments with one entry per row, to extend when rows are added.
        pooled_kwarg: path of the pooled embeddings in the keyword arguments, () where there are none.
        mask_kwarg: keyword of the prompt mask; None where the denoiser attends to every token, padding
            included.
        sign: denoiser output times `sign` is what the scheduler is given.
        prompt_width: denoiser config entry with the width D of the prompt embeddings.
    """

    name: str
    pipelines: tuple[str, ...]
    denoiser: str
    text_encoders: tuple[str, ...]
    cfg_layout: CfgLayout = "uncond_cond"
    latents_arg: tuple[int, str] = (0, "sample")
    prompt_arg: tuple[int, str] = (2, "encoder_hidden_states")
    row_kwargs: tuple[str, ...] = ()
    pooled_kwarg: tuple[str, ...] = ()
    mask_kwarg: str | None = None
    sign: float = 1.0
    prompt_width: str = "cross_attention_dim"


FAMILIES: dict[str, Family] = {
    "stable-diffusion": Family(
        name="stable-diffusion",
        pipelines=("StableDiffusionPipeline",),
        denoiser="unet",
        text_encoders=("text_encoder",),
        row_kwargs=("timestep_cond",),
    ),
}


def family_of(pipe: Any) -> Family:
    """The row of a pipeline; raises UnsupportedPipelineError naming what is supported."""
    names = {base.__name__ for base in type(pipe).__mro__}
    for family in FAMILIES.values():
        if names.intersection(family.pipelines):
            return family
    supported = ", ".join(name for family in FAMILIES.values() for name in family.pipelines)
    raise UnsupportedPipelineError(
        f"{type(pipe).__name__} is not supported; supported pipelines: {supported}. "
        "Another family needs one row in FAMILIES of saferedir/families.py."
    )


def backbone_fingerprint(pipe: Any) -> dict[str, Any]:
    """What a guard trained on this pipeline may rely on, as plain data.

    "architecture" fields must agree for a guard to make sense. "weights" tells copies of one checkpoint from
    edited (fine-tuned, unlearned) ones of the same architecture: a short hash per module over a few values
    of every parameter, rounded to float16 and then bfloat16. Copies of a float16 checkpoint in any of the
    three dtypes, and float32 and float16 copies of a float32 one, agree; a bfloat16 copy of a float32
    checkpoint may read as edited. None where the weights are not in memory (sequential offload).
    """
    family = family_of(pipe)
    denoiser = _unwrapped(getattr(pipe, family.denoiser))
    encoders = [getattr(pipe, name, None) for name in family.text_encoders]
    modules = {family.denoiser: denoiser, **dict(zip(family.text_encoders, encoders, strict=True))}
    return {
        "architecture": {
            "family": family.name,
            "denoiser": type(denoiser).__name__,
            "prompt_width": denoiser.config.get(family.prompt_width),
            "latent_channels": denoiser.config.get("in_channels"),
            "prediction_type": prediction_type(pipe.scheduler),
            "shapes": _short_hash(
                "".join(f"{name}{tuple(value.shape)}" for name, value in _own_parameters(denoiser).items()).encode()
            ),
        },
        "weights": {name: _weights_hash(module) for name, module in modules.items() if module is not None},
    }


def compare_backbone(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(architecture fields that differ, modules whose weights differ); a field unknown to one side is not
    compared.
    """
    parts = []
    for part in ("architecture", "weights"):
        ours, theirs = expected.get(part, {}), actual.get(part, {})
        shared = [key for key in ours if key in theirs and None not in (ours[key], theirs[key])]
        parts.append([f"{key} is {theirs[key]!r}, not {ours[key]!r}" for key in shared if ours[key] != theirs[key]])
    return parts[0], parts[1]


def check_backbone(expected: Mapping[str, Any], actual: Mapping[str, Any], guard: str) -> list[str]:
    """Raise BackboneMismatchError if the architecture differs; return the modules whose weights do."""
    architecture, weights = compare_backbone(expected, actual)
    if architecture:
        raise BackboneMismatchError(
            f"guard {guard!r} was trained for another backbone ({'; '.join(architecture)}); "
            "train it on this pipeline, or attach it with force=True at your own risk."
        )
    return weights


def _unwrapped(module: Any) -> Any:
    """The module under torch.compile's wrapper, if there is one."""
    return getattr(module, "_orig_mod", module)


def _own_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Parameters by name, sorted, without adapters (LoRA layers added by peft do not change the
    architecture).
    """
    found = {name.replace(".base_layer", ""): value for name, value in module.named_parameters() if "lora_" not in name}
    return dict(sorted(found.items()))


def _weights_hash(module: nn.Module, per_tensor: int = 8) -> str | None:
    """Short hash over `per_tensor` evenly spaced values of every parameter."""
    samples = []
    for value in _own_parameters(_unwrapped(module)).values():
        if value.is_meta or not value.is_floating_point():
            return None
        flat = value.detach().reshape(-1)
        where = torch.linspace(0, flat.numel() - 1, min(per_tensor, flat.numel()), device=flat.device).long()
        samples.append(flat[where].to(torch.float16).to(torch.bfloat16).float().cpu())
    if not samples:
        return None
    values = torch.cat(samples)
    values = torch.where(values.abs() < 1e-4, torch.zeros_like(values), values)  # float16 subnormals are unreliable
    return _short_hash(values.numpy().astype("<f4").tobytes())


def _short_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
