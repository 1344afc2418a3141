"""Published pipelines of the newer families, as models.py has the others: every width is the published one, depth is cut.

Imports parts.py and benchmarks.flops. Configurations that are not in benchmarks/flops.py come from the defaults of the installed
diffusers' classes, which are the published ones where nothing else is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
from benchmarks.flops import BACKBONES, QWEN_3_4B, QWEN_25_7B, Part
from tests.rehearsal.parts import chat_tokenizer, clip_tokenizer, make, piece_tokenizer, with_quick_weights
from tests.tiny.parts import make_glm_tokenizer, with_norms
from transformers import ByT5Tokenizer

_PUBLISHED = {backbone.name: backbone for backbone in BACKBONES}
_SD3_ENCODERS = _PUBLISHED["SD3 medium"].encoders
_FLOW = diffusers.FlowMatchEulerDiscreteScheduler
LLM_CUT = {"num_hidden_layers": 2, "max_position_embeddings": 4096}
FLUX_SCALES = {"scaling_factor": 0.3611, "shift_factor": 0.1159}


def _flux_vae() -> Any:
    return make(_PUBLISHED["FLUX.1-dev"].vae, FLUX_SCALES)


def _t5_xxl() -> Any:
    return make(_PUBLISHED["FLUX.1-dev"].encoders[1], {"num_layers": 1})


def z_image() -> Any:
    return diffusers.ZImagePipeline(
        transformer=make(_PUBLISHED["Z-Image-Turbo"].denoiser, {"n_layers": 1, "n_refiner_layers": 1}),
        scheduler=_FLOW(shift=3.0),
        vae=_flux_vae(),
        text_encoder=make(Part("Qwen3Model", QWEN_3_4B, 0, {}), LLM_CUT),
        tokenizer=chat_tokenizer(),
    )


#: Qwen2.5-VL 7B: beside the language model a tower for images, which a prompt alone does not use
QWEN_25_VL = {
    "text_config": {**QWEN_25_7B, **LLM_CUT},
    "vision_config": {"depth": 1, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584},
}  # fmt: skip


def qwen_image() -> Any:
    pipe = diffusers.QwenImagePipeline(
        transformer=make(_PUBLISHED["Qwen-Image"].denoiser, {"num_layers": 1}),
        scheduler=_FLOW(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
        vae=make(_PUBLISHED["Qwen-Image"].vae),
        text_encoder=make(Part("Qwen2_5_VLForConditionalGeneration", QWEN_25_VL, 0, {})),
        tokenizer=None,
    )
    pipe.register_modules(tokenizer=chat_tokenizer(pipe.prompt_template_encode))
    return pipe


def klein() -> Any:
    return diffusers.Flux2KleinPipeline(
        transformer=make(_PUBLISHED["FLUX.2-klein-4B"].denoiser, {"num_layers": 1, "num_single_layers": 1}),
        scheduler=_FLOW(use_dynamic_shifting=True),
        vae=make(_PUBLISHED["FLUX.2-klein-4B"].vae),
        text_encoder=make(Part("Qwen3ForCausalLM", QWEN_3_4B, 0, {}), LLM_CUT),
        tokenizer=chat_tokenizer(),
        is_distilled=True,
    )


def chroma() -> Any:
    return diffusers.ChromaPipeline(
        transformer=make(Part("ChromaTransformer2DModel", {}, 0, {}), {"num_layers": 1, "num_single_layers": 1}),
        scheduler=_FLOW(use_beta_sigmas=True),
        vae=_flux_vae(),
        text_encoder=_t5_xxl(),
        tokenizer=piece_tokenizer(),
    )


def ovis_image() -> Any:
    pipe = diffusers.OvisImagePipeline(
        transformer=make(Part("OvisImageTransformer2DModel", {}, 0, {}), {"num_layers": 1, "num_single_layers": 1}),
        scheduler=_FLOW(use_dynamic_shifting=True),
        vae=_flux_vae(),
        text_encoder=make(Part("Qwen3Model", QWEN_3_17B, 0, {}), LLM_CUT),
        tokenizer=None,
    )
    pipe.register_modules(tokenizer=chat_tokenizer(pipe.system_prompt))
    return pipe


#: the language model of Ovis2.5-2B
QWEN_3_17B = {
    **QWEN_3_4B, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
}  # fmt: skip
#: the autoencoder of CogView3-Plus and of CogView4
COGVIEW_VAE = {
    "latent_channels": 16, "block_out_channels": (128, 512, 1024, 1024), "layers_per_block": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False,
}  # fmt: skip
#: 6.3 billion parameters, where the class's defaults make 2.8
COGVIEW_4 = {"num_attention_heads": 32, "attention_head_dim": 128, "num_layers": 28}
#: GLM-4 9B
GLM_4_9B = {
    "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40,
    "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "attention_bias": True, "pad_token_id": 151329,
}  # fmt: skip

#: those from 151329 on; a text begins with two of them, so that an empty one is not of no tokens
GLM_SPECIAL = ("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>")


def cogview4() -> Any:
    return diffusers.CogView4Pipeline(
        transformer=make(Part("CogView4Transformer2DModel", COGVIEW_4, 0, {}), {"num_layers": 1}),
        scheduler=_FLOW(base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"),
        vae=make(Part("AutoencoderKL", COGVIEW_VAE, 0, {}), {"scaling_factor": 1.0}),
        text_encoder=make(Part("GlmModel", GLM_4_9B, 0, {}), LLM_CUT),
        tokenizer=chat_tokenizer(size=151329, special=GLM_SPECIAL, side="left", begin=("[gMASK]", "<sop>")),
    )


def cogview3() -> Any:
    return diffusers.CogView3PlusPipeline(
        transformer=make(Part("CogView3PlusTransformer2DModel", {}, 0, {}), {"num_layers": 2}),
        scheduler=diffusers.CogVideoXDDIMScheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            snr_shift_scale=4.0,
        ),
        vae=make(Part("AutoencoderKL", COGVIEW_VAE, 0, {}), {"scaling_factor": 0.18215}),
        text_encoder=_t5_xxl(),
        tokenizer=piece_tokenizer(),
    )


#: Qwen3-VL, its language model and its tower for images
def _qwen3_vl(text: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "text_config": {**text, **LLM_CUT},
        "vision_config": {"depth": 1, "out_hidden_size": text["hidden_size"], "deepstack_visual_indexes": []},
    }  # fmt: skip


def krea2() -> Any:
    cut = {"num_layers": 1, "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1}
    pipe = diffusers.Krea2Pipeline(
        transformer=make(Part("Krea2Transformer2DModel", {}, 0, {}), cut),
        scheduler=_FLOW(use_dynamic_shifting=True),
        vae=make(_PUBLISHED["Qwen-Image"].vae),
        text_encoder=make(Part("Qwen3VLModel", _qwen3_vl(QWEN_3_4B), 0, {})),
        tokenizer=None,
        text_encoder_select_layers=(0, 1, 2) * 4,
    )
    texts = (pipe.prompt_template_encode_prefix, pipe.prompt_template_encode_suffix)
    pipe.register_modules(tokenizer=chat_tokenizer(*texts))
    return pipe


#: kandinsky-community/kandinsky-3: the encoder of FLAN-UL2, 8.7 billion parameters
FLAN_UL2 = {
    "vocab_size": 32128, "d_model": 4096, "d_ff": 16384, "d_kv": 256, "num_heads": 16, "feed_forward_proj": "gated-silu",
}  # fmt: skip
#: MoVQGAN, 271 million
MOVQ = {
    "latent_channels": 4, "block_out_channels": (256, 512, 512, 1024), "layers_per_block": 2, "num_vq_embeddings": 16384,
    "vq_embed_dim": 4, "norm_type": "spatial", "scaling_factor": 1.0,
    "down_block_types": (*("DownEncoderBlock2D",) * 3, "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", *("UpDecoderBlock2D",) * 3),
}  # fmt: skip


def kandinsky3() -> Any:
    levels = {"block_out_channels": (384, 3072), "layers_per_block": 2}
    return diffusers.Kandinsky3Pipeline(
        tokenizer=piece_tokenizer(),
        text_encoder=make(Part("T5EncoderModel", FLAN_UL2, 0, {}), {"num_layers": 1}),
        unet=make(Part("Kandinsky3UNet", {}, 0, {}), levels),
        scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False),
        movq=make(Part("VQModel", MOVQ, 0, {})),
    )


#: hunyuanvideo-community/HunyuanImage-2.1-Diffusers: 32 pixels a latent
HUNYUAN_VAE = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 64, "block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "layers_per_block": 2, "spatial_compression_ratio": 32, "sample_size": 384, "scaling_factor": 0.75289,
}  # fmt: skip
BYT5_SMALL = {
    "vocab_size": 384, "d_model": 1472, "d_ff": 3584, "d_kv": 64, "num_heads": 6, "feed_forward_proj": "gated-gelu",
}  # fmt: skip


def hunyuan_image() -> Any:
    cut = {"num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1, "text_embed_2_dim": 1472}
    text = {**QWEN_25_VL, "text_config": {**QWEN_25_7B, **LLM_CUT, "num_hidden_layers": 3}}
    pipe = diffusers.HunyuanImagePipeline(
        scheduler=_FLOW(shift=5.0),
        vae=make(Part("AutoencoderKLHunyuanImage", HUNYUAN_VAE, 0, {})),
        text_encoder=make(Part("Qwen2_5_VLForConditionalGeneration", text, 0, {})),
        tokenizer=None,
        text_encoder_2=make(Part("T5EncoderModel", BYT5_SMALL, 0, {}), {"num_layers": 1}),
        tokenizer_2=ByT5Tokenizer(),
        transformer=make(Part("HunyuanImageTransformer2DModel", {}, 0, {}), cut),
        guider=diffusers.AdaptiveProjectedMixGuidance(),
    )
    pipe.register_modules(tokenizer=chat_tokenizer(pipe.prompt_template_encode.split("{}")[0]))
    return pipe


#: Llama 3.1 8B Instruct, whose layers' states HiDream's blocks read
LLAMA_31_8B = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_key_value_heads": 8, "attn_implementation": "eager",
}  # fmt: skip


def hidream() -> Any:
    """HiDream-I1: two of Llama's 32 layers, one for each of two blocks of 48."""
    clips = [make(part, {"num_hidden_layers": 2, "max_position_embeddings": 248}) for part in _SD3_ENCODERS[:2]]
    cut = {"num_layers": 1, "num_single_layers": 1, "llama_layers": [0, 1]}
    shape = {
        "patch_size": 2, "in_channels": 16, "caption_channels": [4096, 4096], "axes_dims_rope": (64, 32, 32),
    }  # fmt: skip
    begin = "<|begin_of_text|>"
    llama_tokenizer = chat_tokenizer(size=128000, special=("<|end_of_text|>", begin), begin=(begin,))
    llama_tokenizer.eos_token = "<|end_of_text|>"
    return diffusers.HiDreamImagePipeline(
        scheduler=_FLOW(shift=6.0),
        vae=_flux_vae(),
        text_encoder=clips[0],
        tokenizer=clip_tokenizer(),
        text_encoder_2=clips[1],
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=_t5_xxl(),
        tokenizer_3=piece_tokenizer(),
        text_encoder_4=make(Part("LlamaForCausalLM", LLAMA_31_8B, 0, {}), {"num_hidden_layers": 2}),
        tokenizer_4=llama_tokenizer,
        transformer=make(Part("HiDreamImageTransformer2DModel", shape, 0, {}), cut),
    )


def ltx_video() -> Any:
    """LTX-Video 2B."""
    return diffusers.LTXPipeline(
        transformer=make(Part("LTXVideoTransformer3DModel", {}, 0, {}), {"num_layers": 1}),
        scheduler=_FLOW(
            use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, shift_terminal=0.1
        ),
        vae=make(Part("AutoencoderKLLTXVideo", {}, 0, {})),
        text_encoder=_t5_xxl(),
        tokenizer=piece_tokenizer(),
    )


#: ChatGLM3 6B, as Kolors reads it
CHATGLM_3 = {"multi_query_attention": True, "multi_query_group_num": 2, "add_qkv_bias": True, "original_rope": True}


def _chatglm() -> Any:
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel

    config = ChatGLMConfig(**CHATGLM_3, num_layers=2)
    return with_quick_weights(lambda: with_norms(ChatGLMModel(config, empty_init=False)))


def kolors() -> Any:
    """Kolors: SDXL's UNet, cut as SDXL's is; the file of its tokenizer is one of letters."""
    cut = {"layers_per_block": 1, "transformer_layers_per_block": (1, 1, 1)}
    own = {
        "encoder_hid_dim": 4096, "encoder_hid_dim_type": "text_proj", "projection_class_embeddings_input_dim": 4096 + 6 * 256,
    }  # fmt: skip
    return diffusers.KolorsPipeline(
        vae=make(_PUBLISHED["SDXL base 1.0"].vae, {"scaling_factor": 0.13025}),
        text_encoder=_chatglm(),
        tokenizer=make_glm_tokenizer(),
        unet=make(_PUBLISHED["SDXL base 1.0"].denoiser, {**cut, **own}),
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.014, num_train_timesteps=1100, steps_offset=1
        ),
    )


#: Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers
HUNYUAN_DIT = {
    "num_attention_heads": 16, "attention_head_dim": 88, "in_channels": 4, "patch_size": 2, "sample_size": 128,
    "hidden_size": 1408, "mlp_ratio": 4.3637, "use_style_cond_and_image_meta_size": False,
}  # fmt: skip
BERT_LARGE = {
    "vocab_size": 47020, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16,
}  # fmt: skip
MT5_XL = {
    "vocab_size": 250112, "d_model": 2048, "d_ff": 5120, "d_kv": 64, "num_heads": 32, "feed_forward_proj": "gated-gelu",
}  # fmt: skip


def hunyuan_dit() -> Any:
    return diffusers.HunyuanDiTPipeline(
        vae=make(_PUBLISHED["SDXL base 1.0"].vae, {"scaling_factor": 0.13025}),
        text_encoder=make(Part("BertModel", BERT_LARGE, 0, {}), {"num_hidden_layers": 2}),
        tokenizer=piece_tokenizer(),
        transformer=make(Part("HunyuanDiT2DModel", HUNYUAN_DIT, 0, {}), {"num_layers": 4}),
        scheduler=diffusers.DDPMScheduler(
            beta_end=0.018, beta_schedule="scaled_linear", prediction_type="v_prediction", steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=make(Part("MT5EncoderModel", MT5_XL, 0, {}), {"num_layers": 1}),
        tokenizer_2=piece_tokenizer(),
    )
