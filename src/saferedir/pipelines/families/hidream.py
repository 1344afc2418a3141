"""HiDream: the states of T5, beside them those of every layer of Llama, and pooled embeddings of two CLIPs."""

from __future__ import annotations

from saferedir.pipelines.families.facts import Family, SecondPrompt

ROWS = (
    Family(
        name="hidream",
        pipelines=("HiDreamImagePipeline",),
        text_encoders=("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4"),
        prompt_arg=(2, "encoder_hidden_states_t5"),
        row_kwargs=("timesteps",),
        pooled_kwarg=("pooled_embeds",),
        keeps_area=True,
        sign=-1.0,
        prompt_width="caption_channels.0",
        second_prompt=SecondPrompt(
            argument="encoder_hidden_states_llama3",
            position="channels",
            width="caption_channels.1",
            layers="llama_layers",
        ),
        encoded=("prompt", "negative", "second", "negative_second", "pooled"),
    ),
)
