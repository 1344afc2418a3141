"""Tiny pipelines of Qwen-Image and of those that have its VAE: Krea 2, Nucleus-Image.

Imports diffusers and tests.tiny, tests.conftest only. Which arguments a short run takes is in tests/newer_pipelines.py.
"""

from __future__ import annotations

import sys
from typing import Any

import diffusers
from tests.tiny.newer_parts import (
    LLM_WIDTH,
    Processor,
    SeeingModel,
    make_chat_tokenizer,
    make_llm,
    make_qwen_vae,
    without_instructions,
)
from tests.tiny.parts import (
    alive,
)
from transformers import (
    Qwen3Model,
)


def make_qwen_image(cls: Any = diffusers.QwenImagePipeline, **parts: Any) -> Any:
    transformer = alive(
        lambda: diffusers.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=64,
            out_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=LLM_WIDTH,
            axes_dims_rope=(8, 4, 4),
        ),
        add_v_proj=8.0,
        to_out=2.0,
    )
    return without_instructions(cls, "prompt_template_encode", "prompt_template_encode_start_idx")(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=make_qwen_vae(),
        tokenizer=make_chat_tokenizer(),
        **{"text_encoder": make_llm(), **parts},
    )


def make_qwen_image_edit(cls: Any = diffusers.QwenImageEditPipeline) -> Any:
    """Its images are as small as ours: it makes a megapixel of them by itself."""
    module: Any = sys.modules[cls.__module__]
    many = cls is diffusers.QwenImageEditPlusPipeline
    module.calculate_dimensions = lambda area, ratio: (48, 32) if many else (48, 32, None)
    return make_qwen_image(cls, processor=Processor(), text_encoder=make_llm(cls=SeeingModel))


def make_qwen_image_controlnet(cls: Any = diffusers.QwenImageControlNetPipeline, extra_channels: int = 0) -> Any:
    """Qwen-Image beside a ControlNet; that for inpainting reads a mask in `extra_channels` token channels."""
    return make_qwen_image(
        cls,
        controlnet=alive(
            lambda: diffusers.QwenImageControlNetModel(
                patch_size=2,
                in_channels=64,
                out_channels=16,
                num_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=LLM_WIDTH,
                axes_dims_rope=(8, 4, 4),
                extra_condition_channels=extra_channels,
            )
        ),
    )


class ThreeAxes(Qwen3Model):
    """A language model that is given a token's place on three axes, which are one."""

    def forward(self, *args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        return super().forward(*args, position_ids=position_ids[0], **kwargs)


def make_krea2() -> Any:
    transformer = alive(
        lambda: diffusers.Krea2Transformer2DModel(
            in_channels=64,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=32,
            timestep_embed_dim=16,
            text_hidden_dim=LLM_WIDTH,
            num_text_layers=3,
            text_num_attention_heads=2,
            text_num_key_value_heads=1,
            text_intermediate_size=32,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(8, 4, 4),
        ),
        txt_in=3.0,
        to_v=3.0,
    )

    class Short(diffusers.Krea2Pipeline):
        """No instructions: one token behind a prompt and its padding, the end of an empty text."""

        prompt_template_encode_prefix = property(lambda self: "", lambda self, value: None)
        prompt_template_encode_suffix = property(lambda self: "", lambda self, value: None)
        prompt_template_encode_start_idx = property(lambda self: 0, lambda self, value: None)
        prompt_template_encode_num_suffix_tokens = property(lambda self: 1, lambda self, value: None)

    return type("Krea2Pipeline", (Short,), {"__module__": diffusers.Krea2Pipeline.__module__})(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=make_qwen_vae(),
        text_encoder=make_llm(3, ThreeAxes),
        tokenizer=make_chat_tokenizer(),
        text_encoder_select_layers=(1, 2, 3),
    )


def make_nucleus_image() -> Any:
    """Its prompt embeddings are the states of the eighth layer from the end."""
    transformer = alive(
        lambda: diffusers.NucleusMoEImageTransformer2DModel(
            patch_size=2,
            in_channels=64,
            out_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=LLM_WIDTH,
            axes_dims_rope=(8, 4, 4),
            moe_enabled=False,
            mlp_ratio=12.0,
        ),
        encoder_proj=8.0,
        add_v_proj=8.0,
    )
    return diffusers.NucleusMoEImagePipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=make_qwen_vae(),
        text_encoder=make_llm(8),
        processor=Processor(),
    )
