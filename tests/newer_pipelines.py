"""Cases of the newer families, which go through a thinner set of tests than those of tests/tiny_pipelines.py.

`EVERY` holds both. `python -m tests.contract.table --newer NAME` runs all checks of the contract on one of these families.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace
from typing import Any

import diffusers
import torch
from diffusers.utils.pil_utils import pt_to_pil
from tests.tiny import newer, unets
from tests.tiny_pipelines import (
    EXACT_SIZE,
    FLOW_IMAGE_TO_IMAGE,
    IMAGE,
    INPAINT,
    NO_TRUE_CFG,
    PIPELINES,
    SIZE,
    TRUE_CFG,
    PipelineCase,
    make_picture,
)

from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.families import family_of
from saferedir.pipelines.joined import Parts, cut
from saferedir.pipelines.listed import unpadded

bind = functools.partial
#: not a tensor: these pipelines ask for its size
PICTURE = {**SIZE, "image": pt_to_pil(2 * make_picture() - 1)[0]}
#: Kandinsky 3 rounds up to 64
LARGE = {"height": 64, "width": 128}
#: LTX-Video's sides are multiples of 32; three frames of latents
SHORT_VIDEO = {"height": 32, "width": 64, "num_frames": 9, "max_sequence_length": 24}
#: HunyuanDiT takes latents for an eighth of the image's sides
BINNED = {"height": 64, "width": 96, "use_resolution_binning": False}
SHORT = {**SIZE, "max_sequence_length": 24}


def qwen(name: str, make: Any, settings: dict[str, Any]) -> PipelineCase:
    """A case of Qwen-Image, its guidance in calls of its own."""
    return PipelineCase(
        name, "qwen-image", make, settings, guidance=TRUE_CFG, unguided=NO_TRUE_CFG, guidance_is_sequential=True
    )


def edit(name: str, cls: Any, settings: dict[str, Any]) -> PipelineCase:
    """A case of Qwen-Image's editor."""
    return replace(qwen(name, bind(newer.make_qwen_image_edit, cls), settings), family="qwen-image-edit")


def sequential(name: str, family: str, make: Any, settings: dict[str, Any]) -> PipelineCase:
    """A case with guidance in calls of its own."""
    return PipelineCase(name, family, make, settings, guidance_is_sequential=True)


CASES = (
    qwen("qwen-image", newer.make_qwen_image, SIZE),
    qwen("qwen-image-img2img", bind(newer.make_qwen_image, diffusers.QwenImageImg2ImgPipeline), FLOW_IMAGE_TO_IMAGE),
    qwen("qwen-image-inpaint", bind(newer.make_qwen_image, diffusers.QwenImageInpaintPipeline), INPAINT),
    qwen("qwen-image-controlnet", newer.make_qwen_image_controlnet, {**SIZE, "control_image": IMAGE["image"]}),
    edit("qwen-image-edit", diffusers.QwenImageEditPipeline, PICTURE),
    edit("qwen-image-edit-plus", diffusers.QwenImageEditPlusPipeline, PICTURE),
    edit(
        "qwen-image-edit-inpaint",
        diffusers.QwenImageEditInpaintPipeline,
        {**PICTURE, "mask_image": INPAINT["mask_image"]},
    ),
    PipelineCase("flux-2", "flux-2", newer.make_flux2, SHORT, guidance={}, unguided={}),
    PipelineCase(
        "flux-2-klein",
        "flux-2",
        bind(newer.make_flux2, diffusers.Flux2KleinPipeline),
        SHORT,
        guidance_is_sequential=True,
    ),
    sequential(
        "flux-2-klein-image",
        "flux-2",
        bind(newer.make_flux2, diffusers.Flux2KleinPipeline),
        {**SHORT, "image": PICTURE["image"].resize((64, 64))},
    ),
    sequential(
        "flux-2-klein-inpaint",
        "flux-2",
        bind(newer.make_flux2, diffusers.Flux2KleinInpaintPipeline),
        {**SHORT, **INPAINT},
    ),
    PipelineCase("z-image", "z-image", newer.make_z_image, SHORT, unguided={"guidance_scale": 0.0}),
    PipelineCase(
        "z-image-img2img",
        "z-image",
        bind(newer.make_z_image, diffusers.ZImageImg2ImgPipeline),
        {**FLOW_IMAGE_TO_IMAGE, **SHORT},
        unguided={"guidance_scale": 0.0},
    ),
    PipelineCase(
        "z-image-inpaint",
        "z-image",
        bind(newer.make_z_image, diffusers.ZImageInpaintPipeline),
        {**INPAINT, **SHORT},
        unguided={"guidance_scale": 0.0},
    ),
    PipelineCase(
        "z-image-controlnet",
        "z-image",
        newer.make_z_image_controlnet,
        {**SHORT, "control_image": IMAGE["image"]},
        unguided={"guidance_scale": 0.0},
    ),
    PipelineCase(
        "z-image-controlnet-inpaint",
        "z-image",
        bind(newer.make_z_image_controlnet, diffusers.ZImageControlNetInpaintPipeline, channels=33),
        {**SHORT, **INPAINT, "control_image": IMAGE["image"]},
        unguided={"guidance_scale": 0.0},
    ),
    sequential("cogview-4", "cogview-4", newer.make_cogview4, SIZE),
    sequential(
        "cogview-4-control",
        "cogview-4",
        bind(newer.make_cogview4, diffusers.CogView4ControlPipeline),
        {**SIZE, "control_image": IMAGE["image"]},
    ),
    sequential("chroma", "chroma", newer.make_chroma, SHORT),
    sequential(
        "chroma-img2img",
        "chroma",
        bind(newer.make_chroma, diffusers.ChromaImg2ImgPipeline),
        {**SHORT, **FLOW_IMAGE_TO_IMAGE},
    ),
    PipelineCase("cogview-3-plus", "cogview-3-plus", newer.make_cogview3, SHORT),
    PipelineCase("kandinsky-3", "kandinsky-3", newer.make_kandinsky3, LARGE),
    PipelineCase(
        "kandinsky-3-img2img",
        "kandinsky-3",
        bind(newer.make_kandinsky3, diffusers.Kandinsky3Img2ImgPipeline),
        {"image": make_picture(), "strength": 0.7},
    ),
    sequential("kandinsky-5", "kandinsky-5", newer.make_kandinsky5, SIZE),
    sequential(
        "kandinsky-5-edit",
        "kandinsky-5-edit",
        bind(newer.make_kandinsky5, diffusers.Kandinsky5I2IPipeline),
        {**SIZE, "image": [PICTURE["image"]]},
    ),
    sequential(
        "kandinsky-5-video",
        "kandinsky-5-video",
        bind(newer.make_kandinsky5, diffusers.Kandinsky5T2VPipeline),
        {**SIZE, "num_frames": 5},
    ),
    sequential(
        "kandinsky-5-image-video",
        "kandinsky-5-video",
        bind(newer.make_kandinsky5, diffusers.Kandinsky5I2VPipeline),
        {**SIZE, "num_frames": 9, "image": PICTURE["image"]},
    ),
    PipelineCase("hidream", "hidream", newer.make_hidream, SHORT),
    PipelineCase("hunyuan-dit", "hunyuan-dit", newer.make_hunyuan_dit, BINNED),
    PipelineCase(
        "hunyuan-image",
        "hunyuan-image",
        newer.make_hunyuan_image,
        SIZE,
        guidance_is_sequential=True,
    ),
    PipelineCase(
        "hunyuan-image-distilled",
        "hunyuan-image",
        bind(newer.make_hunyuan_image, is_distilled=True),
        SIZE,
        guidance={},
        unguided={},
    ),
    PipelineCase(
        "hunyuan-image-refiner",
        "hunyuan-image",
        bind(newer.make_hunyuan_image, diffusers.HunyuanImageRefinerPipeline),
        {**SIZE, "image": make_picture()},
        guidance_is_sequential=True,
    ),
    PipelineCase(
        "krea-2",
        "krea-2",
        newer.make_krea2,
        SHORT,
        unguided={"guidance_scale": 0.0},
        guidance_is_sequential=True,
    ),
    PipelineCase("kolors", "kolors", unets.make_kolors, SIZE),
    PipelineCase(
        "kolors-img2img",
        "kolors",
        bind(unets.make_kolors, diffusers.KolorsImg2ImgPipeline),
        {"image": make_picture(), "strength": 0.7},
    ),
    PipelineCase("ltx-video", "ltx-video", newer.make_ltx, SHORT_VIDEO),
    PipelineCase(
        "ltx-video-image",
        "ltx-video",
        bind(newer.make_ltx, diffusers.LTXImageToVideoPipeline),
        {**SHORT_VIDEO, "image": make_picture()},
    ),
    PipelineCase(
        "prx-unguided", "prx", newer.make_prx, {**EXACT_SIZE, "guidance_scale": 1.0}, guidance={}, unguided={}
    ),
    PipelineCase("prx", "prx", newer.make_prx, EXACT_SIZE),
    sequential("nucleus-image", "nucleus-image", newer.make_nucleus_image, SIZE),
    sequential("ovis-image", "ovis-image", newer.make_ovis, SHORT),
)
NEWER: dict[str, PipelineCase] = {case.name: case for case in CASES}
EVERY: dict[str, PipelineCase] = {**PIPELINES, **NEWER}


def embeds_arguments(pipe: Any, embeds: PromptEmbeds, prefix: str = "") -> dict[str, Any]:
    """Call arguments that hand over embeddings, by the names that the pipeline has for them; `prefix` "" or "negative_"."""
    names = inspect.signature(type(pipe).__call__).parameters
    mask = embeds.mask
    if mask is None:
        mask = torch.ones(embeds.prompt.shape[:2])  # some want one that nobody reads
    if family_of(pipe).prompt_layers:
        embeds = embeds._replace(prompt=embeds.prompt.unflatten(2, (len(pipe.text_encoder_select_layers), -1)))
    if family_of(pipe).second_prompt:
        return second_arguments(pipe, embeds, mask, prefix)
    if family_of(pipe).listed:
        return {f"{prefix}prompt_embeds": unpadded(embeds.prompt.detach(), mask)}
    length = torch.tensor([0, *[embeds.prompt.shape[1]] * len(embeds.prompt)]).cumsum(0)
    given = {
        f"{prefix}prompt_embeds_qwen": embeds.prompt,  # Kandinsky 5
        f"{prefix}prompt_embeds_clip": embeds.pooled,
        f"{prefix}prompt_cu_seqlens": length,
        f"{prefix}prompt_embeds": embeds.prompt,
        f"{prefix}pooled_prompt_embeds": embeds.pooled,
        f"{prefix}prompt_attention_mask": mask,
        f"{prefix}prompt_embeds_mask": mask,
        f"{prefix}attention_mask": mask,
    }
    return {name: value.detach() for name, value in given.items() if name in names and value is not None}


def second_arguments(pipe: Any, embeds: PromptEmbeds, mask: torch.Tensor, prefix: str) -> dict[str, Any]:
    """The same where the denoiser is given two sequences: of HunyuanImage, and of HiDream."""
    fact, config, prompt = family_of(pipe).second_prompt, pipe.transformer.config, embeds.prompt.detach()
    assert fact is not None
    if fact.layers:
        assert embeds.pooled is not None
        length, (width, other) = prompt.shape[1], config.caption_channels
        like = Parts(torch.zeros(1, length, width), torch.zeros(max(config[fact.layers]) + 1, 1, length, other))
        first, second = cut(fact, prompt, None, like)[:2]
        values = {"prompt_embeds_t5": first, "prompt_embeds_llama3": second, "pooled_prompt_embeds": embeds.pooled}
        return {f"{prefix}{name}": value.detach() for name, value in values.items()}
    if fact.encoder_settings:  # HunyuanDiT, all of whose tokens guards are given
        like = Parts(torch.zeros(1, 77, config.cross_attention_dim), torch.zeros(1, 256, config.cross_attention_dim_t5))
        first, second = cut(fact, prompt, None, like)[:2]
        values = {"prompt_embeds": first, "prompt_embeds_2": second}
        masks = {"prompt_attention_mask": first, "prompt_attention_mask_2": second}
        values |= {name: torch.ones(states.shape[:2], dtype=torch.int64) for name, states in masks.items()}
        return {f"{prefix}{name}": value for name, value in values.items()}
    second = torch.zeros(1, pipe.tokenizer_2_max_length, config.text_embed_2_dim)
    like = Parts(torch.zeros(1, 1, config.text_embed_dim), second, mask, second[..., 0])
    names = ("prompt_embeds", "prompt_embeds_2", "prompt_embeds_mask", "prompt_embeds_mask_2")
    return {f"{prefix}{name}": part for name, part in zip(names, cut(fact, prompt, mask, like), strict=True)}
