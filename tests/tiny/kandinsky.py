"""Tiny pipelines of Kandinsky 3 and 5.

Imports diffusers and tests.tiny, tests.conftest only. Which arguments a short run takes is in tests/newer_pipelines.py.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from tests.conftest import make_tokenizer
from tests.tiny.newer_parts import (
    LLM_WIDTH,
    Processor,
    SeeingModel,
    encodes_the_mean,
    make_hunyuan_vae,
    make_llm,
    without_instructions,
)
from tests.tiny.parts import (
    CLIP_WIDTH,
    T5_WIDTH,
    alive,
    make_clip,
    make_t5,
    make_t5_tokenizer,
    make_vae,
)
from transformers import (
    Qwen3Model,
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
