"""Tiny pipelines of every further class of a family: cases that few checks run, beside those of tests/tiny_pipelines.py.

They share their family's denoiser, its layout and its facts, so that the contract's features are not run with them again;
tests/pipelines/test_coverage.py says what is.
"""

from __future__ import annotations

from typing import Any

import diffusers
from tests.newer_pipelines import EVERY
from tests.tiny import dits
from tests.tiny_pipelines import (
    FLUX,
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
CONTROL_CHANNELS = {"in_channels": 128, "out_channels": 64}
_CASES = (
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
VARIANTS: dict[str, PipelineCase] = {case.name: case for case in _CASES}
#: every case there is
ALL_CASES: dict[str, PipelineCase] = {**EVERY, **VARIANTS}
