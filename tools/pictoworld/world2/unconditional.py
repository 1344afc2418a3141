"""The unconditional model of PictoWorld 2: `DDPMPipeline` with a small `UNet2DModel` on 32x32 pixels.

Its corpus is scenes of one object, every attribute independent and uniform, so that each share is known: 1/8 for each
shape and colour, 1/6 for each background, 1/4 for each style.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel
from torch import Tensor
from torch.nn.functional import avg_pool2d

from saferedir.pictoworld.scene import COLOURS, SHAPES, STYLES
from saferedir.pictoworld.world2.renderer import render
from saferedir.pictoworld.world2.scene import Item, Scene, random_scene
from saferedir.utils.progress import Progress
from tools.pictoworld.training.loop import START, LoopConfig, fit, weights_number
from tools.pictoworld.training.noise import stratified_timesteps, velocity_loss


def corpus_scene(rng: random.Random, **fixed: str) -> Scene:
    """A scene of one object with uniform, independent attributes."""
    values = {"shape": rng.choice(SHAPES), "colour": rng.choice(COLOURS), "style": rng.choice(STYLES), **fixed}
    item = Item(values["shape"], values["colour"], values["style"])
    return random_scene(rng, items=(item,))


def corpus_images(count: int, seed: int) -> Tensor:
    """Images of the corpus, (count, 3, 32, 32) float16 in [-1, 1]."""
    rng = random.Random(f"unconditional/{seed}")
    rows = []
    for start in range(0, count, 256):
        scenes = [corpus_scene(rng) for _ in range(min(256, count - start))]
        rows.append((avg_pool2d(render(scenes), 2) * 2 - 1).half())
    return torch.cat(rows)


def build_unet() -> UNet2DModel:
    """An untrained `UNet2DModel` for 3x32x32 pixels."""
    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=16,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """A cosine schedule, whose noisiest image keeps nothing of the clean one, so that the velocity must be predicted."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        clip_sample=True,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
    )


def train_unconditional(
    folder: Path,
    *,
    steps: int,
    progress: Progress,
    device: torch.device,
    batch: int = 64,
    pool: int = 40_000,
    seed: int = 0,
    bf16: bool = True,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> DDPMPipeline:
    """Train on velocity prediction; resumes from `folder`/unconditional.ckpt.

    It begins with the weights in `folder`/start, where there are some, and then draws other batches than those had.
    """
    torch.manual_seed(seed)
    images = corpus_images(pool, seed)
    start = folder / START
    unet = UNet2DModel.from_pretrained(start) if start.is_dir() else build_unet()
    unet = unet.requires_grad_(True).to(device)
    draws = seed + weights_number(start)
    alphas = build_scheduler().alphas_cumprod.to(device)

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (batch,), generator=generator)
        clean = images[rows].float().to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        t = stratified_timesteps(batch, generator).to(device)
        return velocity_loss(lambda x, t: unet(x, t).sample, clean, noise, t, alphas)

    config = LoopConfig(
        steps=steps, learning_rate=1e-3, warmup=200, seed=draws, ema=0.998, save_every=100, bf16=bf16, weight_decay=0.0
    )
    fit(unet, loss_fn, config, folder / "unconditional.ckpt", progress=progress, label="unconditional", log=log)
    return DDPMPipeline(unet, build_scheduler())
