"""Krea 2: a prompt's tokens have a state of each of several layers of a language model; pos + w (pos - neg) in two calls."""

from __future__ import annotations

from saferedir.pipelines.families.facts import Family
from saferedir.pipelines.packing import KREA_PACKING

ROWS = (
    Family(
        name="krea-2",
        pipelines=("Krea2Pipeline",),
        text_encoders=("text_encoder",),
        cfg_layout="sequential",
        guidance_offset=1.0,
        row_kwargs=("timestep",),
        mask_kwarg="encoder_attention_mask",
        packing=KREA_PACKING,
        prompt_width="text_hidden_dim",
        prompt_layers="num_text_layers",
        encoded=("prompt", "mask"),
        length_matters=False,
    ),
)
