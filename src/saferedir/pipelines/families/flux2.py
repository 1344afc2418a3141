"""FLUX.2 and its small relative Klein: latents are patches, one a token; long prompts of several layers of a language model."""

from __future__ import annotations

from saferedir.pipelines.families.facts import Family
from saferedir.pipelines.packing import FLUX2_PACKING

ROWS = (
    Family(
        name="flux-2",
        pipelines=("Flux2Pipeline", "Flux2KleinPipeline", "Flux2KleinInpaintPipeline"),
        text_encoders=("text_encoder",),
        cfg_layout="sequential",
        row_kwargs=("timestep", "guidance", "txt_ids", "img_ids", "joint_attention_kwargs"),
        distilled_guidance=True,
        packing=FLUX2_PACKING,
        encoded=("prompt",),
        differences={  # these guide by two predictions
            "Flux2KleinPipeline": {"distilled_guidance": False},
            "Flux2KleinInpaintPipeline": {"distilled_guidance": False},
        },
    ),
)
