"""Tiny pipelines with several text encoders: HunyuanDiT, HunyuanImage, HiDream.

Imports diffusers and tests.tiny, tests.conftest only. Which arguments a short run takes is in tests/newer_pipelines.py.
"""

from __future__ import annotations

import functools
from typing import Any

import diffusers
from tests.conftest import make_tokenizer
from tests.tiny.newer_parts import (
    BERT_WIDTH,
    GLYPH_WIDTH,
    LLM_WIDTH,
    encodes_the_mean,
    make_chat_tokenizer,
    make_glyph_encoder,
    make_llm,
    without_instructions,
)
from tests.tiny.parts import (
    POOLED_WIDTH,
    T5_WIDTH,
    alive,
    make_clip,
    make_flow_vae,
    make_t5,
    make_t5_tokenizer,
    make_vae,
)
from transformers import (
    BertConfig,
    BertModel,
    ByT5Tokenizer,
    CLIPTextModelWithProjection,
    LlamaConfig,
    LlamaForCausalLM,
)

HUNYUAN_DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "patch_size": 2,
    "sample_size": 8,
    "hidden_size": 16,
    "cross_attention_dim": BERT_WIDTH,
    "cross_attention_dim_t5": T5_WIDTH,
    "pooled_projection_dim": 8,
}


def make_hunyuan_dit(cls: Any = diffusers.HunyuanDiTPipeline) -> Any:
    """BERT's 77 tokens, and 256 of T5."""
    transformer = alive(
        lambda: diffusers.HunyuanDiT2DModel(**HUNYUAN_DIT, num_layers=4),
        text_embedder=2.0,
        to_v=3.0,
        to_out=3.0,
        c_proj=6.0,
    )
    bert = BertConfig(
        vocab_size=64,
        hidden_size=BERT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=80,
        initializer_range=0.5,
    )
    more = {}
    if cls is diffusers.HunyuanDiTControlNetPipeline:
        more["controlnet"] = alive(
            lambda: diffusers.HunyuanDiT2DControlNetModel(**HUNYUAN_DIT, transformer_num_layers=4)
        )
    return cls(
        vae=encodes_the_mean(make_vae(levels=4)),
        text_encoder=alive(lambda: BertModel(bert)),
        tokenizer=make_t5_tokenizer(),
        transformer=transformer,
        scheduler=diffusers.DDPMScheduler(
            beta_end=0.018, beta_schedule="scaled_linear", prediction_type="v_prediction"
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=make_t5(),
        tokenizer_2=make_t5_tokenizer(),
        **more,
    )


def make_hidream() -> Any:
    """Four text encoders; images of as many pixels as it wants, 32 x 32, in the sides' proportion."""
    layers = (0, 2)  # of Llama, one for each block
    transformer = alive(
        lambda: diffusers.HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=[T5_WIDTH, LLM_WIDTH],
            text_emb_dim=2 * POOLED_WIDTH,
            num_routed_experts=2,
            num_activated_experts=1,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(8, 8),
            llama_layers=list(layers),
        ),
        caption_projection=3.0,
        to_v=3.0,
        to_v_t=3.0,
    )
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=LLM_WIDTH,
        intermediate_size=32,
        num_hidden_layers=layers[-1] + 1,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
        attn_implementation="eager",
    )

    class Short(diffusers.HiDreamImagePipeline):
        default_sample_size = property(lambda self: 8, lambda self, value: None)

    return type("HiDreamImagePipeline", (Short,), {"__module__": diffusers.HiDreamImagePipeline.__module__})(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=make_flow_vae(),
        text_encoder=make_clip(CLIPTextModelWithProjection),
        tokenizer=make_tokenizer(),
        text_encoder_2=make_clip(CLIPTextModelWithProjection, seed=1),
        tokenizer_2=make_tokenizer(),
        text_encoder_3=make_t5(),
        tokenizer_3=make_t5_tokenizer(),
        text_encoder_4=alive(lambda: LlamaForCausalLM(config)),
        tokenizer_4=make_chat_tokenizer(),
        transformer=transformer,
    )


class Painted:
    """Every prompt is in quotation marks, so that HunyuanImage's second text encoder reads it, too; few tokens."""

    tokenizer_max_length = property(lambda self: 24, lambda self, value: None)
    tokenizer_2_max_length = property(lambda self: 18, lambda self, value: None)

    @functools.wraps(diffusers.HunyuanImagePipeline.encode_prompt)
    def encode_prompt(self, prompt: Any = None, *args: Any, **kwargs: Any) -> Any:
        texts = [prompt] if isinstance(prompt, str) else prompt
        quoted = texts and [f'"{text}"' if text else text for text in texts]
        return super().encode_prompt(quoted, *args, **kwargs)  # type: ignore[misc]


def make_hunyuan_image(cls: Any = diffusers.HunyuanImagePipeline, *, is_distilled: bool = False) -> Any:
    """Guided by its guider, whose last step is projected; or distilled, by "meanflow", and without painted words."""
    is_refiner = cls is diffusers.HunyuanImageRefinerPipeline
    transformer = alive(
        lambda: diffusers.HunyuanImageTransformer2DModel(
            in_channels=16 if is_refiner else 8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=(1, 1, 1) if is_refiner else (1, 1),
            rope_axes_dim=(2, 2, 4) if is_refiner else (4, 4),
            guidance_embeds=is_distilled or is_refiner,
            use_meanflow=is_distilled,
            text_embed_dim=LLM_WIDTH,
            text_embed_2_dim=None if is_refiner else GLYPH_WIDTH,
        ),
        proj_in=6.0,
        linear_3=8.0,
        add_v_proj=6.0,
        to_v=4.0,
        to_out=4.0,
    )
    config = {"in_channels": 3, "out_channels": 3, "block_out_channels": (32, 32, 32), "layers_per_block": 1}
    if is_refiner:
        vae = alive(
            lambda: diffusers.AutoencoderKLHunyuanImageRefiner(
                **config, latent_channels=4, spatial_compression_ratio=4, temporal_compression_ratio=1
            )
        )
    else:
        vae = alive(
            lambda: diffusers.AutoencoderKLHunyuanImage(
                **config, latent_channels=8, spatial_compression_ratio=4, sample_size=64, scaling_factor=0.75
            )
        )
    parts = {} if is_refiner else {"text_encoder_2": make_glyph_encoder(), "tokenizer_2": ByT5Tokenizer()}
    guider = diffusers.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1)
    bases = (cls,) if is_refiner or is_distilled else (Painted, cls)
    few = {name: value for name, value in vars(Painted).items() if name.startswith("tokenizer")}
    short = type(cls.__name__, bases, {**few, "__module__": cls.__module__})
    return without_instructions(short, "prompt_template_encode", "prompt_template_encode_start_idx")(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=make_llm(3),
        tokenizer=make_chat_tokenizer(),
        guider=None if is_distilled else guider,
        **parts,
    )
