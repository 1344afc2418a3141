"""Fingerprint of a backbone: what a guard trained on a pipeline may rely on, and the refusal to guard another.

Used by `attach` (to check) and by trainers (to write).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saferedir.errors import BackboneMismatchError
from saferedir.pipelines.families import family_of, unwrapped
from saferedir.pipelines.latents import PixelSpace, latent_constants, vae_of
from saferedir.pipelines.own_adapters import ADAPTERS, own_adapters
from saferedir.pipelines.schedules import prediction_type
from saferedir.utils.device import read_together

#: parts of the names of parameters that adapters and `fuse_qkv_projections` bring along
_ADDED = ("lora_", ".processor.", "encoder_hid_proj.", ".to_qkv.", ".to_kv.", ".to_added_qkv.")


def backbone_fingerprint(pipe: Any) -> dict[str, Any]:
    """What a guard trained on this pipeline may rely on, as plain data.

    "architecture" fields must agree for a guard to make sense. "weights" tells copies of one checkpoint from
    edited (fine-tuned, unlearned) ones of the same architecture: a short hash per module over a few values
    of every parameter, rounded to float16 and then bfloat16. Copies of a float16 checkpoint in any of the
    three dtypes, and float32 and float16 copies of a float32 one, agree; a bfloat16 copy of a float32
    checkpoint may read as edited. None where the weights are not in memory (sequential offload, offload to
    disk) or stored in another way (8-bit floats, tensor subclasses of quantisers, packed integers; the last hide the
    shapes too); what is None is not compared. Neither torch's default dtype nor the device changes a fingerprint.
    "adapters" is there only where LoRAs of the user's act: `own_adapters`.
    """
    family = family_of(pipe)
    denoiser = unwrapped(getattr(pipe, family.denoiser))
    encoders = [getattr(pipe, name, None) for name in family.text_encoders]
    modules = {family.denoiser: denoiser, **dict(zip(family.text_encoders, encoders, strict=True))}
    vae = vae_of(pipe)
    parts = {name: module for name, module in modules.items() if module is not None}
    encoder = [] if vae is None or isinstance(vae, PixelSpace) else _vae_parts(vae)
    hashes = _weights_hashes([*parts.values(), *encoder])
    weights = dict(zip(parts, hashes, strict=False))
    vae_hash = None if vae is None else _vae_hash(vae, hashes[len(parts) :])
    return {
        "architecture": {
            "family": family.name,
            "denoiser": type(denoiser).__name__,
            "prompt_width": family.prompt_width_in(denoiser.config),
            "latent_channels": denoiser.config.get("in_channels"),
            "prediction_type": prediction_type(pipe.scheduler),
            "shapes": _shapes_hash(denoiser),
        },
        "weights": weights if vae is None else {**weights, "vae": vae_hash},
        **({ADAPTERS: adapters} if (adapters := own_adapters(pipe)) else {}),
    }


def vae_fingerprint(vae: Any) -> str | None:
    """Short hash of a latent space: the encoder's weights and the constants around it; None as in `backbone_fingerprint`.

    "pixels" for pipelines without an autoencoder.

    The decoder does not count: latents mean the same to a VAE of which only the decoder was fine-tuned.
    """
    return _vae_hash(vae, [] if isinstance(vae, PixelSpace) else _weights_hashes(_vae_parts(vae)))


def _vae_parts(vae: Any) -> list[nn.Module]:
    parts = [getattr(unwrapped(vae), name, None) for name in ("encoder", "quant_conv")]
    return [part for part in parts if part is not None and any(True for _ in part.parameters())]


def _vae_hash(vae: Any, hashes: list[str | None]) -> str | None:
    if isinstance(vae, PixelSpace):
        return "pixels"
    if not hashes or None in hashes:
        return None
    return _short_hash(repr((hashes, latent_constants(unwrapped(vae)))).encode())


def compare_backbone(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(architecture fields that differ, modules whose weights differ); a field unknown to one side is not
    compared.

    A module named under the architecture a guard expects must have the same weights: latents of a negation set mean nothing
    to another "vae".
    """
    parts = []
    for part in ("architecture", "weights"):
        ours, theirs = expected.get(part, {}), {**actual.get("weights", {}), **actual.get(part, {})}
        shared = [key for key in ours if key in theirs and None not in (ours[key], theirs[key])]
        parts.append([f"{key} is {theirs[key]!r}, not {ours[key]!r}" for key in shared if ours[key] != theirs[key]])
    return parts[0], parts[1]


def check_backbone(expected: Mapping[str, Any], actual: Mapping[str, Any], guard: str) -> list[str]:
    """Raise BackboneMismatchError if the architecture differs; return the modules whose weights do."""
    architecture, weights = compare_backbone(expected, actual)
    if any(text.startswith("vae ") for text in architecture):
        raise BackboneMismatchError(
            f"the negation set of guard {guard!r} was encoded by another VAE ({'; '.join(architecture)}); build it with this "
            "pipeline (`saferedir negation build`), or attach the guard with force=True at your own risk."
        )
    if architecture:
        raise BackboneMismatchError(
            f"guard {guard!r} was trained for another backbone ({'; '.join(architecture)}); "
            "train it on this pipeline, or attach it with force=True at your own risk."
        )
    return weights


def _own_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Parameters by name, sorted, without adapters: LoRA and IP-Adapter layers do not change the architecture."""
    parameters = {
        name.replace(".base_layer", ""): value
        for name, value in module.named_parameters()
        if not any(part in name for part in _ADDED)
    }
    return dict(sorted(parameters.items()))


def _shapes_hash(module: nn.Module) -> str | None:
    """Short hash of every parameter's name and shape; None if some are packed, as quantised weights are."""
    parameters = _own_parameters(module)
    if not all(value.is_floating_point() for value in parameters.values()):
        return None
    return _short_hash("".join(f"{name}{tuple(value.shape)}" for name, value in parameters.items()).encode())


def _weights_hashes(modules: Sequence[nn.Module], per_tensor: int = 8) -> list[str | None]:
    """Short hash of each module over `per_tensor` evenly spaced values of every parameter.

    Values of all modules on one device are read in one copy: at 1,000 parameters a copy for each would take most of `attach`.
    """
    readable = [_readable_parameters(unwrapped(module)) for module in modules]
    samples = iter(_sampled([value for parameters in readable for value in parameters], per_tensor))
    hashes: list[str | None] = []
    for parameters in readable:
        values = [next(samples) for _ in parameters]
        hashes.append(_values_hash(torch.cat(values)) if values else None)
    return hashes


def _readable_parameters(module: nn.Module) -> list[Tensor]:
    """The parameters whose values are sampled; [] where some cannot be read."""
    if _is_on_disk(module):
        return []
    parameters = list(_own_parameters(module).values())
    return [value.detach().reshape(-1) for value in parameters] if all(map(_is_readable, parameters)) else []


def _values_hash(values: Tensor) -> str:
    values = torch.where(values.abs() < 1e-4, torch.zeros_like(values), values)  # float16 subnormals are unreliable
    return _short_hash(values.numpy().astype("<f4").tobytes())


def _sampled(parameters: Sequence[Tensor], count: int) -> list[Tensor]:
    """(n,) float32 on the CPU: up to `count` values of each flat parameter, one copy to and from each device."""
    places = [_sample_places(value.numel(), count) for value in parameters]
    samples = list(places)
    for device in {value.device for value in parameters}:
        chosen = [index for index, value in enumerate(parameters) if value.device == device]
        where = (
            torch.cat([places[index] for index in chosen]).to(device).split([len(places[index]) for index in chosen])
        )
        values = [
            parameters[index][each].to(torch.float16).to(torch.bfloat16).float()
            for index, each in zip(chosen, where, strict=True)
        ]
        (copied,) = read_together(torch.cat(values))
        for index, value in zip(chosen, copied.split([len(value) for value in values]), strict=True):
            samples[index] = value
    return samples


def _sample_places(size: int, count: int) -> Tensor:
    """Up to `count` evenly spaced indices below `size`.

    Rounded as in float32, which repeats none but above 2^24 ends beyond `size`; every guard in use was fingerprinted so.
    """
    positions = torch.linspace(0, size - 1, min(count, size), dtype=torch.float32, device="cpu")
    return positions.long().clamp(max=size - 1)


def _is_readable(value: Tensor) -> bool:
    """Whether the values of a parameter are those of its checkpoint, and not another storage of them."""
    is_plain = type(value) in (Tensor, nn.Parameter)
    return is_plain and not value.is_meta and value.is_floating_point() and value.dtype.itemsize > 1


def _is_on_disk(module: nn.Module) -> bool:
    """Whether diffusers' group offload keeps weights in a file; the tensors in memory are then uninitialised."""
    for part in module.modules():
        registry = getattr(part, "_diffusers_hook", None)
        hook = registry.get_hook("group_offloading") if registry is not None else None
        if hook is not None and getattr(hook.group, "offload_to_disk_path", None) is not None:
            return True
    return False


def _short_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
