"""Kandinsky 3: a UNet that takes the mean of a prompt's tokens, those under its mask included."""

from __future__ import annotations

from saferedir.pipelines.families.facts import Family

ROWS = (
    Family(
        name="kandinsky-3",
        pipelines=("Kandinsky3Pipeline", "Kandinsky3Img2ImgPipeline"),
        text_encoders=("text_encoder",),
        denoiser="unet",
        guidance_offset=1.0,
        latents_arg=(0, "sample"),
        time_arg=(1, "timestep"),
        row_kwargs=(),
        mask_kwarg="encoder_attention_mask",
        prompt_width="encoder_hid_dim",
        encoder_settings={"_cut_context": True},
        encoded=("prompt", "negative", "mask"),
        length_matters=False,
        prompt_lengths="own",
        padding_is_read=True,
    ),
)
