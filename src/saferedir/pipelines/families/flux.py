"""FLUX and its relatives: packed latents, guidance in calls of its own."""

from __future__ import annotations

from saferedir.pipelines.families.facts import Family, TextEncoderFacts
from saferedir.pipelines.packing import FLUX_PACKING

ROWS = (
    Family(
        name="flux",
        pipelines=("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"),
        text_encoders=("text_encoder", "text_encoder_2"),
        cfg_layout="sequential",
        row_kwargs=("timestep", "guidance", "joint_attention_kwargs"),
        pooled_kwarg=("pooled_projections",),
        packing=FLUX_PACKING,
        encoded=("prompt", "pooled"),
        text_encoder_facts=(
            TextEncoderFacts(kind="clip", position="pooled"),
            TextEncoderFacts(kind="t5", encoder="text_encoder_2", tokenizer="tokenizer_2"),
        ),
    ),
)
