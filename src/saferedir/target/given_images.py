"""Images that an attacker sends beside the text: one to inpaint, one as an image prompt. Plain tensors and numbers.

Both act inside of the attacked call, as in the pipelines that take them, so that a policy's retries have them, too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from saferedir.errors import AttackError
from saferedir.pipelines.families import Family
from saferedir.pipelines.schedules import coefficients
from saferedir.utils.host_copies import on_host

IMAGE_PROMPT = "ip_adapter_image"


@dataclass(frozen=True, eq=False)
class Inpainting:
    """What surrounds a region is put back after every step, as diffusers inpaints with models without a mask channel.

    Attributes:
        image: (1, C, h, w) clean latents.
        noise: (1, C, h, w) noise that is put on them, to the level of the sampler.
        mask: (1, 1, h, w) bool, true where the image is generated anew.
    """

    image: Tensor
    noise: Tensor
    mask: Tensor

    def after_step(self, output: Any, scheduler: Any, done: int, family: Family) -> Any:
        """A scheduler's output with what is kept put back, at the level of evaluation `done`, which is the next one.

        After the last evaluation that is the clean image.
        """
        stepped = output[0] if isinstance(output, tuple) else output.prev_sample
        timesteps = on_host(scheduler.timesteps)
        alpha, sigma = coefficients(scheduler, timesteps[done]).numbers if done < len(timesteps) else (1.0, 0.0)
        surroundings, mask = alpha * self.image + sigma * self.noise, self.mask.expand_as(self.image)
        if family.packing is not None:
            surroundings, mask = family.packing.pack(surroundings), family.packing.pack(mask)
        latents = torch.where(mask.to(stepped.device), stepped, surroundings.to(stepped))
        if isinstance(output, tuple):
            return tuple(latents if part is stepped else part for part in output)
        output["prev_sample"] = latents
        return output


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """What an IP-Adapter reads.

    Attributes:
        image: (1, 3, H, W) in [0, 1]; the pipeline gets it as an image of 8 bits.
        scale: of the adapter, >= 0.
    """

    image: Tensor
    scale: float

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of a call with this image."""
        return {IMAGE_PROMPT: VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(self.image))[0]}


@contextmanager
def adapter_scale(pipe: Any, scale: float) -> Iterator[None]:
    """Inside, the pipeline's IP-Adapters have this scale; every layer's usual one is back afterwards.

    Raises AttackError for a pipeline without one.
    """
    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    layers = [layer for layer in getattr(denoiser, "attn_processors", {}).values() if hasattr(layer, "scale")]
    if not layers or not hasattr(pipe, "set_ip_adapter_scale"):
        raise AttackError(f"this {type(pipe).__name__} has no IP-Adapter; load one with load_ip_adapter first.")
    usual = [copy.copy(layer.scale) for layer in layers]
    try:
        pipe.set_ip_adapter_scale(scale)
        yield
    finally:
        for layer, value in zip(layers, usual, strict=True):
            layer.scale = value
