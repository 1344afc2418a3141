"""A user's own LoRAs on a pipeline: which act now and how strongly, and which of them a guard was not made with.

Used by `fingerprint` (to write) and by attach's seam (to warn).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from saferedir.pipelines.families import family_of, unwrapped
from saferedir.pipelines.lora import PREFIX, lora_layers
from saferedir.utils.device import read_together

#: key of a fingerprint; absent where no LoRA acts, and from folders written before there was one
ADAPTERS = "adapters"


def own_adapters(pipe: Any) -> dict[str, list[dict[str, Any]]]:
    """Module name -> adapters that act on it now, guards' own ones left out; {} where there are none.

    Each is {"name", "scale", "weights"}: the weight of `set_adapters`, and a short hash of its values, None where these are not
    in memory (sequential offload).
    """
    by_module = {}
    for name, module in _modules(pipe):
        if adapters := list(_acting(module)):
            by_module[name] = adapters
    return by_module


def fused_adapters(pipe: Any) -> set[str]:
    """Names of the LoRAs that diffusers says are fused into the weights, still loaded or not."""
    return set(getattr(pipe, "fused_loras", None) or ())


def unknown_adapters(expected: Mapping[str, Any], actual: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """What acts on the modules that a fingerprint knows and was not there, and what was there and does not act, in words."""
    known = expected.get(ADAPTERS, {})
    texts = []
    for module in expected.get("weights", {}):
        ours, theirs = known.get(module, []), actual.get(module, [])
        texts += [
            f"{_words(adapter)} on {module}" for adapter in theirs if not any(_agree(adapter, other) for other in ours)
        ]
        texts += [
            f"no {_words(adapter)} on {module}"
            for adapter in ours
            if not any(_agree(adapter, other) for other in theirs)
        ]
    return texts


def _words(adapter: Mapping[str, Any]) -> str:
    return f"LoRA {adapter['name']!r} at scale {adapter['scale']:g}"


def _agree(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    key = "name" if None in (first["weights"], second["weights"]) else "weights"
    return bool(first[key] == second[key] and abs(first["scale"] - second["scale"]) < 1e-3)


def _modules(pipe: Any) -> Iterator[tuple[str, nn.Module]]:
    family = family_of(pipe)
    for name in dict.fromkeys((family.denoiser, *family.more_denoisers, *family.text_encoders)):
        module = getattr(pipe, name, None)
        if isinstance(module, nn.Module):
            yield name, unwrapped(module)


def _acting(module: nn.Module) -> Iterator[dict[str, Any]]:
    layers = [layer for _, layer in lora_layers(module)]
    names = dict.fromkeys(
        name for layer in layers for name in (*layer.merged_adapters, *layer.active_adapters)
        if not name.startswith(PREFIX)
    )  # fmt: skip
    for name in names:
        active = [layer for layer in layers if name in layer.scaling and _acts(layer, name)]
        scales = {round(_scale(layer, name), 4) for layer in active} - {0.0}
        if scales:
            yield {"name": name, "scale": max(scales, key=abs), "weights": _hash(active, name)}


def _acts(layer: Any, name: str) -> bool:
    return name in layer.merged_adapters or (name in layer.active_adapters and not layer.disable_adapters)


def _scale(layer: Any, name: str) -> float:
    """The weight that the adapter was given, without LoRA's own alpha / r."""
    natural = (
        float(layer.lora_alpha.get(name, 1)) / float(layer.r.get(name, 1)) if hasattr(layer, "lora_alpha") else 1.0
    )
    return float(layer.scaling[name]) / natural if natural else 0.0


def _hash(layers: list[Any], name: str) -> str | None:
    parameters = [
        value.detach() for layer in layers for key, value in layer.named_parameters() if f".{name}." in f".{key}."
    ]
    if any(value.is_meta for value in parameters):
        return None
    values = [value.reshape(-1)[:4].to(torch.float16).to(torch.bfloat16).float() for value in parameters]
    data = b"" if not values else torch.cat(read_together(*values)).numpy().astype("<f4").tobytes()
    return hashlib.sha256(data).hexdigest()[:16]
