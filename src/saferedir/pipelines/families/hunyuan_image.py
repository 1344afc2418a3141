"""HunyuanImage 2.1 and its refiner: a prompt, and beside it the words in it that are to be painted; a guider in two calls."""

from __future__ import annotations

from saferedir.pipelines.families.facts import Family, SecondPrompt

ROWS = (
    Family(
        name="hunyuan-image",
        pipelines=("HunyuanImagePipeline", "HunyuanImageRefinerPipeline"),
        text_encoders=("text_encoder", "text_encoder_2"),
        cfg_layout="sequential",
        row_kwargs=("timestep", "timestep_r", "guidance"),
        mask_kwarg="encoder_attention_mask",
        first_token_is_read=True,
        prompt_width="text_embed_dim",
        second_prompt=SecondPrompt(
            argument="encoder_hidden_states_2",
            position="tokens",
            width="text_embed_2_dim",
            mask="encoder_attention_mask_2",
            length="tokenizer_2_max_length",
        ),
        guiders=("AdaptiveProjectedMixGuidance",),
        encoded=("prompt", "mask", "second", "second_mask"),
        length_matters=False,
        differences={"HunyuanImageRefinerPipeline": {"second_prompt": None, "text_encoders": ("text_encoder",)}},
    ),
)
