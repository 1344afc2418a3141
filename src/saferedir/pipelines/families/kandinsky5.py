"""Kandinsky 5: latents with their channels last, prompts of Qwen2.5-VL as long as the longest of a batch, a pooled CLIP state."""

from __future__ import annotations

from dataclasses import replace

from saferedir.pipelines.families.facts import Family
from saferedir.pipelines.packing import (
    KANDINSKY_IMAGE_PACKING,
    KANDINSKY_IMAGE_VIDEO_PACKING,
    KANDINSKY_VIDEO_PACKING,
)

_KANDINSKY_5 = Family(
    name="kandinsky-5",
    pipelines=("Kandinsky5T2IPipeline",),
    text_encoders=("text_encoder", "text_encoder_2"),
    cfg_layout="sequential",
    row_kwargs=("timestep",),
    pooled_kwarg=("pooled_projections",),
    positions_kwarg="text_rope_pos",
    packing=KANDINSKY_IMAGE_PACKING,
    omits_shift=True,
    prompt_width="in_text_dim",
    latent_channels="out_visual_dim",
    encoded=("prompt", "pooled", "lengths"),
    length_matters=False,
    prompt_lengths="longest",
)
ROWS = (
    _KANDINSKY_5,
    replace(
        _KANDINSKY_5,
        name="kandinsky-5-edit",
        pipelines=("Kandinsky5I2IPipeline",),
        encoder_reads_image=True,
    ),
    replace(
        _KANDINSKY_5,
        name="kandinsky-5-video",
        pipelines=("Kandinsky5T2VPipeline", "Kandinsky5I2VPipeline"),
        packing=KANDINSKY_VIDEO_PACKING,
        differences={"Kandinsky5I2VPipeline": {"packing": KANDINSKY_IMAGE_VIDEO_PACKING}},
    ),
)
