"""PixArt, Sana, Lumina and AuraFlow: one transformer, one text encoder, one call a step or two."""

from __future__ import annotations

from saferedir.pipelines.families.facts import Family, TextEncoderFacts

ROWS = (
    Family(
        name="pixart",
        pipelines=("PixArtSigmaPipeline", "PixArtAlphaPipeline", "PixArtSigmaPAGPipeline"),
        prompt_in_attention=True,
        text_encoders=("text_encoder",),
        row_kwargs=("timestep", "added_cond_kwargs"),
        mask_kwarg="encoder_attention_mask",
        prompt_width="caption_channels",
        encoded=("prompt", "mask"),
        length_matters=False,
        text_encoder_facts=(TextEncoderFacts(kind="t5", is_masked=True),),
    ),
    Family(
        name="sana",
        pipelines=(
            "SanaPipeline",
            "SanaControlNetPipeline",
            "SanaPAGPipeline",
            "SanaSprintPipeline",
            "SanaSprintImg2ImgPipeline",
        ),
        prompt_in_attention=True,
        text_encoders=("text_encoder",),
        conditioned_modules=("controlnet",),
        row_kwargs=("timestep", "guidance", "controlnet_block_samples"),
        mask_kwarg="encoder_attention_mask",
        prompt_width="caption_channels",
        encoded=("prompt", "mask"),
        has_bos=True,
        length_matters=False,
        differences={name: {"cfg_layout": "none"} for name in ("SanaSprintPipeline", "SanaSprintImg2ImgPipeline")},
    ),
    Family(
        name="lumina-2",
        pipelines=("Lumina2Pipeline",),
        text_encoders=("text_encoder",),
        cfg_layout="sequential",
        mask_kwarg="encoder_attention_mask",
        sign=-1.0,
        prompt_width="cap_feat_dim",
        encoded=("prompt", "mask"),
        has_bos=True,
        length_matters=False,
    ),
    Family(
        name="lumina",
        pipelines=("LuminaPipeline",),
        text_encoders=("text_encoder",),
        cfg_layout="cond_uncond",
        mask_kwarg="encoder_mask",
        sign=-1.0,
        prompt_width="cross_attention_dim",
        encoded=("prompt", "mask"),
        has_bos=True,
    ),
    Family(
        name="aura-flow",
        pipelines=("AuraFlowPipeline",),
        prompt_in_attention=True,
        text_encoders=("text_encoder",),
        encoded=("prompt",),
        length_matters=False,
    ),
)
