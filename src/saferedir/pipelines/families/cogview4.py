"""CogView3-Plus; CogView4: prompts as long as the longest of a batch, without a mask; timesteps not those of the noise."""

from __future__ import annotations

from saferedir.pipelines.families.facts import Family, TextEncoderFacts

ROWS = (
    Family(
        name="cogview-3-plus",
        pipelines=("CogView3PlusPipeline",),
        text_encoders=("text_encoder",),
        row_kwargs=("timestep", "original_size", "target_size", "crop_coords"),
        prompt_width="text_embed_dim",
        text_encoder_facts=(TextEncoderFacts(kind="t5"),),
    ),
    Family(
        name="cogview-4",
        pipelines=("CogView4Pipeline", "CogView4ControlPipeline"),
        text_encoders=("text_encoder",),
        cfg_layout="sequential",
        row_kwargs=("timestep", "original_size", "target_size", "crop_coords"),
        time_from_sigma=True,
        prompt_width="text_embed_dim",
        encoded=("prompt",),
        prompt_lengths="longest",
    ),
)
