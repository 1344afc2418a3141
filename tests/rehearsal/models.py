"""Published pipelines by family, with the true shape of every embedding table, projection and head, cut in depth only.

Imports parts.py, newer_models.py and benchmarks.flops. `MODELS` is what the rehearsal walks; `Model.build` makes one in memory.
What is cut, and at which size its stages run, stands in each row and is written into docs/rehearsal.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from benchmarks.flops import BACKBONES, Part
from tests.rehearsal import newer_models as newer
from tests.rehearsal.parts import clip_tokenizer, make, piece_tokenizer

PUBLISHED = {backbone.name: backbone for backbone in BACKBONES}


@dataclass(frozen=True)
class Model:
    """One pipeline of the rehearsal.

    Attributes:
        name: the checkpoint; family: our row in pipelines/families; cut: what was cut, in words.
        latent: (C, F, h, w) of the published size, F = 1 for images; full: the call that generates at it, None where this size
            is too dear for a CPU even at one block.
        call: of every stage but that one.
        duo: whether DUO can be trained on it; bench: whether the bench takes it (text to image); negation: whether images can be
            put among its latents.
    """

    name: str
    family: str
    make: Callable[[], Any] = field(repr=False)
    cut: str
    latent: tuple[int, int, int, int]
    call: Mapping[str, Any]
    full: Mapping[str, Any] | None
    duo: bool = False
    bench: bool = True
    negation: bool = True

    @property
    def slug(self) -> str:
        return self.name.lower().replace(" ", "-").replace(".", "")

    def build(self) -> Any:
        """The pipeline in memory, in bfloat16."""
        pipe = self.make()
        pipe.set_progress_bar_config(disable=True)
        return pipe


CLIP_CUT = {"num_hidden_layers": 2, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
T5_CUT = {"num_layers": 1}
GEMMA_CUT = {"num_hidden_layers": 2, "max_position_embeddings": 2048, "pad_token_id": 0}
FLOW = diffusers.FlowMatchEulerDiscreteScheduler


def _betas(cls: Any = diffusers.DDIMScheduler, **more: Any) -> Any:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    return cls(
        **betas, **({"clip_sample": False, "set_alpha_to_one": False} if cls is diffusers.DDIMScheduler else {}), **more
    )


def _vae(name: str, **changes: Any) -> Any:
    return make(PUBLISHED[name].vae, changes)


def _stable_diffusion(name: str, unet_cut: Mapping[str, Any], clip_cut: Mapping[str, Any], **scheduler: Any) -> Any:
    published = PUBLISHED[name]
    return diffusers.StableDiffusionPipeline(
        vae=_vae(name, scaling_factor=0.18215),
        text_encoder=make(published.encoders[0], clip_cut),
        tokenizer=clip_tokenizer(),
        unet=make(published.denoiser, unet_cut),
        scheduler=_betas(**scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


#: the widest and the narrowest of the four levels, one layer each
TWO_LEVELS = {
    "block_out_channels": (320, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2,
    "layers_per_block": 1,
}


def _sd15_whole() -> Any:
    ids = {name: CLIP_CUT[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return _stable_diffusion("Stable Diffusion 1.5", {}, ids)


def _sd15() -> Any:
    return _stable_diffusion("Stable Diffusion 1.5", TWO_LEVELS, CLIP_CUT)


def _sd2() -> Any:
    cut = {**TWO_LEVELS, "attention_head_dim": (5, 20)}
    return _stable_diffusion("Stable Diffusion 2.1", cut, CLIP_CUT, prediction_type="v_prediction")


def _sdxl() -> Any:
    published = PUBLISHED["SDXL base 1.0"]
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae("SDXL base 1.0", scaling_factor=0.13025),
        text_encoder=make(published.encoders[0], CLIP_CUT),
        tokenizer=clip_tokenizer(),
        text_encoder_2=make(published.encoders[1], CLIP_CUT),
        tokenizer_2=clip_tokenizer(),
        unet=make(published.denoiser, {"layers_per_block": 1, "transformer_layers_per_block": (1, 1, 1)}),
        scheduler=_betas(diffusers.EulerDiscreteScheduler),
    )


def _sd3(name: str) -> Any:
    published = PUBLISHED[name]
    return diffusers.StableDiffusion3Pipeline(
        transformer=make(published.denoiser, {"num_layers": 2}),
        scheduler=FLOW(shift=3.0),
        vae=_vae(name, scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=make(published.encoders[0], CLIP_CUT),
        tokenizer=clip_tokenizer(),
        text_encoder_2=make(published.encoders[1], CLIP_CUT),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=make(published.encoders[2], T5_CUT),
        tokenizer_3=piece_tokenizer(),
    )


def _flux(is_guided: bool) -> Any:
    published = PUBLISHED["FLUX.1-dev"]
    cut = {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": is_guided}
    return diffusers.FluxPipeline(
        transformer=make(published.denoiser, cut),
        scheduler=FLOW(use_dynamic_shifting=True) if is_guided else FLOW(shift=1.0),
        vae=_vae("FLUX.1-dev", scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=make(published.encoders[0], CLIP_CUT),
        tokenizer=clip_tokenizer(),
        text_encoder_2=make(published.encoders[1], T5_CUT),
        tokenizer_2=piece_tokenizer(),
    )


def _pixart() -> Any:
    published = PUBLISHED["PixArt-Sigma XL"]
    return diffusers.PixArtSigmaPipeline(
        tokenizer=piece_tokenizer(),
        text_encoder=make(published.encoders[0], T5_CUT),
        vae=_vae("PixArt-Sigma XL", scaling_factor=0.13025),
        transformer=make(published.denoiser, {"num_layers": 2}),
        scheduler=_betas(diffusers.DPMSolverMultistepScheduler),
    )


def _sana() -> Any:
    published = PUBLISHED["Sana 1.6B"]
    return diffusers.SanaPipeline(
        tokenizer=piece_tokenizer(),
        text_encoder=make(published.encoders[0], GEMMA_CUT),
        vae=make(published.vae),
        transformer=make(published.denoiser, {"num_layers": 2}),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


def _lumina2() -> Any:
    published = PUBLISHED["Lumina-Image 2.0"]
    return diffusers.Lumina2Pipeline(
        tokenizer=piece_tokenizer(),
        text_encoder=make(published.encoders[0], GEMMA_CUT),
        vae=_vae("Lumina-Image 2.0", scaling_factor=0.3611, shift_factor=0.1159),
        transformer=make(published.denoiser, {"num_layers": 2, "num_refiner_layers": 1}),
        scheduler=FLOW(shift=6.0),
    )


#: Alpha-VLLM/Lumina-Next-SFT-diffusers
LUMINA_NEXT = {
    "sample_size": 128, "patch_size": 2, "in_channels": 4, "hidden_size": 2304, "num_layers": 24, "num_attention_heads": 32,
    "num_kv_heads": 8, "multiple_of": 256, "norm_eps": 1e-5, "learn_sigma": True, "qk_norm": True,
    "cross_attention_dim": 2048, "scaling_factor": 1.0,
}  # fmt: skip
GEMMA_2B = {
    "vocab_size": 256000, "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
    "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
}  # fmt: skip


def _lumina() -> Any:
    transformer = make(Part("LuminaNextDiT2DModel", LUMINA_NEXT, 0, {}), {"num_layers": 2})
    with torch.no_grad():
        transformer.pad_token.zero_()  # left unset by its constructor, and unused
    return diffusers.LuminaPipeline(
        tokenizer=piece_tokenizer(),
        text_encoder=make(Part("GemmaModel", GEMMA_2B, 0, {}), GEMMA_CUT),
        vae=_vae("SDXL base 1.0", scaling_factor=0.13025),
        transformer=transformer,
        scheduler=FLOW(),
    )


#: fal/AuraFlow-v0.3
AURA_FLOW = {
    "sample_size": 64, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_mmdit_layers": 4,
    "num_single_dit_layers": 32, "attention_head_dim": 256, "num_attention_heads": 12, "joint_attention_dim": 2048,
    "caption_projection_dim": 3072, "pos_embed_max_size": 9216,
}  # fmt: skip
PILE_T5_XL = {
    "vocab_size": 32128, "d_model": 2048, "d_ff": 5120, "d_kv": 64, "num_layers": 24, "num_heads": 32,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip


def _aura_flow() -> Any:
    cut = {"num_mmdit_layers": 1, "num_single_dit_layers": 1}
    return diffusers.AuraFlowPipeline(
        tokenizer=piece_tokenizer(),
        text_encoder=make(Part("UMT5EncoderModel", PILE_T5_XL, 0, {}), T5_CUT),
        vae=_vae("SDXL base 1.0", scaling_factor=0.13025),
        transformer=make(Part("AuraFlowTransformer2DModel", AURA_FLOW, 0, {}), cut),
        scheduler=FLOW(shift=1.73),
    )


def _wan(cut: Mapping[str, Any], boundary_ratio: float | None = None) -> Any:
    published = PUBLISHED["Wan 2.1 T2V 1.3B"]
    transformers = [make(published.denoiser, cut, seed=seed) for seed in range(1 if boundary_ratio is None else 2)]
    return diffusers.WanPipeline(
        tokenizer=piece_tokenizer(),
        text_encoder=make(published.encoders[0], T5_CUT),
        vae=make(published.vae),
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=transformers[0],
        transformer_2=transformers[1] if boundary_ratio is not None else None,
        boundary_ratio=boundary_ratio,
    )


#: Wan-AI/Wan2.2-T2V-A14B-Diffusers: wider, and a second transformer below a share of the noise
WAN_A14B = {"num_attention_heads": 40, "ffn_dim": 13824}

SMALL = {"height": 64, "width": 96}
EXACT = {"use_resolution_binning": False}
#: in the place of the layers 9, 18 and 27
KLEIN_LAYERS = {"max_sequence_length": 48, "text_encoder_out_layers": (0, 1, 2)}
_MODELS = (
    Model("Stable Diffusion 1.5", "stable-diffusion", _sd15, "levels 320 and 1280, one layer each; CLIP 2 layers",
          (4, 1, 64, 64), SMALL, {"height": 512, "width": 512}, duo=True),
    Model("Stable Diffusion 2.1", "stable-diffusion", _sd2, "levels 320 and 1280, one layer each; CLIP 2 layers",
          (4, 1, 96, 96), SMALL, {"height": 768, "width": 768}, duo=True),
    Model("SDXL base 1.0", "stable-diffusion-xl", _sdxl, "one layer a level, one block a transformer; both CLIPs 2 layers",
          (4, 1, 128, 128), SMALL, {"height": 1024, "width": 1024}),
    Model("SD3 medium", "stable-diffusion-3", lambda: _sd3("SD3 medium"), "2 of 24 blocks; CLIPs 2 layers, T5-XXL 1",
          (16, 1, 128, 128), {**SMALL, "max_sequence_length": 24}, {"height": 1024, "width": 1024}, duo=True),
    Model("SD3.5 large", "stable-diffusion-3", lambda: _sd3("SD3.5 large"), "2 of 38 blocks; CLIPs 2 layers, T5-XXL 1",
          (16, 1, 128, 128), {**SMALL, "max_sequence_length": 24}, {"height": 1024, "width": 1024}, duo=True),
    Model("FLUX.1-dev", "flux", lambda: _flux(True), "1 of 19 and 1 of 38 blocks; CLIP 2 layers, T5-XXL 1",
          (16, 1, 128, 128), {**SMALL, "max_sequence_length": 24}, {"height": 1024, "width": 1024}),
    Model("FLUX.1-schnell", "flux", lambda: _flux(False), "1 of 19 and 1 of 38 blocks; CLIP 2 layers, T5-XXL 1",
          (16, 1, 128, 128), {**SMALL, "max_sequence_length": 24}, {"height": 1024, "width": 1024}),
    Model("PixArt-Sigma XL", "pixart", _pixart, "2 of 28 blocks; T5-XXL 1 layer",
          (4, 1, 128, 128), {**SMALL, **EXACT, "max_sequence_length": 24}, {"height": 1024, "width": 1024}),
    Model("Sana 1.6B", "sana", _sana, "2 of 20 blocks; Gemma 2 layers",
          (32, 1, 32, 32), {"height": 256, "width": 384, **EXACT, "max_sequence_length": 24, "complex_human_instruction": None},
          {"height": 1024, "width": 1024, "complex_human_instruction": None}),
    Model("Lumina-Image 2.0", "lumina-2", _lumina2, "2 of 26 blocks, 1 of 2 refiners; Gemma 2 layers",
          (16, 1, 128, 128), {**SMALL, "max_sequence_length": 64, "system_prompt": "an image of"},
          {"height": 1024, "width": 1024}),
    Model("Lumina-Next", "lumina", _lumina, "2 of 24 blocks; Gemma 2 layers",
          (4, 1, 128, 128), SMALL, {"height": 1024, "width": 1024}),
    Model("AuraFlow 0.3", "aura-flow", _aura_flow, "1 of 4 and 1 of 32 blocks; encoder 1 layer",
          (4, 1, 128, 128), {**SMALL, "max_sequence_length": 24}, {"height": 1024, "width": 1024}),
    Model("Wan 2.1 T2V 1.3B", "wan", lambda: _wan({"num_layers": 1}), "1 of 30 blocks; UMT5-XXL 1 layer",
          (16, 21, 60, 104), {"height": 64, "width": 96, "num_frames": 5, "max_sequence_length": 24}, None, bench=False),
    Model("Wan 2.2 T2V A14B", "wan", lambda: _wan({"num_layers": 1, **WAN_A14B}, boundary_ratio=0.875),
          "1 of 40 blocks in both transformers; UMT5-XXL 1 layer",
          (16, 21, 60, 104), {"height": 64, "width": 96, "num_frames": 5, "max_sequence_length": 24}, None, bench=False),
    Model("Z-Image-Turbo", "z-image", newer.z_image, "1 of 30 blocks, 1 of 2 refiners each; Qwen3 2 layers",
          (16, 1, 128, 128), {**SMALL, "max_sequence_length": 48, "guidance_scale": 0.0}, None),
    Model("Qwen-Image", "qwen-image", newer.qwen_image, "1 of 60 blocks; Qwen2.5-VL 2 layers, its image tower 1",
          (16, 1, 128, 128), SMALL, None),
    Model("FLUX.2-klein-4B", "flux-2", newer.klein, "1 of 5 and 1 of 20 blocks; Qwen3 2 layers",
          (128, 1, 64, 64), {**SMALL, **KLEIN_LAYERS}, None, negation=False),
    Model("Chroma", "chroma", newer.chroma, "1 of 19 and 1 of 38 blocks; T5-XXL 1 layer",
          (16, 1, 128, 128), {**SMALL, "max_sequence_length": 24}, None),
    Model("CogView4 6B", "cogview-4", newer.cogview4, "1 of 28 blocks; GLM-4 2 layers",
          (16, 1, 128, 128), SMALL, None),
    Model("CogView3-Plus 3B", "cogview-3-plus", newer.cogview3, "2 of 30 blocks; T5-XXL 1 layer",
          (16, 1, 128, 128), {**SMALL, "max_sequence_length": 24}, None),
    Model("Ovis-Image 7B", "ovis-image", newer.ovis_image, "1 of 6 and 1 of 27 blocks; Qwen3 2 layers",
          (16, 1, 128, 128), {**SMALL, "max_sequence_length": 48}, None),
    Model("Krea 2", "krea-2", newer.krea2, "1 of 28 blocks, 1 of 2 text blocks each; Qwen3-VL 2 layers, its image tower 1",
          (16, 1, 128, 128), {**SMALL, "max_sequence_length": 48}, None),
    Model("HiDream-I1", "hidream", newer.hidream,
          "1 of 16 and 1 of 32 blocks; Llama 2 of 32 layers, CLIPs 2, T5-XXL 1",
          (16, 1, 128, 128), {**SMALL, "max_sequence_length": 24}, None),
    Model("HunyuanDiT 1.2", "hunyuan-dit", newer.hunyuan_dit, "4 of 40 blocks; BERT 2 layers, mT5-XL 1",
          (4, 1, 128, 128), {**SMALL, **EXACT}, None),
    Model("HunyuanImage 2.1", "hunyuan-image", newer.hunyuan_image,
          "1 of 20 and 1 of 40 blocks, 1 of 2 refiners; Qwen2.5-VL 3 layers, its image tower 1, ByT5 1 layer",
          (64, 1, 64, 64), {"height": 256, "width": 384}, None),
    Model("LTX-Video 2B", "ltx-video", newer.ltx_video, "1 of 28 blocks; T5-XXL 1 layer",
          (128, 21, 16, 22), {"height": 64, "width": 96, "num_frames": 9, "max_sequence_length": 24}, None, bench=False),
    Model("Kolors", "kolors", newer.kolors, "one layer a level, one block a transformer; ChatGLM3 2 layers",
          (4, 1, 128, 128), SMALL, None),
    Model("Kandinsky 3", "kandinsky-3", newer.kandinsky3, "levels 384 and 3072, two layers each; FLAN-UL2 1 layer",
          (4, 1, 128, 128), {"height": 64, "width": 128}, None, negation=False),
)  # fmt: skip
MODELS: dict[str, Model] = {model.slug: model for model in _MODELS}

#: family -> why none of its pipelines is walked
NOT_REHEARSED = {
    "qwen-image-edit": "its processor of images needs torchvision, and it makes a megapixel of any image by itself, 4,096 tokens "
    "a call; the networks are Qwen-Image's",
    "nucleus-image": "its processor of conversations needs torchvision",
    **dict.fromkeys(
        ("kandinsky-5", "kandinsky-5-edit"),
        "its processor of texts and images needs torchvision, and it makes a megapixel of any size, 4,096 tokens a call",
    ),
    "kandinsky-5-video": "its processor of texts and images needs torchvision",
    "prx": "it cleans prompts with ftfy, which is not among the extras",
}

#: rows that are ready and were not walked yet, `python -m tests.rehearsal.table NAME`
NOT_WALKED: set[str] = {"kandinsky-3", "hidream-i1", "hunyuandit-12", "hunyuanimage-21"}

#: 860 million parameters, nothing cut, every stage at 64 x 64 latents
WHOLE = Model(
    "Stable Diffusion 1.5 undiminished", "stable-diffusion", _sd15_whole, "nothing", (4, 1, 64, 64), {}, {}, duo=True
)
