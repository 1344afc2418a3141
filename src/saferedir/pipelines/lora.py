"""LoRA adapters on a live denoiser, by name: put one on, make sure that it still acts, take exactly that one off.

For guards that act through the weights (`guards/weights`) and for `seam`, which clears what a deep copy of a guarded
pipeline brought along. The base weights and every other adapter stay as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from saferedir.errors import GuardError, UnsupportedPipelineError

#: names of guards' adapters begin with this
PREFIX = "saferedir_"
_MARK = "_saferedir_adapter"


def lora_layers(denoiser: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, layer) of every layer that peft has wrapped; nothing where no adapter was ever loaded."""
    if not getattr(denoiser, "peft_config", None):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in denoiser.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield name, module


def has_adapters(denoiser: nn.Module) -> bool:
    """Whether any adapter, a guard's or a user's, is on the denoiser."""
    return bool(getattr(denoiser, "peft_config", None))


def guard_adapters(denoiser: nn.Module) -> list[str]:
    """Names of the adapters that guards put there."""
    return [name for name in getattr(denoiser, "peft_config", None) or {} if name.startswith(PREFIX)]


@contextmanager
def adapters_off(denoiser: nn.Module) -> Iterator[None]:
    """The bare weights for a while; unlike peft's own switch this leaves `requires_grad` alone."""
    layers = [(layer, layer._disable_adapters) for _, layer in lora_layers(denoiser)]
    for layer, _ in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, was_off in layers:
            layer._disable_adapters = was_off


def ensure_adapter(denoiser: nn.Module, name: str, tensors: Mapping[str, Tensor], weight: float) -> None:
    """Have the LoRA `tensors` (`<module>.lora_A.weight`, ...) on the denoiser as `name`, acting with `weight`.

    All or nothing. Harmless where it acts already; what was switched off or rescaled in between is set right.
    """
    _refuse_fused(denoiser)
    modules = {key.rsplit(".lora_", 1)[0] for key in tensors}
    _refuse_fused_projections(denoiser, modules)
    if modules != {path for path, layer in lora_layers(denoiser) if name in layer.scaling}:
        remove_adapter(denoiser, name)
        _refuse_missing(denoiser, modules - {path for path, _ in denoiser.named_modules()})
        try:
            _inject(denoiser, name, tensors)
            _refuse_missing(
                denoiser, modules - {path for path, layer in lora_layers(denoiser) if name in layer.scaling}
            )
        except BaseException as error:
            remove_adapter(denoiser, name)
            if isinstance(error, (RuntimeError, ValueError, KeyError)) and not isinstance(error, GuardError):
                reason = " ".join(str(error).split())[:200]
                raise GuardError(f"this guard's LoRA does not fit {type(denoiser).__name__}: {reason}.") from error
            raise
    for _, layer in lora_layers(denoiser):
        if name in layer.scaling:
            layer.set_scale(name, weight)
            if name not in layer.active_adapters:
                layer._active_adapter = [*layer.active_adapters, name]
            _watch(layer, name, layer.scaling[name])


def remove_adapter(denoiser: nn.Module, name: str) -> None:
    """Take one adapter off; layers that hold no other are unwrapped again. Harmless where it is not there."""
    layers = [(path, layer) for path, layer in lora_layers(denoiser) if name in layer.scaling]
    if any(name in layer.merged_adapters for _, layer in layers):
        raise GuardError(
            "a guard's LoRA was fused into the weights; call unfuse_lora() on the pipeline, then detach again."
        )
    for module_path, layer in layers:
        layer._active_adapter = [other for other in layer.active_adapters if other != name]  # set_adapter thaws weights
        layer.delete_adapter(name)
        for key, hook in list(layer._forward_pre_hooks.items()):
            if getattr(hook, _MARK, None) == name:
                del layer._forward_pre_hooks[key]
        if not layer.scaling:
            parent, _, attribute = module_path.rpartition(".")
            setattr(denoiser.get_submodule(parent), attribute, layer.get_base_layer())
    configs = getattr(denoiser, "peft_config", None) or {}
    configs.pop(name, None)
    if not configs:
        for attribute in ("peft_config", "_hf_peft_config_loaded"):
            vars(denoiser).pop(attribute, None)


def _refuse_missing(denoiser: nn.Module, missing: Collection[str]) -> None:
    if missing:
        raise GuardError(
            f"{type(denoiser).__name__} has no layer {min(missing)!r} for this guard's LoRA; were its projections fused?"
        )


def _inject(denoiser: Any, name: str, tensors: Mapping[str, Tensor]) -> None:
    if any(value.is_meta for value in denoiser.parameters()):
        raise UnsupportedPipelineError(
            "the denoiser's weights are not in memory (sequential offload), so no LoRA can be put on it; use model offload."
        )
    before = {path: list(layer.active_adapters) for path, layer in lora_layers(denoiser)}
    trainable = {path: value.requires_grad for path, value in denoiser.named_parameters() if ".lora_" in path}
    # peft freezes the rest, by which matrix products may round otherwise even where no gradient is asked for
    thawed = [value for path, value in denoiser.named_parameters() if value.requires_grad and ".lora_" not in path]
    dtype = getattr(denoiser, "dtype", torch.float32)  # what it computes in, where weights are stored in 8 bits
    state = {f"guard.{key}": value.to(dtype) for key, value in tensors.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft's advice about several adapters
            if hasattr(denoiser, "load_lora_adapter"):
                denoiser.load_lora_adapter(state, prefix="guard", adapter_name=name, low_cpu_mem_usage=True)
            else:  # PixArt, Lumina
                _inject_by_peft(denoiser, name, {key.removeprefix("guard."): value for key, value in state.items()})
    finally:  # all three change with every adapter that comes or goes
        for value in thawed:
            value.requires_grad_(True)
        for module_path, layer in lora_layers(denoiser):
            layer._active_adapter = before.get(module_path, [])
        for module_path, value in denoiser.named_parameters():
            if ".lora_" in module_path:
                value.requires_grad_(trainable.get(module_path, False))
                if module_path not in trainable:
                    value.data = value.data.to(dtype)  # peft stores it as the layer is stored, which may be in 8 bits


def _inject_by_peft(denoiser: nn.Module, name: str, state: Mapping[str, Tensor]) -> None:
    """What diffusers' own loader does, for a denoiser that has none."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    rank = next(value.shape[0] for key, value in state.items() if key.endswith(".lora_A.weight"))
    modules = sorted({key.rsplit(".lora_", 1)[0] for key in state})
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=modules)
    inject_adapter_in_model(config, denoiser, adapter_name=name, low_cpu_mem_usage=True)
    set_peft_model_state_dict(denoiser, dict(state), name, low_cpu_mem_usage=True)


def _refuse_fused(denoiser: nn.Module) -> None:
    for _, layer in lora_layers(denoiser):
        if layer.merged:
            raise GuardError(
                "LoRAs are fused into this denoiser but still loaded, which hides a guard's LoRA; call unfuse_lora() or "
                "unload_lora_weights() on the pipeline first."
            )
        if layer.disable_adapters:
            raise GuardError(
                "all LoRAs of this denoiser are switched off, a guard's too; call enable_lora() on the pipeline, and give those "
                "you do not want a weight of 0."
            )


def _refuse_fused_projections(denoiser: nn.Module, modules: Collection[str]) -> None:
    fused = {path for path, module in denoiser.named_modules() if getattr(module, "fused_projections", False)}
    if any(name.rpartition(".")[0] in fused for name in modules):
        raise GuardError(
            "the projections of this denoiser's attention are fused, which passes a guard's LoRA on them by; call "
            "unfuse_qkv_projections() on it first."
        )


def _watch(layer: Any, name: str, scale: float) -> None:
    """Raise at the layer's next call if the adapter no longer acts there as it should (`scale` in a call's arguments)."""
    for key, hook in list(layer._forward_pre_hooks.items()):
        if getattr(hook, _MARK, None) == name:
            del layer._forward_pre_hooks[key]

    def check(module: Any, args: tuple[Any, ...]) -> None:
        is_acting = name in module.active_adapters and not module.disable_adapters and not module.merged
        if not is_acting or module.scaling.get(name) != scale:
            raise GuardError(
                "a guard's LoRA was switched off or rescaled during the run; leave `scale` out of the pipeline's "
                "cross_attention_kwargs or joint_attention_kwargs, and its LoRAs as they are."
            )

    setattr(check, _MARK, name)
    layer.register_forward_pre_hook(check)
