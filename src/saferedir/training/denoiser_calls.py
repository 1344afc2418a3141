"""How the denoiser of a family is called in training: latents (R, C, h, w) in, output (R, C, h, w), whatever it packs inside.

DUO and ESD train through it. To add a family: one function and one line of `CALLS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.packing import pack_2x2, unpack_2x2

Call = Callable[[Any, Tensor, Tensor, PromptEmbeds], Tensor]

#: the distilled guidance that FLUX.1-dev is given in training, as in diffusers' own LoRA script
FLUX_GUIDANCE = 3.5


def call_unet(denoiser: Any, x: Tensor, t: Tensor, prompt: PromptEmbeds) -> Tensor:
    """Output (R, C, h, w) of a Stable Diffusion UNet."""
    output: Tensor = denoiser(x, t, encoder_hidden_states=prompt.prompt).sample
    return output


def call_mmdit(denoiser: Any, x: Tensor, t: Tensor, prompt: PromptEmbeds) -> Tensor:
    """Output (R, C, h, w) of a Stable Diffusion 3 transformer."""
    output: Tensor = denoiser(
        hidden_states=x, timestep=t, encoder_hidden_states=prompt.prompt, pooled_projections=prompt.pooled
    ).sample
    return output


def call_flux(denoiser: Any, x: Tensor, t: Tensor, prompt: PromptEmbeds) -> Tensor:
    """Output (R, C, h, w) of a FLUX transformer; `t` in thousandths, as its scheduler has it.

    Where the transformer reads a guidance scale (FLUX.1-dev), it is given `FLUX_GUIDANCE`.
    """
    rows, columns = x.shape[-2] // 2, x.shape[-1] // 2
    guidance = torch.full((len(x),), FLUX_GUIDANCE, device=x.device) if _reads_guidance(denoiser) else None
    output = denoiser(
        hidden_states=pack_2x2(x),
        timestep=(t / 1000).to(x.dtype),
        guidance=guidance,
        encoder_hidden_states=prompt.prompt,
        pooled_projections=prompt.pooled,
        txt_ids=torch.zeros(prompt.prompt.shape[1], 3, device=x.device, dtype=x.dtype),
        img_ids=_grid_ids(rows, columns).to(x.device, x.dtype),
    ).sample
    return unpack_2x2(output, (rows, columns))


def _reads_guidance(denoiser: Any) -> bool:
    return bool(getattr(denoiser, "config", {}).get("guidance_embeds", False))


def _grid_ids(rows: int, columns: int) -> Tensor:
    """(rows * columns, 3) ids of image tokens: 0, row, column."""
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] += torch.arange(rows)[:, None]
    ids[..., 2] += torch.arange(columns)[None]
    return ids.view(-1, 3)


#: family -> how its denoiser is called
CALLS: dict[str, Call] = {
    "stable-diffusion": call_unet,
    "stable-diffusion-3": call_mmdit,
    "flux": call_flux,
}
