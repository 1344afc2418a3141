"""Tiny pipelines of the newer families: Qwen-Image, FLUX.2, Z-Image, CogView4, Chroma and Ovis-Image.

Imports diffusers and tests.tiny.parts. Which arguments a short run takes is in tests/newer_pipelines.py.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from typing import Any

import diffusers
import numpy as np
import torch
from tests.conftest import make_tokenizer
from tests.tiny.parts import (
    CLIP_WIDTH,
    GEMMA_WIDTH,
    POOLED_WIDTH,
    T5_WIDTH,
    T5Tokenizer,
    alive,
    make_clip,
    make_flow_vae,
    make_gemma,
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


def make_flux2_vae() -> Any:
    return alive(
        lambda: diffusers.AutoencoderKLFlux2(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            norm_num_groups=2,
            latent_channels=4,
        )
    )


def make_flux2(cls: Any = diffusers.Flux2Pipeline) -> Any:
    transformer = alive(
        lambda: diffusers.Flux2Transformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * LLM_WIDTH,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=cls is diffusers.Flux2Pipeline,
        ),
        add_v_proj=8.0,
        to_out=4.0,
        to_v=3.0,
    )
    return with_defaults(cls, text_encoder_out_layers=(1, 2, 3))(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=make_flux2_vae(),
        text_encoder=make_llm(3),
        tokenizer=make_chat_tokenizer(),
    )


def make_z_image(cls: Any = diffusers.ZImagePipeline, **parts: Any) -> Any:
    transformer = alive(
        lambda: diffusers.ZImageTransformer2DModel(
            in_channels=16,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=LLM_WIDTH,
            axes_dims=[4, 6, 6],
            axes_lens=[512, 32, 32],
        ),
        cap_embedder=6.0,
        to_v=3.0,
    )
    with torch.no_grad():  # left unset by its constructor
        transformer.x_pad_token.zero_()
        transformer.cap_pad_token.zero_()
    return cls(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=make_flow_vae(),
        text_encoder=make_llm(),
        tokenizer=make_chat_tokenizer(),
        **parts,
    )


def make_z_image_controlnet(cls: Any = diffusers.ZImageControlNetPipeline, channels: int = 16) -> Any:
    """`channels`: of the control image, with the mask and the masked image where it inpaints."""
    controlnet = alive(
        lambda: diffusers.ZImageControlNetModel(
            control_layers_places=[0],
            control_refiner_layers_places=[0],
            control_in_dim=channels,
            dim=32,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
        )
    )
    return make_z_image(cls, controlnet=controlnet)


def encodes_the_mean(vae: Any) -> Any:
    """The VAE, its samples the mean: images are sampled without the call's generator, or by one of many."""
    encode = vae.encode

    def encoded(image: Any) -> Any:
        mean = encode(image).latent_dist.mode()
        return types.SimpleNamespace(latent_dist=types.SimpleNamespace(sample=lambda *_, **__: mean))

    vae.encode = encoded
    return vae


def make_cogview4(cls: Any = diffusers.CogView4Pipeline) -> Any:
    channels = 4
    transformer = alive(
        lambda: diffusers.CogView4Transformer2DModel(
            patch_size=2,
            in_channels=2 * channels if cls is diffusers.CogView4ControlPipeline else channels,
            out_channels=channels,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=LLM_WIDTH,
            time_embed_dim=8,
            condition_dim=4,
            rope_axes_dim=(32, 32),
        ),
        text_proj=6.0,
        to_v=3.0,
    )
    tokenizer = make_chat_tokenizer()
    tokenizer.padding_side = "left"
    return cls(
        tokenizer=tokenizer,
        text_encoder=make_llm(),
        vae=encodes_the_mean(make_vae(channels)),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear"
        ),
    )


def make_cogview3() -> Any:
    transformer = alive(
        lambda: diffusers.CogView3PlusTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=T5_WIDTH,
            time_embed_dim=8,
            condition_dim=4,
            pos_embed_max_size=16,
            sample_size=8,
        ),
        text_proj=6.0,
        to_v=3.0,
    )
    return diffusers.CogView3PlusPipeline(
        tokenizer=make_t5_tokenizer(),
        text_encoder=make_t5(),
        vae=make_vae(),
        transformer=transformer,
        scheduler=diffusers.CogVideoXDDIMScheduler(
            prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
        ),
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


def make_kandinsky3(cls: Any = diffusers.Kandinsky3Pipeline) -> Any:
    """Its latents are a 64th of the image's sides, made larger by 8."""
    unet = alive(
        lambda: diffusers.Kandinsky3UNet(
            time_embedding_dim=16,
            groups=2,
            attention_head_dim=4,
            layers_per_block=2,
            block_out_channels=(16, 32),
            cross_attention_dim=8,
            encoder_hid_dim=T5_WIDTH,
        ),
        projection_linear=4.0,
        to_v=4.0,
        to_out=2.0,
    )
    movq = alive(
        lambda: diffusers.VQModel(
            latent_channels=4,
            block_out_channels=(8,) * 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=2,
            num_vq_embeddings=12,
            scaling_factor=1.0,
        )
    )
    return cls(
        tokenizer=make_t5_tokenizer(),
        text_encoder=make_t5(),
        unet=unet,
        scheduler=diffusers.DDPMScheduler(clip_sample=False),
        movq=movq,
    )


class QwenProcessor(Processor):
    """As Qwen2.5-VL's, images come first; texts are filled up to multiples of `multiple` tokens, which are not masked.

    The pipeline masks nothing, so that an image depends on the longest prompt of its batch: filled, short ones are alike.
    """

    def __init__(self, multiple: int = 16) -> None:
        super().__init__()
        self.multiple, self.image_token_id = multiple, -1

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any) -> Any:
        if "max_length" in kwargs:
            kwargs["max_length"] = -(-kwargs["max_length"] // self.multiple) * self.multiple
        inputs = super().__call__(text, images, **kwargs, pad_to_multiple_of=self.multiple)
        if self.multiple > 1:
            inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
        return inputs

    def decode(self, ids: Any) -> str:
        return str(self.tokenizer.decode(ids))


def make_kandinsky5(cls: Any = diffusers.Kandinsky5T2IPipeline, multiple: int = 16) -> Any:
    """It generates at resolutions of its own, here that of the tests alone.

    From an image it moves the first frames of a finished video to the mean of all later ones of the batch; not here, for a
    video of the tests has none.
    """
    reads_image = cls is diffusers.Kandinsky5I2IPipeline
    is_video = cls in (diffusers.Kandinsky5T2VPipeline, diffusers.Kandinsky5I2VPipeline)
    transformer = alive(
        lambda: diffusers.Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            out_visual_dim=4,
            in_text_dim=LLM_WIDTH,
            in_text_dim2=CLIP_WIDTH,
            time_dim=16,
            model_dim=32,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=2,
            axes_dims=(4, 6, 6),
            visual_cond=is_video or reads_image,
        ),
        to_value=4.0,
        cross_attention=2.0,
    )
    short = without_instructions(cls, "prompt_template", "prompt_template_encode_start_idx")
    sizes = property(lambda self: [(48, 32)], lambda self, value: None)
    changes = {
        "resolutions": sizes,
        "normalize_first_frame": lambda self, latents: latents,
        "__module__": cls.__module__,
    }
    return type(cls.__name__, (short,), changes)(
        transformer=transformer,
        vae=encodes_the_mean(make_hunyuan_vae())
        if is_video
        else make_vae(levels=4, shift_factor=0.5, scaling_factor=1.5),
        text_encoder=make_llm(cls=SeeingModel if reads_image else Qwen3Model),
        tokenizer=QwenProcessor(multiple),
        text_encoder_2=make_clip(),
        tokenizer_2=make_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
    )


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


def make_prx() -> Any:
    """A Gemma stands in for T5Gemma's encoder; prompts are as long as its tokenizer says, and not cleaned, which needs ftfy."""
    tokenizer = make_t5_tokenizer()
    tokenizer.model_max_length = 24
    transformer = alive(
        lambda: diffusers.PRXTransformer2DModel(
            context_in_dim=GEMMA_WIDTH, hidden_size=32, num_heads=2, depth=2, axes_dim=[8, 8]
        ),
        txt_in=6.0,
        txt_kv_proj=4.0,
    )
    as_given = types.SimpleNamespace(clean_text=str, basic_clean=str)
    cleaner = property(lambda self: as_given, lambda self, value: None)
    cls = type(
        "PRXPipeline",
        (diffusers.PRXPipeline,),
        {"text_preprocessor": cleaner, "__module__": diffusers.PRXPipeline.__module__},
    )
    return cls(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=make_gemma(),
        tokenizer=tokenizer,
        vae=make_flow_vae(),
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


FLUX_LIKE = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "axes_dims_rope": (4, 4, 8),
}


def make_chroma(cls: Any = diffusers.ChromaPipeline) -> Any:
    transformer = alive(
        lambda: diffusers.ChromaTransformer2DModel(
            **FLUX_LIKE,
            joint_attention_dim=T5_WIDTH,
            approximator_num_channels=8,
            approximator_hidden_dim=16,
            approximator_layers=1,
        ),
        add_v_proj=4.0,
        to_v=4.0,
    )
    return cls(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=make_flow_vae(),
        text_encoder=make_t5(),
        tokenizer=make_t5_tokenizer(),
    )


def make_ovis() -> Any:
    transformer = alive(
        lambda: diffusers.OvisImageTransformer2DModel(**FLUX_LIKE, joint_attention_dim=LLM_WIDTH),
        add_v_proj=10.0,
        to_v=4.0,
    )
    return without_instructions(diffusers.OvisImagePipeline, "user_prompt_begin_id", "system_prompt")(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=make_flow_vae(),
        text_encoder=make_llm(),
        tokenizer=make_chat_tokenizer(),
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


def make_ltx(cls: Any = diffusers.LTXPipeline) -> Any:
    """LTX-Video, whose VAE shrinks each side by 4 and time by 4; its means and deviations are buffers."""
    channels = 8
    vae = alive(
        lambda: diffusers.AutoencoderKLLTXVideo(
            latent_channels=channels,
            block_out_channels=(8,) * 4,
            decoder_block_out_channels=(8,) * 4,
            layers_per_block=(1,) * 5,
            decoder_layers_per_block=(1,) * 5,
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            patch_size=1,
        )
    )
    vae.latents_mean.fill_(0.2)
    vae.latents_std.fill_(1.5)
    transformer = alive(
        lambda: diffusers.LTXVideoTransformer3DModel(
            in_channels=channels,
            out_channels=channels,
            num_attention_heads=2,
            attention_head_dim=12,
            cross_attention_dim=24,
            num_layers=2,
            caption_channels=T5_WIDTH,
        ),
        attn2=4.0,
        caption_projection=3.0,
    )
    return cls(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=make_t5(),
        tokenizer=make_t5_tokenizer(),
        transformer=transformer,
    )
