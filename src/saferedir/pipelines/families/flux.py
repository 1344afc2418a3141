"""FLUX and its relatives: packed latents, guidance in calls of its own."""

from __future__ import annotations

from saferedir.pipelines.families.facts import Family, TextEncoderFacts
from saferedir.pipelines.packing import FLUX_PACKING

ROWS = (
    Family(
        name="flux",
        pipelines=(
            "FluxPipeline",
            "FluxImg2ImgPipeline",
            "FluxInpaintPipeline",
            "FluxKontextPipeline",
            "FluxKontextInpaintPipeline",
            "FluxFillPipeline",
            "FluxControlPipeline",
            "FluxControlImg2ImgPipeline",
            "FluxControlInpaintPipeline",
            "FluxControlNetPipeline",
            "FluxControlNetImg2ImgPipeline",
            "FluxControlNetInpaintPipeline",
        ),
        prompt_in_attention=True,
        distilled_guidance=True,
        text_encoders=("text_encoder", "text_encoder_2"),
        conditioned_modules=("controlnet",),
        cfg_layout="sequential",
        row_kwargs=(
            "timestep",
            "guidance",
            "joint_attention_kwargs",
            "controlnet_block_samples",
            "controlnet_single_block_samples",
        ),
        pooled_kwarg=("pooled_projections",),
        packing=FLUX_PACKING,
        encoded=("prompt", "pooled"),
        text_encoder_facts=(
            TextEncoderFacts(kind="clip", position="pooled"),
            TextEncoderFacts(kind="t5", encoder="text_encoder_2", tokenizer="tokenizer_2"),
        ),
    ),
)
