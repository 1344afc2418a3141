"""Random parts that tiny pipelines share: tokenizers, text encoders, VAEs, and `alive`, which undoes zero initialisation.

Imports diffusers, transformers and the tokenizer of tests.conftest only; every part comes from a fixed seed.
Pipelines are put together in tests/tiny/unets.py and tests/tiny/dits.py.
"""

from __future__ import annotations

import functools
import io
import string
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
from tests.conftest import make_tokenizer
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

Model = TypeVar("Model", bound=nn.Module)

CLIP_WIDTH = 32
T5_WIDTH = 32
POOLED_WIDTH = 16
GEMMA_WIDTH = 16
GLM_WIDTH = 16


def alive(make: Callable[[], Model], seed: int = 0, **gains: float) -> Model:
    """`make()` under a fixed seed, with its all-zero weights (ControlNet's outputs, gates) redrawn; eval mode.

    `gains` multiply the weight matrices of every submodule so named, to let a condition be heard in a random network.
    """
    torch.manual_seed(seed)
    model = make().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not weight.numel():
                raise ValueError(
                    f"{name} has shape {tuple(weight.shape)}; give the model a width that leaves it some weights."
                )
            if weight.ndim < 2:
                continue
            if not weight.any():
                weight.normal_(std=weight[0].numel() ** -0.5)
            for submodule in gains.keys() & set(name.split(".")):
                weight.mul_(gains[submodule])
    return model


def make_t5_tokenizer() -> T5Tokenizer:
    """A sentence-piece tokenizer of the 26 letters; also stands in for Gemma's."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5Tokenizer(
        vocab=pieces + [(letter, -3.0) for letter in string.ascii_lowercase], extra_ids=0, model_max_length=2048
    )


def make_clip(
    cls: type[CLIPTextModel] | type[CLIPTextModelWithProjection] = CLIPTextModel,
    *,
    width: int = CLIP_WIDTH,
    seed: int = 0,
) -> Any:
    """A two-layer CLIP text encoder; with projection its pooled output has `POOLED_WIDTH` numbers."""
    tokenizer = make_tokenizer()
    config = CLIPTextConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=width,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=64,
        hidden_act="gelu",
        projection_dim=POOLED_WIDTH,
        initializer_factor=5.0,  # small embeddings would drown in the positions', and pooled vectors be alike
    )
    return alive(lambda: cls(config), seed)


def make_t5() -> T5EncoderModel:
    """A one-layer T5 encoder."""
    return alive(lambda: T5EncoderModel(T5Config(**_t5_sizes())))


def make_umt5() -> UMT5EncoderModel:
    """A one-layer multilingual T5 encoder, Wan's."""
    return alive(lambda: UMT5EncoderModel(UMT5Config(**_t5_sizes())))


def _t5_sizes() -> dict[str, Any]:
    return {"vocab_size": 64, "d_model": T5_WIDTH, "d_kv": 8, "d_ff": 37, "num_layers": 1, "num_heads": 4}


def make_gemma() -> Gemma2Model:
    """A two-layer Gemma 2: Lumina reads the layer before the last."""
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=GEMMA_WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=2048,
        initializer_range=0.3,
        pad_token_id=0,
    )
    return alive(lambda: Gemma2Model(config))


@functools.cache
def _sentencepiece_file() -> tuple[tempfile.TemporaryDirectory[str], Path]:
    """A sentencepiece model of the 26 letters, trained in some milliseconds; its folder lives as long as this process."""
    from sentencepiece import SentencePieceTrainer

    folder, written = tempfile.TemporaryDirectory(), io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(string.ascii_lowercase)]),
        model_writer=written,
        model_type="char",
        vocab_size=32,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = Path(folder.name, "tokenizer.model")
    path.write_bytes(written.getvalue())
    return folder, path


def make_glm_tokenizer() -> Any:
    """Kolors' own tokenizer of a sentencepiece model of letters; it pads on the left."""
    from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer

    return ChatGLMTokenizer(str(_sentencepiece_file()[1]))


def make_glm() -> Any:
    """A three-layer ChatGLM: Kolors reads the layer before the last, and pools the last token of the last one."""
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel

    config = ChatGLMConfig(
        num_layers=3,
        padded_vocab_size=64,
        hidden_size=GLM_WIDTH,
        ffn_hidden_size=32,
        kv_channels=8,
        num_attention_heads=2,
        multi_query_attention=True,
        multi_query_group_num=1,
        seq_length=256,
        add_qkv_bias=True,
        original_rope=True,
        use_cache=False,
    )

    return alive(lambda: with_norms(ChatGLMModel(config, empty_init=False)))


def with_norms(model: Any) -> Any:
    """The ChatGLM, its norms ones: they come without values."""
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.ones_(weight)
    return model


def make_vae(channels: int = 4, *, levels: int = 3, **changes: Any) -> diffusers.AutoencoderKL:
    """An image VAE that shrinks each side by 2^(levels - 1)."""
    return alive(
        lambda: diffusers.AutoencoderKL(
            block_out_channels=[8] * levels,
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
            layers_per_block=1,
            norm_num_groups=2,
            latent_channels=channels,
            **changes,
        )
    )


def make_flow_vae(channels: int = 16, *, levels: int = 3) -> diffusers.AutoencoderKL:
    """A VAE as SD3, FLUX and Lumina 2 have it: shifted latents, no quantisation convolutions."""
    return make_vae(
        channels, levels=levels, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False
    )


def make_deep_vae(channels: int = 32) -> diffusers.AutoencoderDC:
    """Sana's deep-compression autoencoder, shrinking each side by 4 only; no shift, no sampling."""
    return alive(
        lambda: diffusers.AutoencoderDC(
            latent_channels=channels,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 16, channels),
            decoder_block_out_channels=(8, 16, channels),
            encoder_qkv_multiscales=((), (), (5,)),
            decoder_qkv_multiscales=((), (), (5,)),
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41407,
        )
    )


def make_video_vae() -> diffusers.AutoencoderKLWan:
    """Wan's causal video VAE: 8 times smaller in space, 4 in time, 16 channels with a mean and deviation each."""
    return alive(
        lambda: diffusers.AutoencoderKLWan(
            base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        )
    )
