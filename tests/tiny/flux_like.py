"""Tiny pipelines around a transformer like FLUX's: FLUX.2, Z-Image, Chroma, Ovis-Image.

Imports diffusers and tests.tiny, tests.conftest only. Which arguments a short run takes is in tests/newer_pipelines.py.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from tests.tiny.newer_parts import (
    LLM_WIDTH,
    make_chat_tokenizer,
    make_llm,
    with_defaults,
    without_instructions,
)
from tests.tiny.parts import (
    T5_WIDTH,
    alive,
    make_flow_vae,
    make_t5,
    make_t5_tokenizer,
)


def make_flux2_vae() -> Any:
    return alive(
        lambda: diffusers.AutoencoderKLFlux2(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            norm_num_groups=2,
            latent_channels=4,
        )
    )


def make_flux2(cls: Any = diffusers.Flux2Pipeline) -> Any:
    transformer = alive(
        lambda: diffusers.Flux2Transformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * LLM_WIDTH,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=cls is diffusers.Flux2Pipeline,
        ),
        add_v_proj=8.0,
        to_out=4.0,
        to_v=3.0,
    )
    return with_defaults(cls, text_encoder_out_layers=(1, 2, 3))(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=make_flux2_vae(),
        text_encoder=make_llm(3),
        tokenizer=make_chat_tokenizer(),
    )


def make_z_image(cls: Any = diffusers.ZImagePipeline, **parts: Any) -> Any:
    transformer = alive(
        lambda: diffusers.ZImageTransformer2DModel(
            in_channels=16,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=LLM_WIDTH,
            axes_dims=[4, 6, 6],
            axes_lens=[512, 32, 32],
        ),
        cap_embedder=6.0,
        to_v=3.0,
    )
    with torch.no_grad():  # left unset by its constructor
        transformer.x_pad_token.zero_()
        transformer.cap_pad_token.zero_()
    return cls(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=make_flow_vae(),
        text_encoder=make_llm(),
        tokenizer=make_chat_tokenizer(),
        **parts,
    )


def make_z_image_controlnet(cls: Any = diffusers.ZImageControlNetPipeline, channels: int = 16) -> Any:
    """`channels`: of the control image, with the mask and the masked image where it inpaints."""
    controlnet = alive(
        lambda: diffusers.ZImageControlNetModel(
            control_layers_places=[0],
            control_refiner_layers_places=[0],
            control_in_dim=channels,
            dim=32,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
        )
    )
    return make_z_image(cls, controlnet=controlnet)


FLUX_LIKE = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "axes_dims_rope": (4, 4, 8),
}


def make_chroma(cls: Any = diffusers.ChromaPipeline) -> Any:
    transformer = alive(
        lambda: diffusers.ChromaTransformer2DModel(
            **FLUX_LIKE,
            joint_attention_dim=T5_WIDTH,
            approximator_num_channels=8,
            approximator_hidden_dim=16,
            approximator_layers=1,
        ),
        add_v_proj=4.0,
        to_v=4.0,
    )
    return cls(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=make_flow_vae(),
        text_encoder=make_t5(),
        tokenizer=make_t5_tokenizer(),
    )


def make_ovis() -> Any:
    transformer = alive(
        lambda: diffusers.OvisImageTransformer2DModel(**FLUX_LIKE, joint_attention_dim=LLM_WIDTH),
        add_v_proj=10.0,
        to_v=4.0,
    )
    return without_instructions(diffusers.OvisImagePipeline, "user_prompt_begin_id", "system_prompt")(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=make_flow_vae(),
        text_encoder=make_llm(),
        tokenizer=make_chat_tokenizer(),
    )
