"""Z-Image: latents and prompts are lists of one tensor a row, and guidance is on at any scale above 0."""

from __future__ import annotations

from saferedir.pipelines.families.facts import Family

ROWS = (
    Family(
        name="z-image",
        pipelines=(
            "ZImagePipeline",
            "ZImageImg2ImgPipeline",
            "ZImageInpaintPipeline",
            "ZImageControlNetPipeline",
            "ZImageControlNetInpaintPipeline",
        ),
        text_encoders=("text_encoder",),
        conditioned_modules=("controlnet",),
        cfg_layout="cond_uncond",
        guidance_offset=1.0,
        truncates_guidance=True,
        listed=("x", "t", "cap_feats"),
        latents_arg=(0, "x"),
        prompt_arg=(2, "cap_feats"),
        row_kwargs=("t", "controlnet_block_samples"),
        mask_kwarg="cap_mask",
        sign=-1.0,
        prompt_width="cap_feat_dim",
        encoded=("prompt",),
        length_matters=False,
        prompt_lengths="own",
    ),
)
