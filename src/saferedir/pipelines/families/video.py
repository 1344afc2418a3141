"""Video models, which also generate single images."""

from __future__ import annotations

from saferedir.pipelines.families.facts import Family, TextEncoderFacts
from saferedir.pipelines.packing import LTX_IMAGE_PACKING, LTX_PACKING

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
    Family(
        name="ltx-video",
        pipelines=("LTXPipeline", "LTXImageToVideoPipeline"),
        prompt_in_attention=True,
        text_encoders=("text_encoder",),
        row_kwargs=("timestep", "attention_kwargs"),
        mask_kwarg="encoder_attention_mask",
        packing=LTX_PACKING,
        prompt_width="caption_channels",
        encoded=("prompt", "mask"),
        text_encoder_facts=(TextEncoderFacts(kind="t5"),),
        differences={"LTXImageToVideoPipeline": {"packing": LTX_IMAGE_PACKING}},
    ),
)
