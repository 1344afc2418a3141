"""Tiny pipelines of every further class of a family: cases that few checks run, beside those of tests/tiny_pipelines.py.

They share their family's denoiser, its layout and its facts, so that the contract's features are not run with them again;
tests/pipelines/test_coverage.py says what is.
"""

from __future__ import annotations

from typing import Any

import diffusers
from tests.newer_pipelines import BINNED, EVERY, qwen
from tests.tiny import dits, newer, unets
from tests.tiny_pipelines import (
    EXACT_SIZE,
    FLUX,
    SD,
    SD3,
    SDXL,
    SIZE,
    TRUE_CFG,
    PipelineCase,
    bind,
    make_mask,
    make_picture,
)

CONTROL = {"control_image": make_picture().flip(-1)}
STRENGTH = {"image": make_picture(), "strength": 0.7}
MASK = {"mask_image": make_mask()}


def _flux(name: str, cls: Any, settings: dict[str, Any], **more: Any) -> PipelineCase:
    make = dits.make_flux_controlnet if "ControlNet" in cls.__name__ else dits.make_flux
    return PipelineCase(name, "flux", bind(make, cls, **more), {**FLUX, **settings}, guidance={}, unguided={})


KONTEXT = {"image": make_picture(), "_auto_resize": False, "max_area": 32 * 48}
UNION = {"control_mode": [0]}
CONTROL_CHANNELS = {"in_channels": 128, "out_channels": 64}
_CASES: tuple[PipelineCase, ...] = (
    _flux("flux-inpaint", diffusers.FluxInpaintPipeline, {**STRENGTH, **MASK}),
    PipelineCase(
        "flux-kontext",
        "flux",
        bind(dits.make_flux, diffusers.FluxKontextPipeline),
        {**FLUX, **KONTEXT},
        guidance=TRUE_CFG,
        unguided={"true_cfg_scale": 1.0},
        guidance_is_sequential=True,
    ),
    _flux("flux-kontext-inpaint", diffusers.FluxKontextInpaintPipeline, {**KONTEXT, **STRENGTH, **MASK}),
    _flux(
        "flux-fill",
        diffusers.FluxFillPipeline,
        {"image": make_picture(), **MASK},
        in_channels=64 + 64 + 4 * 16,
        out_channels=64,
    ),
    _flux("flux-control", diffusers.FluxControlPipeline, CONTROL, **CONTROL_CHANNELS),
    _flux("flux-control-img2img", diffusers.FluxControlImg2ImgPipeline, {**CONTROL, **STRENGTH}, **CONTROL_CHANNELS),
    _flux(
        "flux-control-inpaint",
        diffusers.FluxControlInpaintPipeline,
        {**CONTROL, **STRENGTH, **MASK},
        **CONTROL_CHANNELS,
    ),
    _flux("flux-controlnet", diffusers.FluxControlNetPipeline, CONTROL),
    _flux("flux-controlnet-img2img", diffusers.FluxControlNetImg2ImgPipeline, {**CONTROL, **STRENGTH}),
    _flux("flux-controlnet-inpaint", diffusers.FluxControlNetInpaintPipeline, {**CONTROL, **STRENGTH, **MASK}),
)


def _sd(name: str, make: Any, settings: dict[str, Any], **more: Any) -> PipelineCase:
    family = next(family for start, family in _FAMILY.items() if name.startswith(start))
    return PipelineCase(
        name, family, make, {name: value for name, value in {**SIZE, **settings}.items() if value is not None}, **more
    )


_FAMILY = {"kolors": "kolors", "sdxl": SDXL, "sd3": SD3, "sd": SD, "lcm": SD, "pixart": "pixart", "sana": "sana"}
IMAGE = {"image": make_picture()}
CONTROL_IMAGE_TO_IMAGE = {**CONTROL, **STRENGTH}
UNGUIDED: dict[str, Any] = {"guidance": {}, "unguided": {}}
PAG = {"pag_scale": 2.0}
NO_SIZE = {"height": None, "width": None}  # the image's
_CASES += (
    _sd(
        "sd-controlnet-img2img",
        bind(unets.make_sd_controlnet, diffusers.StableDiffusionControlNetImg2ImgPipeline),
        CONTROL_IMAGE_TO_IMAGE,
    ),
    _sd(
        "sd-controlnet-inpaint",
        bind(unets.make_sd_controlnet, diffusers.StableDiffusionControlNetInpaintPipeline),
        {**CONTROL_IMAGE_TO_IMAGE, **MASK},
    ),
    _sd("sd-depth", unets.make_sd_depth, {**STRENGTH, "depth_map": make_mask()[0], **NO_SIZE}),
    _sd("sd-adapter", unets.make_sd_adapter, IMAGE),
    _sd(
        "sd-pix2pix",
        bind(unets.make_sd, diffusers.StableDiffusionInstructPix2PixPipeline, in_channels=8),
        {**IMAGE, **NO_SIZE},
    ),
    _sd("sd-pag", bind(unets.make_sd, diffusers.StableDiffusionPAGPipeline), PAG),
    _sd(
        "sd-pag-img2img",
        bind(unets.make_sd, diffusers.StableDiffusionPAGImg2ImgPipeline),
        {**PAG, **STRENGTH, **NO_SIZE},
    ),
    _sd(
        "sd-pag-inpaint", bind(unets.make_sd, diffusers.StableDiffusionPAGInpaintPipeline), {**PAG, **STRENGTH, **MASK}
    ),
    _sd(
        "sd-controlnet-pag",
        bind(unets.make_sd_controlnet, diffusers.StableDiffusionControlNetPAGPipeline),
        {**PAG, **IMAGE},
    ),
    _sd(
        "sd-controlnet-pag-inpaint",
        bind(unets.make_sd_controlnet, diffusers.StableDiffusionControlNetPAGInpaintPipeline),
        {**PAG, **CONTROL_IMAGE_TO_IMAGE, **MASK},
    ),
    _sd("lcm", bind(unets.make_lcm, diffusers.LatentConsistencyModelPipeline), {}, **UNGUIDED),
    _sd(
        "lcm-img2img",
        bind(unets.make_lcm, diffusers.LatentConsistencyModelImg2ImgPipeline),
        {**STRENGTH, **NO_SIZE},
        **UNGUIDED,
    ),
    _sd(
        "sdxl-controlnet-img2img",
        bind(unets.make_sdxl_controlnet, diffusers.StableDiffusionXLControlNetImg2ImgPipeline),
        CONTROL_IMAGE_TO_IMAGE,
    ),
    _sd(
        "sdxl-controlnet-inpaint",
        bind(unets.make_sdxl_controlnet, diffusers.StableDiffusionXLControlNetInpaintPipeline),
        {**CONTROL_IMAGE_TO_IMAGE, **MASK},
    ),
    _sd(
        "sdxl-union",
        bind(unets.make_sdxl_union, diffusers.StableDiffusionXLControlNetUnionPipeline),
        {**UNION, **CONTROL},
    ),
    _sd(
        "sdxl-union-img2img",
        bind(unets.make_sdxl_union, diffusers.StableDiffusionXLControlNetUnionImg2ImgPipeline),
        {**UNION, **CONTROL_IMAGE_TO_IMAGE},
    ),
    _sd(
        "sdxl-union-inpaint",
        bind(unets.make_sdxl_union, diffusers.StableDiffusionXLControlNetUnionInpaintPipeline),
        {**UNION, **CONTROL_IMAGE_TO_IMAGE, **MASK},
    ),
    _sd("sdxl-adapter", unets.make_sdxl_adapter, IMAGE),
    _sd(
        "sdxl-pix2pix",
        lambda: unets.make_sdxl(
            diffusers.StableDiffusionXLInstructPix2PixPipeline, unet=unets.make_unet(unets.SDXL_SIZES, 8)
        ),
        IMAGE,
    ),
    _sd("sdxl-pag", bind(unets.make_sdxl, diffusers.StableDiffusionXLPAGPipeline), PAG),
    _sd(
        "sdxl-pag-img2img",
        bind(unets.make_sdxl, diffusers.StableDiffusionXLPAGImg2ImgPipeline),
        {**PAG, **STRENGTH, **NO_SIZE},
    ),
    _sd(
        "sdxl-pag-inpaint",
        bind(unets.make_sdxl, diffusers.StableDiffusionXLPAGInpaintPipeline),
        {**PAG, **STRENGTH, **MASK},
    ),
    _sd(
        "sdxl-controlnet-pag",
        bind(unets.make_sdxl_controlnet, diffusers.StableDiffusionXLControlNetPAGPipeline),
        {**PAG, **IMAGE},
    ),
    _sd(
        "sdxl-controlnet-pag-img2img",
        bind(unets.make_sdxl_controlnet, diffusers.StableDiffusionXLControlNetPAGImg2ImgPipeline),
        {**PAG, **CONTROL_IMAGE_TO_IMAGE},
    ),
    _sd("kolors-pag", bind(unets.make_kolors, diffusers.KolorsPAGPipeline), PAG),
    _sd("sd3-inpaint", bind(dits.make_sd3, diffusers.StableDiffusion3InpaintPipeline), {**STRENGTH, **MASK}),
    _sd("sd3-controlnet", bind(dits.make_sd3_controlnet, diffusers.StableDiffusion3ControlNetPipeline), CONTROL),
    _sd(
        "sd3-controlnet-zeros",
        bind(dits.make_sd3_controlnet, diffusers.StableDiffusion3ControlNetPipeline, force_zeros=True),
        CONTROL,
    ),
    _sd(
        "sd3-controlnet-blind",
        bind(dits.make_sd3_controlnet, diffusers.StableDiffusion3ControlNetPipeline, without_prompt=True),
        CONTROL,
    ),
    _sd(
        "sd3-controlnet-inpaint",
        bind(dits.make_sd3_controlnet, diffusers.StableDiffusion3ControlNetInpaintingPipeline, extra_channels=1),
        {"control_image": make_picture(), "control_mask": make_mask()},
    ),
    _sd("sd3-pag", bind(dits.make_sd3, diffusers.StableDiffusion3PAGPipeline, pag_applied_layers="blocks.0"), PAG),
    _sd(
        "sd3-pag-img2img",
        bind(dits.make_sd3, diffusers.StableDiffusion3PAGImg2ImgPipeline, pag_applied_layers="blocks.0"),
        {**PAG, **STRENGTH},
    ),
    _sd(
        "pixart-sigma-pag",
        bind(dits.make_pixart, diffusers.PixArtSigmaPAGPipeline, sample_size=8, pag_applied_layers="blocks.1"),
        {**EXACT_SIZE, **PAG},
    ),
    _sd(
        "sana-pag",
        bind(dits.make_sana, dits.with_short_instruction(diffusers.SanaPAGPipeline), pag_applied_layers="blocks.0"),
        {**EXACT_SIZE, "width": 64, **PAG},
    ),
    _sd("sana-controlnet", dits.make_sana_controlnet, {**EXACT_SIZE, "width": 64, **CONTROL}),
)
_CASES += (
    qwen(
        "qwen-image-controlnet-inpaint",
        bind(newer.make_qwen_image_controlnet, diffusers.QwenImageControlNetInpaintPipeline, extra_channels=4),
        {**SIZE, **CONTROL, "control_mask": make_mask()},
    ),
)


def _wan(name: str, make: Any, settings: dict[str, Any]) -> PipelineCase:
    return PipelineCase(name, "wan", make, {**SIZE, "max_sequence_length": 64, **settings}, guidance_is_sequential=True)


FIRST_IMAGE = {"image": make_picture(), "num_frames": 5}
_CASES += (
    _wan(
        "wan-image",
        bind(dits.make_wan, diffusers.WanImageToVideoPipeline, in_channels=36, boundary_ratio=0.9),
        FIRST_IMAGE,
    ),
    _wan("wan-image-features", dits.make_wan_with_image, FIRST_IMAGE),
    _wan(
        "wan-image-expanded",
        bind(dits.make_wan, diffusers.WanImageToVideoPipeline, expand_timesteps=True),
        FIRST_IMAGE,
    ),
    _wan(
        "wan-video",
        bind(dits.make_wan, diffusers.WanVideoToVideoPipeline),
        {"video": make_picture().repeat(5, 1, 1, 1)[None], "strength": 0.7},
    ),
)
VIDEO_OF_FRAMES = {"num_frames": 3}
_CASES += (
    _sd("sd-animatediff", bind(unets.make_animatediff, diffusers.AnimateDiffPipeline), VIDEO_OF_FRAMES),
    _sd(
        "sd-animatediff-pag", bind(unets.make_animatediff, diffusers.AnimateDiffPAGPipeline), {**VIDEO_OF_FRAMES, **PAG}
    ),
)
SPRINT = {**EXACT_SIZE, "width": 64, "intermediate_timesteps": None}
_CASES += (
    PipelineCase("sana-sprint", "sana", bind(dits.make_sana_sprint, diffusers.SanaSprintPipeline), SPRINT, **UNGUIDED),
    PipelineCase(
        "sana-sprint-img2img",
        "sana",
        bind(dits.make_sana_sprint, diffusers.SanaSprintImg2ImgPipeline),
        {**SPRINT, **STRENGTH},
        **UNGUIDED,
    ),
    PipelineCase(
        "hunyuan-dit-pag",
        "hunyuan-dit",
        bind(newer.make_hunyuan_dit, diffusers.HunyuanDiTPAGPipeline),
        {**BINNED, **PAG},
    ),
    PipelineCase(
        "hunyuan-dit-controlnet",
        "hunyuan-dit",
        bind(newer.make_hunyuan_dit, diffusers.HunyuanDiTControlNetPipeline),
        {**BINNED, **CONTROL},
    ),
)
VARIANTS: dict[str, PipelineCase] = {case.name: case for case in _CASES}
#: every case there is
ALL_CASES: dict[str, PipelineCase] = {**EVERY, **VARIANTS}
