"""Fixtures shared by all tests: a tiny Stable Diffusion pipeline made from random weights, no downloads.

The UNet has two levels and 8x8 latents (32 px images), the text encoder two layers of width 32, the
tokenizer knows the letters only; a three-step run takes some 30 ms on one core. Weights come from fixed
seeds, so that every pipeline of one kind is the same. Build a fresh one wherever a test changes it.
"""

from __future__ import annotations

import functools
import gc
import inspect
import string
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
import typer.main
import typer.testing
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

torch.set_num_threads(1)

# Reading the signatures of all commands takes 0.15 s, which typer does anew for each call of a command line.
typer.main.get_command = typer.testing._get_command = functools.cache(typer.main.get_command)  # type: ignore[assignment, attr-defined]

PROMPT_WIDTH = 32
LATENT_SHAPE = (4, 8, 8)

#: every scheduler a Stable Diffusion pipeline can run here, by a short name, with what to change in its
# config
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddim-eta": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "pndm-prk": ("PNDMScheduler", {"skip_prk_steps": False}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "kdpm2-ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "dpm++-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "sde-dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm-singlestep": ("DPMSolverSinglestepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "unipc-flow": (
        "UniPCMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
    ),
    "sa-solver": ("SASolverScheduler", {}),
}

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


diffusers.utils.logging.set_verbosity_error()


def make_scheduler(name: str, **changes: Any) -> Any:
    """A scheduler by its short name, on Stable Diffusion's betas."""
    cls_name, config = SCHEDULERS[name]
    base: dict[str, Any] = dict(BETAS)
    if "steps_offset" in inspect.signature(getattr(diffusers, cls_name)).parameters:
        base["steps_offset"] = 1  # or the pipeline warns
    if cls_name in ("DDIMScheduler", "DDPMScheduler"):
        base["clip_sample"] = False
    if cls_name == "DDIMScheduler":
        base["set_alpha_to_one"] = False
    return getattr(diffusers, cls_name)(**{**base, **config, **changes})


def make_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer of the 26 letters, with and without end-of-word."""
    letters = string.ascii_lowercase
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A random two-layer CLIP text encoder of width `PROMPT_WIDTH`."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=PROMPT_WIDTH,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=64,
        hidden_act="gelu",
    )
    return CLIPTextModel(config).eval()


def make_unet(width: int = 8, **changes: Any) -> diffusers.UNet2DConditionModel:
    """A random two-level conditional UNet. Cross-attention is strong enough for prompts to matter."""
    torch.manual_seed(1)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(width, 2 * width),
        layers_per_block=1,
        sample_size=LATENT_SHAPE[1],
        in_channels=LATENT_SHAPE[0],
        out_channels=LATENT_SHAPE[0],
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=PROMPT_WIDTH,
        attention_head_dim=2,
        norm_num_groups=2,
        **changes,
    )
    return unet.eval()


def make_pipeline(scheduler: str | Any = "ddim", dtype: torch.dtype = torch.float32, **unet: Any) -> Any:
    """A tiny StableDiffusionPipeline; `scheduler` is a short name or a ready scheduler."""
    tokenizer = make_tokenizer()
    torch.manual_seed(2)
    vae = diffusers.AutoencoderKL(
        block_out_channels=[8, 8, 8],
        norm_num_groups=2,
        layers_per_block=1,
        latent_channels=LATENT_SHAPE[0],
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
    )
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=make_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=make_unet(**unet),
        scheduler=make_scheduler(scheduler) if isinstance(scheduler, str) else scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(dtype=dtype)


def generate(pipe: Any, prompt: Any = "a star", **changes: Any) -> torch.Tensor:
    """Final latents (B, 4, 8, 8) of a short run from fixed noise; image i of any batch has the same noise."""
    settings: dict[str, Any] = {
        "num_inference_steps": 5 if pipe.scheduler.config.get("skip_prk_steps") is False else 3,
        "guidance_scale": 5.0,
        "output_type": "latent",
        "num_images_per_prompt": 1,
        **changes,
    }
    embeds = settings.get("prompt_embeds")
    count = embeds.shape[0] if embeds is not None else len(prompt) if isinstance(prompt, list) else 1
    seeds = settings.pop("seeds", range(count * settings["num_images_per_prompt"]))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    if embeds is not None:
        prompt = None
    settings.setdefault("generator", generators if len(generators) > 1 else generators[0])
    return pipe(prompt, **settings).images


@pytest.fixture
def pipe() -> Any:
    """A fresh tiny Stable Diffusion pipeline with DDIM."""
    return make_pipeline()


@pytest.fixture
def pipeline_with() -> Callable[..., Any]:
    """`make_pipeline`, for tests that choose scheduler, dtype or UNet."""
    return make_pipeline


def pytest_collection_finish() -> None:
    """Keep the garbage collector off what was imported and collected, where a pass takes a third of a second; and rare."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
