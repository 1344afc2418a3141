"""PRX: prompts of T5Gemma under a mask; guided, it generates one image a call, for it is given the time of two rows."""

from __future__ import annotations

from saferedir.pipelines.families.facts import Family

ROWS = (
    Family(
        name="prx",
        pipelines=("PRXPipeline",),
        text_encoders=("text_encoder",),
        row_kwargs=("timestep",),
        mask_kwarg="attention_mask",
        prompt_width="context_in_dim",
        encoded=("prompt", "mask"),
        has_bos=True,
        length_matters=False,
    ),
)
