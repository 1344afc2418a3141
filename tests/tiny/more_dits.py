"""Tiny pipelines around other transformers: CogView 3 and 4, PRX, LTX-Video.

Imports diffusers and tests.tiny, tests.conftest only. Which arguments a short run takes is in tests/newer_pipelines.py.
"""

from __future__ import annotations

import types
from typing import Any

import diffusers
from tests.tiny.newer_parts import (
    LLM_WIDTH,
    encodes_the_mean,
    make_chat_tokenizer,
    make_llm,
)
from tests.tiny.parts import (
    GEMMA_WIDTH,
    T5_WIDTH,
    alive,
    make_flow_vae,
    make_gemma,
    make_t5,
    make_t5_tokenizer,
    make_vae,
)


def make_cogview4(cls: Any = diffusers.CogView4Pipeline) -> Any:
    channels = 4
    transformer = alive(
        lambda: diffusers.CogView4Transformer2DModel(
            patch_size=2,
            in_channels=2 * channels if cls is diffusers.CogView4ControlPipeline else channels,
            out_channels=channels,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=LLM_WIDTH,
            time_embed_dim=8,
            condition_dim=4,
            rope_axes_dim=(32, 32),
        ),
        text_proj=6.0,
        to_v=3.0,
    )
    tokenizer = make_chat_tokenizer()
    tokenizer.padding_side = "left"
    return cls(
        tokenizer=tokenizer,
        text_encoder=make_llm(),
        vae=encodes_the_mean(make_vae(channels)),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear"
        ),
    )


def make_cogview3() -> Any:
    transformer = alive(
        lambda: diffusers.CogView3PlusTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=T5_WIDTH,
            time_embed_dim=8,
            condition_dim=4,
            pos_embed_max_size=16,
            sample_size=8,
        ),
        text_proj=6.0,
        to_v=3.0,
    )
    return diffusers.CogView3PlusPipeline(
        tokenizer=make_t5_tokenizer(),
        text_encoder=make_t5(),
        vae=make_vae(),
        transformer=transformer,
        scheduler=diffusers.CogVideoXDDIMScheduler(
            prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
        ),
    )


def make_prx() -> Any:
    """A Gemma stands in for T5Gemma's encoder; prompts are as long as its tokenizer says, and not cleaned, which needs ftfy."""
    tokenizer = make_t5_tokenizer()
    tokenizer.model_max_length = 24
    transformer = alive(
        lambda: diffusers.PRXTransformer2DModel(
            context_in_dim=GEMMA_WIDTH, hidden_size=32, num_heads=2, depth=2, axes_dim=[8, 8]
        ),
        txt_in=6.0,
        txt_kv_proj=4.0,
    )
    as_given = types.SimpleNamespace(clean_text=str, basic_clean=str)
    cleaner = property(lambda self: as_given, lambda self, value: None)
    cls = type(
        "PRXPipeline",
        (diffusers.PRXPipeline,),
        {"text_preprocessor": cleaner, "__module__": diffusers.PRXPipeline.__module__},
    )
    return cls(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=make_gemma(),
        tokenizer=tokenizer,
        vae=make_flow_vae(),
    )


def make_ltx(cls: Any = diffusers.LTXPipeline) -> Any:
    """LTX-Video, whose VAE shrinks each side by 4 and time by 4; its means and deviations are buffers."""
    channels = 8
    vae = alive(
        lambda: diffusers.AutoencoderKLLTXVideo(
            latent_channels=channels,
            block_out_channels=(8,) * 4,
            decoder_block_out_channels=(8,) * 4,
            layers_per_block=(1,) * 5,
            decoder_layers_per_block=(1,) * 5,
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            patch_size=1,
        )
    )
    vae.latents_mean.fill_(0.2)
    vae.latents_std.fill_(1.5)
    transformer = alive(
        lambda: diffusers.LTXVideoTransformer3DModel(
            in_channels=channels,
            out_channels=channels,
            num_attention_heads=2,
            attention_head_dim=12,
            cross_attention_dim=24,
            num_layers=2,
            caption_channels=T5_WIDTH,
        ),
        attn2=4.0,
        caption_projection=3.0,
    )
    return cls(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=make_t5(),
        tokenizer=make_t5_tokenizer(),
        transformer=transformer,
    )
