"""Tiny pipelines around a transformer: Stable Diffusion 3, FLUX, PixArt, Sana, Lumina, Lumina 2, AuraFlow and Wan.

Imports diffusers and tests.tiny.parts, tests.conftest only. Which arguments a short run takes is in tests/tiny_pipelines.py.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from typing import Any

import diffusers
import torch
from tests.conftest import make_scheduler, make_tokenizer
from tests.tiny.parts import (
    CLIP_WIDTH,
    GEMMA_WIDTH,
    POOLED_WIDTH,
    T5_WIDTH,
    alive,
    make_clip,
    make_deep_vae,
    make_flow_vae,
    make_gemma,
    make_t5,
    make_t5_tokenizer,
    make_umt5,
    make_vae,
    make_video_vae,
)
from transformers import CLIPImageProcessor, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModel

SD3_SIZES: dict[str, Any] = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "caption_projection_dim": 32,
    "joint_attention_dim": T5_WIDTH,
    "pooled_projection_dim": 2 * POOLED_WIDTH,
    "pos_embed_max_size": 16,
}


def make_sd3(cls: Any = diffusers.StableDiffusion3Pipeline, **more: Any) -> Any:
    """Two CLIPs side by side in width (2 x 16, padded to T5's 32), then T5 after them in length."""
    transformer = alive(lambda: diffusers.SD3Transformer2DModel(**SD3_SIZES), add_v_proj=4.0)
    return cls(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=make_flow_vae(),
        text_encoder=make_clip(CLIPTextModelWithProjection, width=CLIP_WIDTH // 2),
        tokenizer=make_tokenizer(),
        text_encoder_2=make_clip(CLIPTextModelWithProjection, width=CLIP_WIDTH // 2, seed=1),
        tokenizer_2=make_tokenizer(),
        text_encoder_3=make_t5(),
        tokenizer_3=make_t5_tokenizer(),
        **more,
    )


def make_sd3_controlnet(
    cls: Any, force_zeros: bool = False, without_prompt: bool = False, extra_channels: int = 0
) -> Any:
    """SD3 beside a ControlNet that reads prompt and pooled embeddings, or zeros in place of the latter, or no prompt."""
    sizes = {**SD3_SIZES, "num_layers": 1}
    if without_prompt:
        sizes |= {"joint_attention_dim": None, "pos_embed_type": None, "use_pos_embed": False}
    controlnet = alive(
        lambda: diffusers.SD3ControlNetModel(
            force_zeros_for_pooled_projection=force_zeros, extra_conditioning_channels=extra_channels, **sizes
        ),
        seed=2,
    )
    return make_sd3(cls, controlnet=controlnet)


FLUX_SIZES: dict[str, Any] = {
    "patch_size": 1,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": T5_WIDTH,
    "pooled_projection_dim": CLIP_WIDTH,
    "axes_dims_rope": (4, 4, 8),
    "guidance_embeds": True,
}


def make_flux(
    cls: Any = diffusers.FluxPipeline, in_channels: int = 64, out_channels: int | None = None, **more: Any
) -> Any:
    """FLUX with an embedded guidance scale, as FLUX.1 [dev]; latents travel packed, four pixels to a token."""
    transformer = alive(
        lambda: diffusers.FluxTransformer2DModel(in_channels=in_channels, out_channels=out_channels, **FLUX_SIZES),
        add_v_proj=4.0,
        to_v=4.0,
        norm=3.0,
        norm1=3.0,
    )
    return cls(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=make_flow_vae(),
        text_encoder=make_clip(),
        tokenizer=make_tokenizer(),
        text_encoder_2=make_t5(),
        tokenizer_2=make_t5_tokenizer(),
        **more,
    )


def make_flux_controlnet(cls: Any = diffusers.FluxControlNetPipeline) -> Any:
    """FLUX beside a ControlNet, which reads the prompt before the transformer does."""
    controlnet = alive(lambda: diffusers.FluxControlNetModel(in_channels=64, **FLUX_SIZES), seed=2)
    return make_flux(cls, controlnet=controlnet)


def make_pixart(cls: Any, sample_size: int, **more: Any) -> Any:
    """PixArt, with the variance channels it predicts. At sample size 128 the transformer also takes the picture's size."""
    transformer = alive(
        lambda: diffusers.PixArtTransformer2DModel(
            sample_size=sample_size,
            patch_size=2,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=3,
            cross_attention_dim=24,
            caption_channels=T5_WIDTH,
        )
    )
    return cls(
        tokenizer=make_t5_tokenizer(),
        text_encoder=make_t5(),
        vae=make_vae(),
        transformer=transformer,
        scheduler=make_scheduler("dpm++"),
        **more,
    )


def make_pixart_alpha() -> Any:
    return make_pixart(diffusers.PixArtAlphaPipeline, sample_size=128)


def make_pixart_sigma() -> Any:
    return make_pixart(diffusers.PixArtSigmaPipeline, sample_size=8)


def with_short_instruction(cls: Any) -> Any:
    """The class, its call's `complex_human_instruction` one word by default: in letters the own one is a thousand tokens."""
    call = cls.__call__.__wrapped__
    values = dict(zip(list(inspect.signature(call).parameters)[1:], call.__defaults__, strict=True))  # all but self's
    values["complex_human_instruction"] = ["draw"]
    short = types.FunctionType(call.__code__, call.__globals__, "__call__", tuple(values.values()), call.__closure__)
    functools.update_wrapper(short, call)
    del short.__wrapped__  # type: ignore[attr-defined]
    return type(cls.__name__, (cls,), {"__call__": torch.no_grad()(short), "__module__": cls.__module__})


SANA_SIZES: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 32,
    "out_channels": 32,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": GEMMA_WIDTH,
    "sample_size": 8,
}


def make_sana(cls: Any = None, **more: Any) -> Any:
    transformer = alive(lambda: diffusers.SanaTransformer2DModel(**SANA_SIZES))
    parts = {
        "tokenizer": make_t5_tokenizer(),
        "text_encoder": make_gemma(),
        "vae": make_deep_vae(),
        "transformer": transformer,
        "scheduler": diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    }
    return (cls or with_short_instruction(diffusers.SanaPipeline))(**{**parts, **more})


def make_sana_sprint(cls: Any) -> Any:
    """Sana-Sprint: guidance is embedded, and two steps of TrigFlow around a denoiser of flow matching."""
    transformer = alive(lambda: diffusers.SanaTransformer2DModel(guidance_embeds=True, **SANA_SIZES))
    return make_sana(
        with_short_instruction(cls), transformer=transformer, scheduler=diffusers.SCMScheduler(sigma_data=0.5)
    )


def make_sana_controlnet() -> Any:
    controlnet = alive(lambda: diffusers.SanaControlNetModel(**{**SANA_SIZES, "num_layers": 1}), seed=2)
    return make_sana(with_short_instruction(diffusers.SanaControlNetPipeline), controlnet=controlnet)


def make_lumina2() -> Any:
    transformer = alive(
        lambda: diffusers.Lumina2Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            hidden_size=32,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 6, 6),
            axes_lens=(300, 32, 32),
            cap_feat_dim=GEMMA_WIDTH,
        ),
        linear_2=3.0,
    )
    return diffusers.Lumina2Pipeline(
        tokenizer=make_t5_tokenizer(),
        text_encoder=make_gemma(),
        vae=make_flow_vae(levels=4),  # the pipeline takes the shrinking factor 8 for granted
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
    )


def make_lumina() -> Any:
    """The first Lumina-Next: conditional rows first, variance channels after the latents' own."""
    transformer = alive(
        lambda: diffusers.LuminaNextDiT2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=32,
            num_layers=2,
            num_attention_heads=4,
            num_kv_heads=2,
            multiple_of=16,
            cross_attention_dim=GEMMA_WIDTH,
        ),
        caption_embedder=3.0,
    )
    with torch.no_grad():
        transformer.pad_token.zero_()  # left unset by its constructor, and unused
        for layer in transformer.layers:
            layer.gate.fill_(1.0)  # zero, it shuts the prompt out
    return diffusers.LuminaPipeline(
        tokenizer=make_t5_tokenizer(),
        text_encoder=make_gemma(),
        vae=make_vae(levels=4),  # the pipeline takes the shrinking factor 8 for granted
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def make_aura_flow() -> Any:
    transformer = alive(
        lambda: diffusers.AuraFlowTransformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=T5_WIDTH,
            caption_projection_dim=32,
            pos_embed_max_size=64,
        ),
        add_v_proj=8.0,
        to_v=8.0,
        norm1=12.0,
        norm1_context=12.0,
        norm=12.0,
        to_out=3.0,
        proj_out=3.0,
    )
    return diffusers.AuraFlowPipeline(
        tokenizer=make_t5_tokenizer(),
        text_encoder=make_umt5(),
        vae=make_vae(),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
    )


def make_wan(
    cls: Any = diffusers.WanPipeline,
    boundary_ratio: float | None = None,
    in_channels: int = 16,
    image_width: int | None = None,
    **more: Any,
) -> Any:
    """Wan 2.1, or with a boundary Wan 2.2: a second transformer takes over below that share of the noise.

    Image to video has 36 channels; with an `image_width` the transformer attends to the features of the first image, too.
    """

    def make_transformer(seed: int) -> diffusers.WanTransformer3DModel:
        return alive(
            lambda: diffusers.WanTransformer3DModel(
                patch_size=(1, 2, 2),
                in_channels=in_channels,
                out_channels=16,
                image_dim=image_width,
                added_kv_proj_dim=None if image_width is None else 24,
                num_attention_heads=2,
                attention_head_dim=12,
                ffn_dim=32,
                num_layers=2,
                text_dim=T5_WIDTH,
                freq_dim=32,
                rope_max_seq_len=32,
            ),
            seed,
            attn2=4.0,
            text_embedder=3.0,
            proj_out=2.0,
        )

    # diffusers cleans prompts of these two with ftfy, installed or not
    vars(sys.modules[cls.__module__]).setdefault("ftfy", types.SimpleNamespace(fix_text=lambda text: text))
    if cls is not diffusers.WanVideoToVideoPipeline:
        more |= {
            "transformer_2": make_transformer(seed=1) if boundary_ratio is not None else None,
            "boundary_ratio": boundary_ratio,
        }
    return cls(
        tokenizer=make_t5_tokenizer(),
        text_encoder=make_umt5(),
        vae=make_video_vae(),
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=make_transformer(seed=0),
        **more,
    )


def make_wan_with_image() -> Any:
    """Wan 2.1 from an image, whose features the transformer attends to."""
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    return make_wan(
        diffusers.WanImageToVideoPipeline,
        in_channels=36,
        image_width=8,
        image_encoder=alive(lambda: CLIPVisionModel(vision)),
        image_processor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    )
