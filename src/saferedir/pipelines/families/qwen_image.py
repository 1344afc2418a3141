"""Qwen-Image: packed latents, true guidance in calls of its own, prompts as long as their words."""

from __future__ import annotations

from saferedir.pipelines.families.facts import Family
from saferedir.pipelines.packing import QWEN_PACKING

ROWS = (
    Family(
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
        row_kwargs=("timestep", "guidance", "controlnet_block_samples"),
        mask_kwarg="encoder_hidden_states_mask",
        packing=QWEN_PACKING,
        encoded=("prompt", "mask"),
        length_matters=False,
        prompt_lengths="own",
    ),
)
