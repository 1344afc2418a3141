"""Tiny pipelines around a UNet: Stable Diffusion and Stable Diffusion XL, their image-to-image, inpainting and ControlNet.

Imports diffusers and tests.tiny.parts, tests.conftest only. Which arguments a short run takes is in tests/tiny_pipelines.py.
"""

from __future__ import annotations

from typing import Any

import diffusers
from tests.conftest import make_scheduler, make_tokenizer
from tests.tiny.parts import (
    CLIP_WIDTH,
    GLM_WIDTH,
    POOLED_WIDTH,
    alive,
    make_clip,
    make_glm,
    make_glm_tokenizer,
    make_vae,
)
from transformers import CLIPTextModelWithProjection

SD_SIZES: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "sample_size": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "cross_attention_dim": CLIP_WIDTH,
    "attention_head_dim": 2,
    "norm_num_groups": 2,
}
SDXL_TIME_WIDTH = 8  # of each of the six numbers in `time_ids`; the refiner has five
SDXL_SIZES: dict[str, Any] = {
    **SD_SIZES,
    "attention_head_dim": (2, 4),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": SDXL_TIME_WIDTH,
    "cross_attention_dim": 2 * CLIP_WIDTH,
    "projection_class_embeddings_input_dim": POOLED_WIDTH + 6 * SDXL_TIME_WIDTH,
}
REFINER_SIZES: dict[str, Any] = {
    **SDXL_SIZES,
    "cross_attention_dim": CLIP_WIDTH,
    "projection_class_embeddings_input_dim": POOLED_WIDTH + 5 * SDXL_TIME_WIDTH,
}


def make_unet(sizes: dict[str, Any], in_channels: int = 4, **gains: float) -> diffusers.UNet2DConditionModel:
    """A two-level conditional UNet; 9 input channels make it an inpainting one. `gains` as in `alive`."""
    return alive(
        lambda: diffusers.UNet2DConditionModel(
            in_channels=in_channels, out_channels=4, up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **sizes
        ),
        seed=1,
        **gains,
    )


def make_controlnet(sizes: dict[str, Any]) -> diffusers.ControlNetModel:
    """A ControlNet for a UNet of the same sizes; its condition is 4 times larger than the latents, as ours are."""
    sizes = {name: value for name, value in sizes.items() if name != "sample_size"}
    return alive(
        lambda: diffusers.ControlNetModel(conditioning_embedding_out_channels=(4, 4, 4), **sizes),
        seed=2,
        controlnet_cond_embedding=4.0,
    )


def make_sd(cls: Any = diffusers.StableDiffusionPipeline, in_channels: int = 4, **more: Any) -> Any:
    """A pipeline of the Stable Diffusion family with DDIM."""
    parts = {
        "vae": make_vae(),
        "text_encoder": make_clip(),
        "tokenizer": make_tokenizer(),
        "unet": make_unet(SD_SIZES, in_channels, attn2=3.0),
        "scheduler": make_scheduler("ddim"),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    return cls(**{**parts, **more})


def make_sd_controlnet(cls: Any = diffusers.StableDiffusionControlNetPipeline, **more: Any) -> Any:
    return make_sd(cls, controlnet=make_controlnet(SD_SIZES), **more)


def make_sd_depth() -> Any:
    """Depth to image: a depth map in a fifth channel; the map is given, so there is no estimator."""
    pipe = make_sd(diffusers.StableDiffusionPipeline, in_channels=5)
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    parts = {name: pipe.components[name] for name in names}
    return diffusers.StableDiffusionDepth2ImgPipeline(**parts, depth_estimator=None, feature_extractor=None)


def make_lcm(cls: Any) -> Any:
    """A latent consistency model: the guidance scale is embedded, and the pipeline returns the last estimate."""
    unet = make_unet({**SD_SIZES, "time_cond_proj_dim": 8}, attn2=3.0)
    return make_sd(cls, unet=unet, scheduler=make_scheduler("lcm"))


def make_animatediff(cls: Any, **more: Any) -> Any:
    """AnimateDiff: a UNet of Stable Diffusion with motion modules, which reads the prompt once for each frame."""
    unet = alive(
        lambda: diffusers.UNetMotionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
            up_block_types=("CrossAttnUpBlockMotion", "UpBlockMotion"),
            cross_attention_dim=CLIP_WIDTH,
            num_attention_heads=2,
            motion_num_attention_heads=2,
            motion_max_seq_length=8,
            norm_num_groups=2,
        ),
        seed=1,
        attn2=3.0,
    )
    return cls(
        vae=make_vae(),
        text_encoder=make_clip(),
        tokenizer=make_tokenizer(),
        unet=unet,
        motion_adapter=None,
        scheduler=make_scheduler("ddim"),
        **more,
    )


def make_adapter() -> diffusers.T2IAdapter:
    """A T2I-Adapter, whose features are added in the down blocks of a UNet."""
    return alive(
        lambda: diffusers.T2IAdapter(
            in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=8, adapter_type="full_adapter_xl"
        ),
        seed=2,
        adapter=3.0,
    )


def make_sd_adapter() -> Any:
    return make_sd(diffusers.StableDiffusionAdapterPipeline, adapter=make_adapter())


def make_sdxl_adapter() -> Any:
    return make_sdxl(diffusers.StableDiffusionXLAdapterPipeline, adapter=make_adapter())


def make_sdxl(cls: Any = diffusers.StableDiffusionXLPipeline, **more: Any) -> Any:
    """A pipeline of the Stable Diffusion XL family with Euler's method."""
    parts = {
        "vae": make_vae(),
        "text_encoder": make_clip(),
        "tokenizer": make_tokenizer(),
        "text_encoder_2": make_clip(CLIPTextModelWithProjection, seed=1),
        "tokenizer_2": make_tokenizer(),
        "unet": make_unet(SDXL_SIZES),
        "scheduler": make_scheduler("euler"),
    }
    return cls(**{**parts, **more})


def make_sdxl_controlnet(cls: Any = diffusers.StableDiffusionXLControlNetPipeline, **more: Any) -> Any:
    return make_sdxl(cls, controlnet=make_controlnet(SDXL_SIZES), **more)


def make_sdxl_union(cls: Any) -> Any:
    """SDXL beside a ControlNet for six kinds of conditions."""
    sizes = {name: value for name, value in SDXL_SIZES.items() if name != "sample_size"}
    controlnet = alive(
        lambda: diffusers.ControlNetUnionModel(
            conditioning_embedding_out_channels=(4, 4, 4),
            num_trans_channel=8,
            num_trans_head=2,
            num_proj_channel=8,
            **sizes,
        ),
        seed=2,
        controlnet_cond_embedding=4.0,
    )
    return make_sdxl(cls, controlnet=controlnet)


def make_sdxl_refiner() -> Any:
    """SDXL's second stage: no first text encoder, and an aesthetic score where the base has a target size."""
    return make_sdxl(
        diffusers.StableDiffusionXLImg2ImgPipeline,
        text_encoder=None,
        tokenizer=None,
        unet=make_unet(REFINER_SIZES),
        requires_aesthetics_score=True,
    )


def make_kolors(cls: Any = diffusers.KolorsPipeline, **more: Any) -> Any:
    """Kolors: SDXL's UNet, which projects the states of a ChatGLM to its own width."""
    sizes = {
        **SDXL_SIZES,
        "encoder_hid_dim": GLM_WIDTH,
        "encoder_hid_dim_type": "text_proj",
        "projection_class_embeddings_input_dim": GLM_WIDTH + 6 * SDXL_TIME_WIDTH,
    }
    return cls(
        vae=make_vae(),
        text_encoder=make_glm(),
        tokenizer=make_glm_tokenizer(),
        unet=make_unet(sizes, attn2=2.0),
        scheduler=make_scheduler("ddim"),
        **more,
    )
