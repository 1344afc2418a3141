"""What trainers of a LoRA share: the fresh LoRA on a frozen denoiser, its weights, the claim on a work folder.

Used by training/duo, training/esd and training/uce; their loop is lora_loop.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from saferedir.errors import GuardConfigError, UnsupportedPipelineError
from saferedir.pipelines.families import family_of, unwrapped
from saferedir.pipelines.lora import PREFIX, has_adapters, lora_layers, remove_adapter
from saferedir.utils.packaged import library_version

ADAPTER = f"{PREFIX}training"


def refuse_adapters(denoiser: nn.Module) -> None:
    """Raise GuardConfigError if adapters are on the denoiser: a guard is trained on bare weights."""
    if has_adapters(denoiser):
        raise GuardConfigError("this pipeline has LoRAs loaded; unload them, or fuse and unload them, before training.")


def check_reads_latents(pipe: Any, method: str) -> None:
    """Raise unless the pipeline's denoiser reads the VAE's latents and nothing else, and has bare weights."""
    family = family_of(pipe)
    denoiser = unwrapped(getattr(pipe, family.denoiser))
    taken, made = denoiser.config.in_channels, pipe.vae.config.latent_channels
    if family.packing is not None:
        taken //= family.packing.channels
    if taken != made:
        raise UnsupportedPipelineError(
            f"{method} trains denoisers that read latents and nothing else; this {family.denoiser} takes {taken} channels and "
            f"the VAE makes {made} (an inpainting or editing model): train on the text-to-image model of the same backbone."
        )
    refuse_adapters(denoiser)


def lora_of(denoiser: nn.Module, name: str) -> dict[str, Tensor]:
    """Copies of one adapter's weights: `<module>.lora_A.weight` (r, in) and `<module>.lora_B.weight` (out, r)."""
    tensors = {}
    for module, layer in lora_layers(denoiser):
        if name in layer.scaling:
            for part in ("lora_A", "lora_B"):
                tensors[f"{module}.{part}.weight"] = getattr(layer, part)[name].weight.detach().float().cpu().clone()
    return tensors


@contextmanager
def trainable_lora(denoiser: Any, rank: int, targets: Sequence[str], *, seed: int) -> Iterator[Any]:
    """The denoiser with frozen weights and a fresh float32 LoRA; afterwards as it was."""
    frozen = {name: value.requires_grad for name, value in denoiser.named_parameters()}
    denoiser.requires_grad_(False)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            add_lora(denoiser, rank, targets)
        yield denoiser
    finally:
        remove_adapter(denoiser, ADAPTER)
        for name, value in denoiser.named_parameters():
            value.requires_grad_(frozen[name])


def add_lora(denoiser: Any, rank: int, targets: Sequence[str]) -> None:
    """A fresh LoRA: A gaussian, B zero, alpha = rank, so that it changes nothing yet."""
    from peft import LoraConfig

    try:
        denoiser.add_adapter(
            LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(targets)), ADAPTER
        )
    except ValueError as error:
        raise GuardConfigError(
            f"{type(denoiser).__name__} has no layers called {', '.join(targets)}; give other targets."
        ) from error
    for name, value in denoiser.named_parameters():
        if ".lora_" in name:
            value.data = value.data.float()


def versions() -> dict[str, str]:
    """Of the packages that a trained guard depends on."""
    import diffusers
    import peft

    return {
        "saferedir": library_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "peft": peft.__version__,
    }
