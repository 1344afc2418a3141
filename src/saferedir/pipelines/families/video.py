"""Video models, which also generate single images."""

from __future__ import annotations

from saferedir.pipelines.families.facts import Family, TextEncoderFacts

ROWS = (
    Family(
        name="wan",
        pipelines=("WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline"),
        prompt_in_attention=True,
        text_encoders=("text_encoder",),
        more_denoisers=("transformer_2",),
        cfg_layout="sequential",
        row_kwargs=("timestep", "encoder_hidden_states_image"),
        prompt_width="text_dim",
        length_matters=False,
        text_encoder_facts=(TextEncoderFacts(kind="t5", is_masked=True, is_zeroed=True),),
        differences={
            "WanVideoToVideoPipeline": {"time_arg": (2, "timestep")}
        },  # it begins late, and sets no begin_index
    ),
)
