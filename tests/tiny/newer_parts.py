"""Parts of the newer families' tiny pipelines: language models, their tokenizers and processors, VAEs.

Imports diffusers and tests.tiny, tests.conftest only. Which arguments a short run takes is in tests/newer_pipelines.py.
"""

from __future__ import annotations

import functools
import inspect
import types
from typing import Any

import diffusers
import numpy as np
import torch
from tests.tiny.parts import (
    T5Tokenizer,
    alive,
    make_t5_tokenizer,
)
from transformers import (
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

LLM_WIDTH = 16
GLYPH_WIDTH = 12
BERT_WIDTH = 24
#: what the user says, and nothing of the instructions around it
TEMPLATE = (
    "{% for m in messages if m['role'] == 'user' %}{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}{% endfor %}"
)


def make_chat_tokenizer() -> T5Tokenizer:
    """A tokenizer of letters that knows conversations."""
    tokenizer = make_t5_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_llm(layers: int = 2, cls: Any = Qwen3Model) -> Any:
    """A language model that embeds prompts."""
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=LLM_WIDTH,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=2048,
        initializer_range=0.3,
        pad_token_id=0,
    )
    return alive(lambda: cls(config))


def make_glyph_encoder() -> T5EncoderModel:
    """A one-layer T5 encoder of bytes."""
    config = T5Config(vocab_size=384, d_model=GLYPH_WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return alive(lambda: T5EncoderModel(config))


def with_defaults(cls: Any, **changes: Any) -> Any:
    """The class, arguments of its call with other defaults: what suits a text encoder of three layers."""
    call = inspect.unwrap(cls.__call__)
    values = dict(zip(list(inspect.signature(call).parameters)[1:], call.__defaults__, strict=True)) | changes
    short = types.FunctionType(call.__code__, call.__globals__, "__call__", tuple(values.values()), call.__closure__)
    functools.update_wrapper(short, call)
    del short.__wrapped__  # type: ignore[attr-defined]
    return type(cls.__name__, (cls,), {"__call__": torch.no_grad()(short), "__module__": cls.__module__})


def without_instructions(cls: Any, *names: str) -> Any:
    """The class, its instructions to the text encoder (attributes `names`, "…_idx" for their tokens) empty."""

    def empty(value: Any) -> property:
        return property(lambda self: value, lambda self, own: None)

    empty_ones = {name: empty(0 if "_id" in name else "" if name == "system_prompt" else "{}") for name in names}
    return type(cls.__name__, (cls,), {**empty_ones, "__module__": cls.__module__})


def make_qwen_vae() -> Any:
    return alive(
        lambda: diffusers.AutoencoderKLQwenImage(
            base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        )
    )


class SeeingModel(Qwen3Model):
    """A language model that adds the mean of an image to every token."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.see = torch.nn.Linear(3, config.hidden_size)

    def forward(
        self, input_ids: Any = None, pixel_values: Any = None, image_grid_thw: Any = None, **kwargs: Any
    ) -> Any:
        embeds = self.embed_tokens(input_ids)
        if pixel_values is not None:
            embeds = embeds + self.see(pixel_values.mean((2, 3)).mean(0, keepdim=True))[:, None]
        return super().forward(inputs_embeds=embeds, **kwargs)


class Processor:
    """Tokens of texts and pixels of images."""

    def __init__(self) -> None:
        self.tokenizer = make_chat_tokenizer()

    def __call__(self, text: Any, images: Any = None, **kwargs: Any) -> Any:
        found = self.tokenizer(text, **kwargs)
        if images is not None:
            pictures = images if isinstance(images, list) else [images]
            found["pixel_values"] = torch.stack([to_tensor(each) for each in pictures])
        return found

    def apply_chat_template(self, messages: Any, **kwargs: Any) -> Any:
        return self.tokenizer.apply_chat_template(messages, **kwargs)


def to_tensor(image: Any) -> torch.Tensor:
    """(3, h, w) in [0, 1] of a PIL image."""
    return torch.from_numpy(np.asarray(image.convert("RGB").resize((8, 8)), dtype=np.float32)).permute(2, 0, 1) / 255


def encodes_the_mean(vae: Any) -> Any:
    """The VAE, its samples the mean: images are sampled without the call's generator, or by one of many."""
    encode = vae.encode

    def encoded(image: Any) -> Any:
        mean = encode(image).latent_dist.mode()
        return types.SimpleNamespace(latent_dist=types.SimpleNamespace(sample=lambda *_, **__: mean))

    vae.encode = encoded
    return vae


def make_hunyuan_vae() -> Any:
    """A VAE of videos that shrinks sides and frames by 4."""
    return alive(
        lambda: diffusers.AutoencoderKLHunyuanVideo(
            latent_channels=4,
            block_out_channels=(8, 8, 8),
            down_block_types=("HunyuanVideoDownBlock3D",) * 3,
            up_block_types=("HunyuanVideoUpBlock3D",) * 3,
            layers_per_block=1,
            norm_num_groups=2,
            spatial_compression_ratio=4,
            temporal_compression_ratio=4,
            mid_block_add_attention=False,
        )
    )
