"""Stable Diffusion 1 and 2, XL and 3."""

from __future__ import annotations

from saferedir.pipelines.families.facts import Family, TextEncoderFacts

UNET_ROWS = (
    "timestep_cond",
    "added_cond_kwargs",
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)

#: two CLIPs side by side, as in SDXL and Stable Diffusion 3
_CLIP_PAIR = (
    TextEncoderFacts(kind="clip", layer=-2),
    TextEncoderFacts(kind="clip", encoder="text_encoder_2", tokenizer="tokenizer_2", position="channels", layer=-2),
)
ROWS = (
    Family(
        name="stable-diffusion",
        pipelines=(
            "StableDiffusionPipeline",
            "StableDiffusionImg2ImgPipeline",
            "StableDiffusionInpaintPipeline",
            "StableDiffusionControlNetPipeline",
            "StableDiffusionControlNetImg2ImgPipeline",
            "StableDiffusionControlNetInpaintPipeline",
        ),
        text_encoders=("text_encoder",),
        denoiser="unet",
        conditioned_modules=("controlnet",),
        latents_arg=(0, "sample"),
        prompt_arg=(2, "encoder_hidden_states"),
        time_arg=(1, "timestep"),
        row_kwargs=UNET_ROWS,
        prompt_width="cross_attention_dim",
        has_bos=True,
        text_encoder_facts=(TextEncoderFacts(kind="clip"),),
    ),
    Family(
        name="stable-diffusion-xl",
        pipelines=(
            "StableDiffusionXLPipeline",
            "StableDiffusionXLImg2ImgPipeline",
            "StableDiffusionXLInpaintPipeline",
            "StableDiffusionXLControlNetPipeline",
            "StableDiffusionXLControlNetImg2ImgPipeline",
            "StableDiffusionXLControlNetInpaintPipeline",
        ),
        text_encoders=("text_encoder", "text_encoder_2"),
        denoiser="unet",
        conditioned_modules=("controlnet",),
        latents_arg=(0, "sample"),
        prompt_arg=(2, "encoder_hidden_states"),
        time_arg=(1, "timestep"),
        row_kwargs=UNET_ROWS,
        pooled_kwarg=("added_cond_kwargs", "text_embeds"),
        prompt_width="cross_attention_dim",
        encoded=("prompt", "negative", "pooled", "negative_pooled"),
        has_bos=True,
        text_encoder_facts=_CLIP_PAIR,
    ),
    Family(
        name="stable-diffusion-3",
        pipelines=(
            "StableDiffusion3Pipeline",
            "StableDiffusion3Img2ImgPipeline",
            "StableDiffusion3InpaintPipeline",
        ),
        text_encoders=("text_encoder", "text_encoder_2", "text_encoder_3"),
        row_kwargs=("timestep", "joint_attention_kwargs"),
        pooled_kwarg=("pooled_projections",),
        auxiliary_kwarg="skip_layers",
        encoded=("prompt", "negative", "pooled", "negative_pooled"),
        has_bos=True,
        text_encoder_facts=(
            *_CLIP_PAIR,
            TextEncoderFacts(kind="t5", encoder="text_encoder_3", tokenizer="tokenizer_3", position="tokens"),
        ),
    ),
)
