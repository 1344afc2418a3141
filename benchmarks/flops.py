"""Counts what full-size backbones and a SafeRedir guard on them cost, without any weights; writes docs/cost.md.

Run: python benchmarks/flops.py --out docs
Every model is built from its published configuration (`BACKBONES`, below) on torch's "meta" device, where a tensor has a
shape and no memory, and is run under `FlopCounterMode`. Each parameter count is checked against the known one (2 %).
Training is counted from the trainer's own defaults; times are FLOPs / (peak x utilisation), estimates only.
Reads nothing from the network. Long because the configurations are in it, as data.
"""

from __future__ import annotations

import argparse
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from saferedir.guards.saferedir.network import Redirector, RedirectorConfig
from saferedir.training.saferedir.train_config import TrainConfig

TOLERANCE = 0.02  # between counted and known numbers of parameters
UTILISATION = 0.30  # ASSUMPTION: share of the dense bfloat16 peak that is reached
PEAKS = {"A100": 312e12, "H100": 989e12, "RTX 4090": 165e12}  # vendors' dense bfloat16 peaks, FLOP/s
CPU_SPEED = 100e9  # ASSUMPTION: float32 FLOP/s reached on the CPU, where the trainer evaluates
PAIRS, BENIGN = 400, 267  # ASSUMPTION: lines of the pairs file, as `saferedir pairs build` makes them by default
Shapes = Mapping[str, Any]  # argument -> shape, or a mapping of the same kind


@dataclass(frozen=True)
class Part:
    """One network: class name, published configuration, the known number of parameters, shapes of one call."""

    kind: str
    config: Mapping[str, Any]
    known: float
    inputs: Shapes


@dataclass(frozen=True)
class Backbone:
    """A pipeline as published. `rows`: denoiser rows a step, 2 under classifier-free guidance."""

    name: str
    hub_id: str
    pipeline: str
    size: str
    denoiser: Part
    encoders: tuple[Part, ...]
    vae: Part
    tokens: int
    prompt_dim: int
    pooled_dim: int
    latent: tuple[int, int, int]  # channels, height, width, as a guard sees them
    frames: int = 1  # latent frames of a video
    rows: int = 2
    steps: int | None = None  # where the published ones are not the pipeline's default
    rollouts: int = TrainConfig.rollouts
    held_out_rollouts: int = TrainConfig.held_out_rollouts
    rollout_steps: int = TrainConfig.rollout_steps

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.denoiser, *self.encoders, self.vae)

    @property
    def num_steps(self) -> int:
        steps: int = self.steps or self.default("num_inference_steps")
        return steps

    def default(self, argument: str) -> Any:
        """A default of the diffusers pipeline's call."""
        return inspect.signature(getattr(diffusers, self.pipeline).__call__).parameters[argument].default


# ---------------------------------------------------------------------- published configurations


@dataclass(frozen=True)
class Plain:
    """An argument that is no tensor."""

    value: Any


def clip(known: float, tokens: int = 77, projected: bool = True, **sizes: Any) -> Part:
    kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    return Part(kind, {"vocab_size": 49408, "max_position_embeddings": 77, **sizes}, known, {"input_ids": (1, tokens)})


Sizes = dict[str, Any]

CLIP_L: Sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_H: Sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
CLIP_G: Sizes = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
T5_XXL = {
    "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
GEMMA_2_2B = {
    "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
}  # fmt: skip


QWEN_3_4B: Sizes = {
    "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip
#: the language model of Qwen2.5-VL 7B, without its head; the vision tower (0.68 billion) does not run on text
QWEN_25_7B: Sizes = {
    "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4,
}  # fmt: skip
FLUX_TRANSFORMER: Sizes = {
    "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
    "guidance_embeds": True,
}  # fmt: skip


def flux(image_tokens: int) -> Part:
    inputs = {
        "hidden_states": (1, image_tokens, 64), "encoder_hidden_states": (1, 512, 4096), "pooled_projections": (1, 768),
        "timestep": (1,), "guidance": (1,), "img_ids": (image_tokens, 3), "txt_ids": (512, 3),
    }  # fmt: skip
    return Part("FluxTransformer2DModel", FLUX_TRANSFORMER, 11.90e9, inputs)


def qwen3(tokens: int) -> Part:
    return Part("Qwen3Model", QWEN_3_4B, 4.022e9, {"input_ids": (1, tokens)})


def t5(tokens: int) -> Part:
    return Part("T5EncoderModel", {"vocab_size": 32128, **T5_XXL}, 4.762e9, {"input_ids": (1, tokens)})


def gemma(tokens: int) -> Part:
    return Part("Gemma2Model", GEMMA_2_2B, 2.614e9, {"input_ids": (1, tokens)})


def kl_vae(latent: tuple[int, int, int], known: float = 83.7e6) -> Part:
    """The Stable Diffusion autoencoder; with 16 channels it has no quantisation convolutions (SD3, FLUX)."""
    config = {
        "latent_channels": latent[0], "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        "use_quant_conv": latent[0] == 4, "use_post_quant_conv": latent[0] == 4,
    }  # fmt: skip
    return Part("AutoencoderKL", config, known, {"z": (1, *latent)})


DC_AE = {
    "latent_channels": 32, "attention_head_dim": 32, "scaling_factor": 0.41407,
    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3), "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "downsample_block_type": "conv", "upsample_block_type": "interpolate",
    "decoder_norm_types": "rms_norm", "decoder_act_fns": "silu",
}  # fmt: skip


def unet(known: float, size: int, tokens_by: tuple[int, int], more: Shapes | None = None, **config: Any) -> Part:
    inputs = {"sample": (1, 4, size, size), "timestep": (1,), "encoder_hidden_states": (1, *tokens_by), **(more or {})}
    return Part(
        "UNet2DConditionModel", {"sample_size": size, "cross_attention_dim": tokens_by[1], **config}, known, inputs
    )


def sd3(known: float, tokens: int, depth: int, **config: Any) -> Part:
    inputs = {
        "hidden_states": (1, 16, 128, 128), "encoder_hidden_states": (1, tokens, 4096),
        "pooled_projections": (1, 2048), "timestep": (1,),
    }  # fmt: skip
    sizes = {
        "num_layers": depth,
        "num_attention_heads": depth,
        "caption_projection_dim": 64 * depth,
        "sample_size": 128,
    }
    return Part("SD3Transformer2DModel", {**sizes, "pos_embed_max_size": 192, **config}, known, inputs)


SD3_ENCODERS = (clip(123.65e6, projection_dim=768, **CLIP_L), clip(694.7e6, projection_dim=1280, **CLIP_G), t5(256))

BACKBONES = (
    Backbone(
        "Stable Diffusion 1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5", "StableDiffusionPipeline", "512 px",
        unet(860e6, 64, (77, 768)),
        (clip(123.1e6, projected=False, **CLIP_L),),
        kl_vae((4, 64, 64)),
        tokens=77, prompt_dim=768, pooled_dim=0, latent=(4, 64, 64),
    ),
    Backbone(
        "Stable Diffusion 2.1", "stabilityai/stable-diffusion-2-1", "StableDiffusionPipeline", "768 px",
        unet(866e6, 96, (77, 1024), attention_head_dim=(5, 10, 20, 20), use_linear_projection=True),
        (clip(340.4e6, projected=False, hidden_act="gelu", **CLIP_H),),
        kl_vae((4, 96, 96)),
        tokens=77, prompt_dim=1024, pooled_dim=0, latent=(4, 96, 96),
    ),
    Backbone(
        "SDXL base 1.0", "stabilityai/stable-diffusion-xl-base-1.0", "StableDiffusionXLPipeline", "1024 px",
        unet(
            2.567e9, 128, (77, 2048), {"added_cond_kwargs": {"text_embeds": (1, 1280), "time_ids": (1, 6)}},
            block_out_channels=(320, 640, 1280), attention_head_dim=(5, 10, 20),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10), use_linear_projection=True, addition_embed_type="text_time",
            addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        ),
        (
            clip(123.1e6, projected=False, **CLIP_L),
            clip(694.7e6, hidden_act="gelu", projection_dim=1280, **CLIP_G),
        ),
        kl_vae((4, 128, 128)),
        tokens=77, prompt_dim=2048, pooled_dim=1280, latent=(4, 128, 128),
    ),
    Backbone(
        "SD3 medium", "stabilityai/stable-diffusion-3-medium-diffusers", "StableDiffusion3Pipeline", "1024 px",
        sd3(2.03e9, 333, 24),
        SD3_ENCODERS,
        kl_vae((16, 128, 128)),
        tokens=333, prompt_dim=4096, pooled_dim=2048, latent=(16, 128, 128),
    ),
    Backbone(
        "SD3.5 large", "stabilityai/stable-diffusion-3.5-large", "StableDiffusion3Pipeline", "1024 px",
        sd3(8.06e9, 333, 38, qk_norm="rms_norm"),
        SD3_ENCODERS,
        kl_vae((16, 128, 128)),
        tokens=333, prompt_dim=4096, pooled_dim=2048, latent=(16, 128, 128),
    ),
    Backbone(
        "FLUX.1-dev", "black-forest-labs/FLUX.1-dev", "FluxPipeline", "1024 px",
        flux(4096),
        (clip(123.1e6, projected=False, **CLIP_L), t5(512)),
        kl_vae((16, 128, 128)),
        tokens=512, prompt_dim=4096, pooled_dim=768, latent=(16, 128, 128), rows=1,
    ),
    Backbone(
        "FLUX.1-Kontext-dev", "black-forest-labs/FLUX.1-Kontext-dev", "FluxKontextPipeline", "1024 px",
        flux(2 * 4096),  # the image's tokens beside the latents'
        (clip(123.1e6, projected=False, **CLIP_L), t5(512)),
        kl_vae((16, 128, 128)),
        tokens=512, prompt_dim=4096, pooled_dim=768, latent=(16, 128, 128), rows=1,
    ),
    Backbone(
        "FLUX.2-klein-4B", "black-forest-labs/FLUX.2-klein-4B", "Flux2KleinPipeline", "1024 px",
        Part(
            "Flux2Transformer2DModel",
            {
                "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680,
                "guidance_embeds": False,
            },
            3.88e9,
            {
                "hidden_states": (1, 4096, 128), "encoder_hidden_states": (1, 512, 7680), "timestep": (1,),
                "img_ids": (4096, 4), "txt_ids": (512, 4),
            },
        ),
        (qwen3(512),),
        Part("AutoencoderKLFlux2", {}, 84.0e6, {"z": (1, 32, 128, 128)}),
        tokens=512, prompt_dim=7680, pooled_dim=0, latent=(128, 64, 64), rows=1, steps=4,
    ),
    Backbone(
        "Z-Image-Turbo", "Tongyi-MAI/Z-Image-Turbo", "ZImagePipeline", "1024 px",
        Part(
            "ZImageTransformer2DModel", {}, 6.15e9,
            {"x": [(16, 1, 128, 128)], "t": (1,), "cap_feats": [(512, 2560)]},
        ),
        (qwen3(512),),
        kl_vae((16, 128, 128)),
        tokens=512, prompt_dim=2560, pooled_dim=0, latent=(16, 128, 128), rows=1, steps=8,
    ),
    Backbone(
        "Qwen-Image", "Qwen/Qwen-Image", "QwenImagePipeline", "1024 px",
        Part(
            "QwenImageTransformer2DModel", {}, 20.43e9,
            {
                "hidden_states": (1, 4096, 64), "encoder_hidden_states": (1, 512, 3584), "timestep": (1,),
                "img_shapes": Plain([[(1, 64, 64)]]),
            },
        ),
        (Part("Qwen2_5_VLTextModel", QWEN_25_7B, 7.07e9, {"input_ids": (1, 512)}),),
        Part("AutoencoderKLQwenImage", {}, 127e6, {"z": (1, 16, 1, 128, 128)}),
        tokens=512, prompt_dim=3584, pooled_dim=0, latent=(16, 128, 128),
    ),
    Backbone(
        "PixArt-Sigma XL", "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "PixArtSigmaPipeline", "1024 px",
        Part(
            "PixArtTransformer2DModel",
            {
                "sample_size": 128, "num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72,
                "in_channels": 4, "out_channels": 8, "cross_attention_dim": 1152, "caption_channels": 4096,
                "interpolation_scale": 2, "use_additional_conditions": False,
            },
            0.611e9,
            {
                "hidden_states": (1, 4, 128, 128), "encoder_hidden_states": (1, 300, 4096), "timestep": (1,),
                "encoder_attention_mask": (1, 300),
            },
        ),
        (t5(300),),
        kl_vae((4, 128, 128)),
        tokens=300, prompt_dim=4096, pooled_dim=0, latent=(4, 128, 128),
    ),
    Backbone(
        "Sana 1.6B", "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers", "SanaPipeline", "1024 px",
        Part(
            "SanaTransformer2DModel",
            {
                "in_channels": 32, "out_channels": 32, "num_attention_heads": 70, "attention_head_dim": 32,
                "num_layers": 20, "num_cross_attention_heads": 20, "cross_attention_head_dim": 112,
                "cross_attention_dim": 2240, "caption_channels": 2304, "mlp_ratio": 2.5, "sample_size": 32,
            },
            1.60e9,
            {
                "hidden_states": (1, 32, 32, 32), "encoder_hidden_states": (1, 300, 2304), "timestep": (1,),
                "encoder_attention_mask": (1, 300),
            },
        ),
        (gemma(300),),
        Part("AutoencoderDC", DC_AE, 312e6, {"z": (1, 32, 32, 32)}),
        tokens=300, prompt_dim=2304, pooled_dim=0, latent=(32, 32, 32),
    ),
    Backbone(
        "Lumina-Image 2.0", "Alpha-VLLM/Lumina-Image-2.0", "Lumina2Pipeline", "1024 px",
        Part(
            "Lumina2Transformer2DModel",
            {
                "in_channels": 16, "hidden_size": 2304, "num_layers": 26, "num_refiner_layers": 2,
                "num_attention_heads": 24, "num_kv_heads": 8, "multiple_of": 256, "axes_dim_rope": (32, 32, 32),
                "axes_lens": (300, 512, 512), "cap_feat_dim": 2304,
            },
            2.61e9,
            {
                "hidden_states": (1, 16, 128, 128), "timestep": (1,), "encoder_hidden_states": (1, 256, 2304),
                "encoder_attention_mask": (1, 256),
            },
        ),
        (gemma(256),),
        kl_vae((16, 128, 128)),
        tokens=256, prompt_dim=2304, pooled_dim=0, latent=(16, 128, 128),
    ),
    Backbone(
        "Wan 2.1 T2V 1.3B", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "WanPipeline", "832x480, 81 frames",
        Part(
            "WanTransformer3DModel",
            {
                "num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30,
                "in_channels": 16, "out_channels": 16, "text_dim": 4096, "freq_dim": 256, "cross_attn_norm": True,
                "qk_norm": "rms_norm_across_heads", "patch_size": (1, 2, 2),
            },
            1.42e9,
            {"hidden_states": (1, 16, 21, 60, 104), "timestep": (1,), "encoder_hidden_states": (1, 512, 4096)},
        ),
        (Part("UMT5EncoderModel", {"vocab_size": 256384, **T5_XXL}, 5.68e9, {"input_ids": (1, 512)}),),
        Part("AutoencoderKLWan", {}, 127e6, {"z": (1, 16, 21, 60, 104)}),
        tokens=512, prompt_dim=4096, pooled_dim=0, latent=(16, 60, 104), frames=21,
        rollouts=64, held_out_rollouts=42, rollout_steps=10,
    ),
)  # fmt: skip


# ---------------------------------------------------------------------- counting


def count_flops(run: Callable[[], object]) -> int:
    """FLOPs of matrix products, convolutions and attention in `run`; a multiplication is one, an addition is one.

    On meta tensors `scaled_dot_product_attention` falls back to its two matrix products, which are counted.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def meta(name: str, shape: Any) -> Any:
    """Shapes -> meta tensors of these shapes."""
    if isinstance(shape, Plain):
        return shape.value
    if isinstance(shape, list):
        return [meta(name, each) for each in shape]
    if isinstance(shape, Mapping):
        return {key: meta(key, value) for key, value in shape.items()}
    return torch.empty(shape, device="meta", dtype=torch.long if name == "input_ids" else torch.float32)


def build(part: Part) -> nn.Module:
    """The network of a part on the meta device."""
    with torch.device("meta"):
        model: nn.Module
        if hasattr(diffusers, part.kind):
            model = getattr(diffusers, part.kind)(**part.config)
        else:
            kind = getattr(transformers, part.kind)
            model = kind(kind.config_class(**part.config))
    model = model.to("meta").eval()
    if part.kind == "Lumina2Transformer2DModel":
        _with_readable_mask(model)
    return model


def _with_readable_mask(model: Any) -> None:
    """Lumina reads its prompt lengths as Python numbers, which meta tensors have not: all tokens are real here."""
    lay_out = model.rope_embedder.forward
    model.rope_embedder.forward = lambda hidden, mask: lay_out(hidden, torch.ones(mask.shape, dtype=torch.long))


@torch.no_grad()
def part_cost(part: Part) -> tuple[int, int]:
    """(parameters, FLOPs of one call: one row, one prompt, or one decoding)."""
    model: Any = build(part)
    parameters = sum(value.numel() for value in model.parameters())
    call = model.decode if part.kind.startswith("Autoencoder") else model
    return parameters, count_flops(lambda: call(**meta("", part.inputs)))


def redirector_of(backbone: Backbone) -> Redirector:
    """A SafeRedir network of the sizes that this backbone needs, on the meta device."""
    with torch.device("meta"):
        return Redirector(
            RedirectorConfig(
                prompt_dim=backbone.prompt_dim, latent_channels=backbone.latent[0], pooled_dim=backbone.pooled_dim
            )
        ).eval()


def redirector_cost(backbone: Backbone) -> dict[str, int]:
    """Parameters, FLOPs of the four things a network is asked for, and of one optimiser step over one row of them all.

    Of a video the guard judges each latent frame ("image"); the trainer learns from one frame ("frame", "joint", "fit").
    """
    network = redirector_of(backbone)
    embeds: Tensor = meta("e", (1, backbone.tokens, backbone.prompt_dim))
    mask = torch.ones(1, backbone.tokens, dtype=torch.bool, device="meta")
    pooled: Tensor | None = meta("p", (1, backbone.pooled_dim)) if backbone.pooled_dim else None
    text = (embeds, mask, pooled)
    frame: tuple[Tensor, Tensor] = (meta("x0", (1, *backbone.latent)), meta("t", (1,)))

    def fit() -> None:
        redirection = network.redirection(*text)
        outputs = [network.prompt_logits(*text), redirection.delta, redirection.mask, redirection.alpha]
        outputs += [network.image_logits(*frame), network.joint_logits(*frame, embeds, mask, pooled)]
        torch.stack([value.sum() for value in outputs]).sum().backward()

    with torch.no_grad():
        costs = {
            "prompt": count_flops(lambda: network.prompt_logits(*text)),
            "redirection": count_flops(lambda: network.redirection(*text)),
            "frame": count_flops(lambda: network.image_logits(*frame)),
            "joint": count_flops(lambda: network.joint_logits(*frame, embeds, mask, pooled)),
        }
    costs["image"] = backbone.frames * costs["frame"]
    return {**costs, "fit": count_flops(fit), "parameters": sum(value.numel() for value in network.parameters())}


@dataclass(frozen=True)
class Cost:
    """Everything counted for one backbone, in FLOPs, parameters and bytes."""

    backbone: Backbone
    parameters: tuple[int, ...]  # of the parts
    row: int
    encode: int
    decode: int
    guard: dict[str, int]

    @property
    def deviations(self) -> list[float]:
        return [n / part.known - 1 for n, part in zip(self.parameters, self.backbone.parts, strict=True)]

    @property
    def is_confirmed(self) -> bool:
        return all(abs(value) <= TOLERANCE for value in self.deviations)

    @property
    def image(self) -> int:
        """One image (or video) at the pipeline's default steps: prompt and, under guidance, negative prompt."""
        steps = self.backbone.num_steps
        return self.backbone.rows * (steps * self.row + self.encode) + self.decode

    @property
    def guard_image(self) -> int:
        """The guard's part of it: prompt side once, image side at each step."""
        steps = self.backbone.num_steps
        return self.guard["prompt"] + self.guard["redirection"] + steps * self.guard["image"]

    @property
    def guard_bytes(self) -> int:
        """float32 weights and the anchor's embedding."""
        return 4 * (self.guard["parameters"] + self.backbone.tokens * self.backbone.prompt_dim)

    @property
    def images(self) -> int:
        return self.backbone.rollouts + self.backbone.held_out_rollouts

    @property
    def rollouts(self) -> int:
        return self.images * self.backbone.rollout_steps * self.backbone.rows * self.row

    @property
    def encodes(self) -> int:
        """Both sides of each pair and the benign lines; each drawn prompt once more, and as the pipeline does it."""
        return (2 * PAIRS + BENIGN + self.images * (1 + self.backbone.rows)) * self.encode

    @property
    def fitting(self) -> int:
        return TrainConfig.steps * TrainConfig.batch * self.guard["fit"]

    @property
    def evaluation(self) -> int:
        """Held-out frames through the image and the joint verdict: each evaluation, and twice to calibrate."""
        times = -(-TrainConfig.steps // TrainConfig.evaluate_every) + 2
        frames = self.backbone.held_out_rollouts * self.backbone.rollout_steps * self.backbone.frames
        return times * frames * (self.guard["frame"] + self.guard["joint"])

    @property
    def rollout_bytes(self) -> int:
        """x0 of each step in float16, of a video all frames, as `roll_out` keeps them on disk and in main memory."""
        return 2 * math.prod(self.backbone.latent) * self.backbone.frames * self.images * self.backbone.rollout_steps

    @property
    def embedding_bytes(self) -> int:
        """bfloat16 embeddings of the drawn prompts and of the pairs file, in main memory."""
        return 2 * self.backbone.tokens * self.backbone.prompt_dim * (self.images + 3 * PAIRS + BENIGN)

    @property
    def weight_bytes(self) -> int:
        """All parts in bfloat16."""
        return 2 * sum(self.parameters)

    @property
    def training(self) -> int:
        """What runs on the accelerator."""
        return self.rollouts + self.encodes + self.fitting

    def hours(self, peak: float) -> float:
        return self.training / (peak * UTILISATION) / 3600


def count(backbone: Backbone) -> Cost:
    """Build and count every part of a backbone, and the guard's network on it."""
    denoiser, *encoders, vae = (part_cost(part) for part in backbone.parts)
    return Cost(
        backbone=backbone,
        parameters=tuple(parameters for parameters, _ in (denoiser, *encoders, vae)),
        row=denoiser[1],
        encode=sum(flops for _, flops in encoders),
        decode=vae[1],
        guard=redirector_cost(backbone),
    )


# ---------------------------------------------------------------------- the page

HEAD = """# What it costs

Made by `python benchmarks/flops.py --out docs`. **Nothing here is a measurement of time, and no model's weights were
used:** every network is built from its published configuration on torch's "meta" device and its FLOPs are counted with
`torch.utils.flop_counter.FlopCounterMode`. A multiplication is one FLOP, an addition another; matrix products,
convolutions and attention are counted (attention by its two matrix products, unmasked), element-wise work is not.
The [dress rehearsal](rehearsal.md) measures: every family at real shapes, Stable Diffusion 1.5 undiminished.
"""

SIZES = """
## The models, and a check of their configurations

Counted number of parameters against the known one. A model with a part that is off by more than {tolerance:.0%} is
left out. Memory is all parts in bfloat16, without activations.

"""

IMAGES = """
## One image, and the guard's share of it

Steps and size are the defaults of the installed diffusers' pipeline, or the steps that the model was distilled for (4 of
FLUX.2-klein, 8 of Z-Image-Turbo). One image is (rows a step) x (steps x denoiser + prompt encoding) + decoding; two rows a
step under classifier-free guidance, one where guidance is distilled (FLUX) or left out (FLUX.2-klein, Z-Image-Turbo). The
guard's part of an image is the prompt verdict and the redirection once, and the image verdict at every step, for a
image that is redirected; the redirection falls away for the others. Guard memory is its float32 weights and the
anchor's embedding. Sana is counted with 300 tokens, without the instruction text that its pipeline puts before the
prompt; FLUX.2-klein, Z-Image and Qwen-Image with 512, the longest that a call takes by default. FLUX.1-Kontext is counted with
an input image of the same size, in training too, where roll-outs may do without. Of Qwen-Image's text encoder the vision
tower (0.68 billion parameters), which a prompt alone does not use, is left out. Of Wan the image verdict is
counted for each of the 21 latent frames.

"""

TRAINING = """
## Training a guard: estimate from counted FLOPs

Defaults of the trainer: {rollouts} + {held_out} roll-outs of {steps} steps (Wan: {wan}, as its example does),
{optimiser} optimiser steps of {batch} rows, and {pairs} pairs with {benign} benign lines. Roll-outs are generated at the size
above with the rows a step of the first table and are not decoded.

**hours = FLOPs / (peak x utilisation) / 3600**, with the vendors' dense bfloat16 peaks:
{peaks}.
The utilisation of {utilisation:.0%} is an *assumption*, as if every step ran in bfloat16 at that share of the peak; the
fitting is small, runs in float32 and will reach less. FLOPs are roll-outs + encodes + fitting. The hours say nothing
about whether a model fits into a card's memory: see the weights, and add activations.

Evaluation and calibration run on the CPU and are counted apart, at an *assumed* {cpu:.0f} GFLOP/s in float32. Disk is what
the roll-outs leave in `<out>.work/` while training (one float16 latent a step, of a video all its frames), and as much
again is held in main memory; embeddings of all prompts are held in main memory in the pipeline's dtype, counted
as bfloat16. Disk and hours fall in proportion to `--rollouts` and `--rollout-steps`.

"""


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown; the first column is text, the others are numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def sizes_table(costs: list[Cost]) -> str:
    rows = []
    for cost in costs:
        parts = zip(cost.backbone.parts, cost.parameters, cost.deviations, strict=True)
        rows += [
            [cost.backbone.name, part.kind, f"{n:,}", f"{part.known / 1e6:,.1f} M", f"{100 * off:+.2f} %"]
            for part, n, off in parts
        ]
    return table(["model", "part", "counted", "known", "off by"], rows)


def images_table(costs: list[Cost]) -> str:
    head = [
        "model", "size", "steps x rows", "denoiser row, GFLOP", "encoding, GFLOP", "decoding, GFLOP", "image, TFLOP",
        "tokens", "prompt verdict, GFLOP", "redirection, GFLOP", "image verdict, GFLOP", "guard an image, GFLOP",
        "share", "guard, MB",
    ]  # fmt: skip
    rows = []
    for cost in costs:
        backbone, guard = cost.backbone, cost.guard
        rows.append([
            backbone.name, backbone.size, f"{backbone.num_steps} x {backbone.rows}",
            f"{cost.row / 1e9:,.0f}", f"{cost.encode / 1e9:,.0f}", f"{cost.decode / 1e9:,.0f}", f"{cost.image / 1e12:,.0f}",
            str(backbone.tokens), f"{guard['prompt'] / 1e9:.2f}", f"{guard['redirection'] / 1e9:.2f}",
            f"{guard['image'] / 1e9:.2f}", f"{cost.guard_image / 1e9:.1f}",
            f"{100 * cost.guard_image / cost.image:.4f} %", f"{cost.guard_bytes / 1e6:.1f}",
        ])  # fmt: skip
    return table(head, rows)


def training_table(costs: list[Cost]) -> str:
    head = [
        "model", "roll-outs x steps", "roll-outs, PFLOP", "encodes, PFLOP", "fitting, PFLOP",
        *(f"{name}, h" for name in PEAKS), "evaluation on CPU, TFLOP", "CPU, h", "disk, GB", "embeddings, GB",
        "weights in bfloat16, GB",
    ]  # fmt: skip
    rows = []
    for cost in costs:
        rows.append([
            cost.backbone.name, f"{cost.images} x {cost.backbone.rollout_steps}", f"{cost.rollouts / 1e15:,.0f}",
            f"{cost.encodes / 1e15:.2f}", f"{cost.fitting / 1e15:.2f}",
            *(f"{cost.hours(peak):.2f}" for peak in PEAKS.values()), f"{cost.evaluation / 1e12:.0f}",
            f"{cost.evaluation / CPU_SPEED / 3600:.2f}", f"{cost.rollout_bytes / 1e9:.1f}",
            f"{cost.embedding_bytes / 1e9:.1f}", f"{cost.weight_bytes / 1e9:.1f}",
        ])  # fmt: skip
    return table(head, rows)


def page(costs: list[Cost]) -> str:
    """docs/cost.md."""
    shown = [cost for cost in costs if cost.is_confirmed]
    out = [cost.backbone.name for cost in costs if not cost.is_confirmed]
    wan = next(backbone for backbone in BACKBONES if backbone.frames > 1)
    facts = {
        "rollouts": TrainConfig.rollouts, "held_out": TrainConfig.held_out_rollouts, "steps": TrainConfig.rollout_steps,
        "wan": f"{wan.rollouts} + {wan.held_out_rollouts} of {wan.rollout_steps}", "optimiser": TrainConfig.steps,
        "batch": TrainConfig.batch, "pairs": PAIRS, "benign": BENIGN, "utilisation": UTILISATION, "cpu": CPU_SPEED / 1e9,
        "peaks": ", ".join(f"{name} {peak / 1e12:.0f} TFLOP/s" for name, peak in PEAKS.items()),
    }  # fmt: skip
    left_out = f"\nLeft out, because a configuration was not confirmed: {', '.join(out)}.\n" if out else ""
    return "".join([
        HEAD, IMAGES, images_table(shown), TRAINING.format(**facts), training_table(shown),
        SIZES.format(tolerance=TOLERANCE), sizes_table(costs), left_out,
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    text = page([count(backbone) for backbone in BACKBONES])
    print(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "cost.md").write_text(text)


if __name__ == "__main__":
    main()
