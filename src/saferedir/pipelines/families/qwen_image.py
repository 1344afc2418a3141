"""Qwen-Image, its editor and Nucleus-Image: packed latents, true guidance in calls of its own, prompts as long as their words."""

from __future__ import annotations

from dataclasses import replace

from saferedir.pipelines.families.facts import Family
from saferedir.pipelines.packing import QWEN_PACKING

_QWEN_IMAGE = Family(
    name="qwen-image",
    pipelines=(
        "QwenImagePipeline",
        "QwenImageImg2ImgPipeline",
        "QwenImageInpaintPipeline",
        "QwenImageControlNetPipeline",
        "QwenImageControlNetInpaintPipeline",
    ),
    text_encoders=("text_encoder",),
    conditioned_modules=("controlnet",),
    cfg_layout="sequential",
    row_kwargs=("timestep", "guidance", "controlnet_block_samples", "img_shapes"),
    mask_kwarg="encoder_hidden_states_mask",
    packing=QWEN_PACKING,
    encoded=("prompt", "mask"),
    length_matters=False,
    prompt_lengths="own",
)
ROWS = (
    _QWEN_IMAGE,
    replace(
        _QWEN_IMAGE,
        name="qwen-image-edit",
        pipelines=("QwenImageEditPipeline", "QwenImageEditPlusPipeline", "QwenImageEditInpaintPipeline"),
        conditioned_modules=(),
        encoder_reads_image=True,
    ),
    replace(
        _QWEN_IMAGE,
        name="nucleus-image",
        pipelines=("NucleusMoEImagePipeline",),
        conditioned_modules=(),
        sign=-1.0,
    ),
)
