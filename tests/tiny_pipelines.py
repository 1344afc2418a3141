"""Tiny, random, hub-free diffusers pipelines of every supported family, and one way to run them all.

A case says how to build its pipeline, what a short run takes and how classifier-free guidance goes on and off; `run`
gives final latents whose image i starts from the same noise in any batch. Pictures are 32 high and 48 wide (Lumina:
64 and 96), so that swapped sides show. Weights come from fixed seeds; build a fresh pipeline wherever a test changes it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from tests.tiny import dits, unets
from torch import Tensor

from saferedir.pipelines.guiders import guided_call
from saferedir.utils.images import output_images

HEIGHT, WIDTH = 32, 48
SIZE = {"height": HEIGHT, "width": WIDTH}
CFG = {"guidance_scale": 5.0}
NO_CFG = {"guidance_scale": 1.0}


@dataclass(frozen=True)
class PipelineCase:
    """One kind of pipeline, and what its short runs are given."""

    name: str
    family: str
    make: Callable[[], Any]  # the bare pipeline; `build` is what tests call
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)  # call arguments of any run
    guidance: Mapping[str, Any] = field(default_factory=lambda: CFG)  # ... that switch classifier-free guidance on
    unguided: Mapping[str, Any] = field(default_factory=lambda: NO_CFG)  # ... that switch it off
    guidance_is_sequential: bool = False  # two denoiser calls a step under guidance

    def build(self) -> Any:
        """A fresh pipeline, the same weights each time; float32, eval mode, no progress bar."""
        pipe = self.make()
        pipe.set_progress_bar_config(disable=True)
        return pipe


def make_picture() -> Tensor:
    """A (1, 3, H, W) image in [0, 1]."""
    return torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(7))


def make_mask() -> Tensor:
    """A (1, 1, H, W) inpainting mask: repaint the left half."""
    mask = torch.zeros(1, 1, HEIGHT, WIDTH)
    mask[..., : WIDTH // 2] = 1.0
    return mask


IMAGE = {"image": make_picture()}
IMAGE_TO_IMAGE = {**IMAGE, "strength": 0.7}  # the last two of three steps
FLOW_IMAGE_TO_IMAGE = {**SIZE, **IMAGE, "strength": 0.6}  # flow pipelines round the other way
INPAINT = {**SIZE, **IMAGE, "mask_image": make_mask()}
EXACT_SIZE = {**SIZE, "use_resolution_binning": False}
TRUE_CFG = {"true_cfg_scale": 4.0, "negative_prompt": "b"}
NO_TRUE_CFG = {"true_cfg_scale": 1.0}
VIDEO = {**SIZE, "num_frames": 5}
FLUX = {**SIZE, "max_sequence_length": 24}  # random networks do not hear a prompt in 512 tokens

sd, sdxl = unets.make_sd, unets.make_sdxl
bind = functools.partial

SD, SDXL, SD3 = "stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3"
CASES = (
    PipelineCase("sd", SD, sd, SIZE),
    PipelineCase("sd-img2img", SD, bind(sd, diffusers.StableDiffusionImg2ImgPipeline), IMAGE_TO_IMAGE),
    PipelineCase("sd-inpaint", SD, bind(sd, diffusers.StableDiffusionInpaintPipeline), {**INPAINT, "strength": 0.7}),
    PipelineCase("sd-inpaint9", SD, bind(sd, diffusers.StableDiffusionInpaintPipeline, in_channels=9), INPAINT),
    PipelineCase("sd-controlnet", SD, unets.make_sd_controlnet, {**SIZE, **IMAGE}),
    PipelineCase("sdxl", SDXL, sdxl, SIZE),
    PipelineCase("sdxl-img2img", SDXL, bind(sdxl, diffusers.StableDiffusionXLImg2ImgPipeline), IMAGE_TO_IMAGE),
    PipelineCase("sdxl-inpaint", SDXL, bind(sdxl, diffusers.StableDiffusionXLInpaintPipeline), INPAINT),
    PipelineCase("sdxl-controlnet", SDXL, unets.make_sdxl_controlnet, {**SIZE, **IMAGE}),
    PipelineCase("sdxl-refiner", SDXL, unets.make_sdxl_refiner, IMAGE_TO_IMAGE),
    PipelineCase("sd3", SD3, dits.make_sd3, SIZE),
    PipelineCase(
        "sd3-img2img", SD3, bind(dits.make_sd3, diffusers.StableDiffusion3Img2ImgPipeline), FLOW_IMAGE_TO_IMAGE
    ),
    PipelineCase("flux", "flux", dits.make_flux, FLUX, guidance={}, unguided={}),
    PipelineCase(
        "flux-true-cfg",
        "flux",
        dits.make_flux,
        FLUX,
        guidance=TRUE_CFG,
        unguided=NO_TRUE_CFG,
        guidance_is_sequential=True,
    ),
    PipelineCase(
        "flux-img2img",
        "flux",
        bind(dits.make_flux, diffusers.FluxImg2ImgPipeline),
        {**FLUX, **FLOW_IMAGE_TO_IMAGE},
        guidance={},
        unguided={},
    ),
    PipelineCase("pixart-sigma", "pixart", dits.make_pixart_sigma, EXACT_SIZE),
    PipelineCase("pixart-alpha", "pixart", dits.make_pixart_alpha, EXACT_SIZE),
    PipelineCase("sana", "sana", dits.make_sana, {**EXACT_SIZE, "width": 2 * HEIGHT}),
    PipelineCase(
        "lumina2",
        "lumina-2",
        dits.make_lumina2,
        {"height": 2 * HEIGHT, "width": 2 * WIDTH, "system_prompt": "draw", "max_sequence_length": 48},
        guidance_is_sequential=True,
    ),
    PipelineCase("lumina", "lumina", dits.make_lumina, {"height": 2 * HEIGHT, "width": 2 * WIDTH}),
    PipelineCase("aura-flow", "aura-flow", dits.make_aura_flow, {**SIZE, "max_sequence_length": 24}),
    PipelineCase("wan", "wan", dits.make_wan, VIDEO, guidance_is_sequential=True),
    PipelineCase(
        "wan-2.2",
        "wan",
        bind(dits.make_wan, boundary_ratio=0.9),
        {**VIDEO, "max_sequence_length": 64},
        guidance_is_sequential=True,
    ),
)
PIPELINES: dict[str, PipelineCase] = {case.name: case for case in CASES}


def embeds_argument(names: Collection[str]) -> str:
    """That of a call's arguments which hands over prompt embeddings; Kandinsky 5 and HiDream have one for each text encoder."""
    return next((name for name in ("prompt_embeds_qwen", "prompt_embeds_t5") if name in names), "prompt_embeds")


def run(
    case: PipelineCase,
    pipe: Any,
    prompt: str | list[str] | None = "a star",
    *,
    seeds: Sequence[int] | None = None,
    steps: int = 3,
    num_images_per_prompt: int = 1,
    **changes: Any,
) -> Tensor:
    """Final latents, as the pipeline returns them, of a short guided run; image i of any batch has the same noise.

    `changes` win over the case's settings and guidance (`**case.unguided` switches guidance off). With `prompt=None`
    the batch size is that of `prompt_embeds`. One negative prompt and one picture serve every image of a batch.
    """
    arguments = {**case.settings, **case.guidance, "output_type": "latent", **changes}
    if prompt is None:
        num_prompts = len(arguments[embeds_argument(arguments)])
    else:
        num_prompts = len(prompt) if isinstance(prompt, list) else 1
        if isinstance(prompt, list) and isinstance(arguments.get("negative_prompt"), str):
            arguments["negative_prompt"] = [arguments["negative_prompt"]] * num_prompts
    num_images = num_prompts * num_images_per_prompt
    # A ControlNet pipeline repeats its condition for the images of one prompt by itself; others differ, SD3 cannot.
    num_pictures = num_prompts if hasattr(pipe, "controlnet") else num_images
    num_pictures = 1 if case.family == "wan" else num_pictures  # one for all
    for name in {"image", "mask_image"} & arguments.keys():
        if isinstance(arguments[name], Tensor) and len(arguments[name]) == 1:
            arguments[name] = arguments[name].repeat(num_pictures, 1, 1, 1)
        if isinstance(arguments[name], list) and len(arguments[name]) == 1:
            arguments[name] = arguments[name] * num_pictures
    many = "num_videos_per_prompt" if "num_frames" in arguments or case.family == "wan" else "num_images_per_prompt"
    generators = [torch.Generator().manual_seed(seed) for seed in seeds or range(num_images)]
    arguments.setdefault("generator", generators if num_images > 1 else generators[0])
    prompt = list(prompt) if isinstance(prompt, list) else prompt  # Z-Image writes into it
    with torch.random.fork_rng():  # Stable Diffusion 3 encodes the image of its ControlNet with the global generator
        torch.manual_seed(0)
        with guided_call(pipe, arguments) as given:
            output = pipe(prompt=prompt, num_inference_steps=steps, **{many: num_images_per_prompt}, **given)
    images: Tensor = output_images(output)
    return images
