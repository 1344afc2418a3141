"""Tiny, random pipelines that read no text: class-conditional (DiT) and unconditional (DDPM, DDIM)."""

from __future__ import annotations

from typing import Any

import diffusers
from tests.tiny.parts import alive, make_vae


def make_dit(scheduler: Any = None) -> diffusers.DiTPipeline:
    """A `DiTPipeline` of 1,000 classes on 4x8x8 latents (32 pixels); it learns its variances, as the published one does."""
    transformer = alive(
        lambda: diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8, patch_size=2,
            num_embeds_ada_norm=1000,
        ),
        class_embedder=8.0,
    )  # fmt: skip
    pipe = diffusers.DiTPipeline(transformer, make_vae(), scheduler or diffusers.DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_unconditional(kind: type[Any] = diffusers.DDPMPipeline, scheduler: Any = None) -> Any:
    """A `DDPMPipeline` or `DDIMPipeline` on 3x16x16 pixels."""
    unet = alive(
        lambda: diffusers.UNet2DModel(
            sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4, attention_head_dim=8,
        )
    )  # fmt: skip
    pipe = kind(unet, scheduler or diffusers.DDIMScheduler(clip_sample=True))
    pipe.set_progress_bar_config(disable=True)
    return pipe
