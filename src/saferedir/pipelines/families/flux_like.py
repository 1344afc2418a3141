"""Chroma and Ovis-Image: built as FLUX is, with another text encoder and guidance in calls of its own."""

from __future__ import annotations

from saferedir.pipelines.families.facts import Family
from saferedir.pipelines.packing import FLUX_PACKING

ROWS = (
    Family(
        name="chroma",
        pipelines=("ChromaPipeline", "ChromaImg2ImgPipeline"),  # ChromaInpaintPipeline does not run in diffusers 0.42
        text_encoders=("text_encoder",),
        cfg_layout="sequential",
        # no `mask_kwarg`: the mask is added to attention's scores as a number, so that padding is read, and guards must act there
        row_kwargs=("timestep", "attention_mask", "joint_attention_kwargs"),
        packing=FLUX_PACKING,
        encoded=("prompt",),
    ),
    Family(
        name="ovis-image",
        pipelines=("OvisImagePipeline",),
        text_encoders=("text_encoder",),
        cfg_layout="sequential",
        row_kwargs=("timestep", "joint_attention_kwargs"),
        packing=FLUX_PACKING,
        encoded=("prompt",),
    ),
)
