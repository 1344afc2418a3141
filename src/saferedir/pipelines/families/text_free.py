"""Class-conditional and unconditional models: no prompt that a guard could read."""

from __future__ import annotations

from saferedir.pipelines.families.facts import Family

ROWS = (
    Family(
        name="dit",
        pipelines=("DiTPipeline",),
        text_encoders=(),
        conditioned_on="class",
        cfg_layout="cond_uncond",
        steps_both_halves=True,
        row_kwargs=("timestep", "class_labels"),
    ),
    Family(
        name="unconditional",
        pipelines=("DDPMPipeline", "DDIMPipeline"),
        text_encoders=(),
        denoiser="unet",
        conditioned_on="nothing",
        latents_arg=(0, "sample"),
        time_arg=(1, "timestep"),
    ),
)
