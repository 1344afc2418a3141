"""HunyuanDiT: BERT's states and T5's, in two calls of `encode_prompt`; T5's padding is read, so that guards are given no mask."""

from __future__ import annotations

from saferedir.pipelines.families.facts import Family, SecondPrompt

ROWS = (
    Family(
        name="hunyuan-dit",
        pipelines=("HunyuanDiTPipeline", "HunyuanDiTPAGPipeline", "HunyuanDiTControlNetPipeline"),
        text_encoders=("text_encoder", "text_encoder_2"),
        conditioned_modules=("controlnet",),
        prompt_arg=(2, "encoder_hidden_states"),
        time_arg=(1, "timestep"),
        # no `mask_kwarg`: T5's states are pooled over all tokens, padding included, and padding holds what words say
        row_kwargs=(
            "text_embedding_mask",
            "text_embedding_mask_t5",
            "image_meta_size",
            "style",
            "controlnet_block_samples",
        ),
        has_inner_mask=True,
        prompt_width="cross_attention_dim",
        second_prompt=SecondPrompt(
            argument="encoder_hidden_states_t5",
            position="tokens",
            width="cross_attention_dim_t5",
            encoder_settings={"max_sequence_length": 256, "text_encoder_index": 1},
        ),
        encoder_settings={"max_sequence_length": 77, "text_encoder_index": 0},
    ),
)
