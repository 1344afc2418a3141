"""The autoencoder of PictoWorld: 64x64x3 images to 16x16x4 latents, trained on renders.

Next stage: denoiser.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from saferedir.pictoworld.renderer import coverage, render
from saferedir.pictoworld.scene import Scene, random_scene
from saferedir.utils.progress import Progress
from tools.pictoworld.training.loop import LoopConfig, fit

KL_WEIGHT = 5e-5
OBJECT_WEIGHT = 3.0  # extra weight of the object's pixels, which are a seventh of the image


def build_autoencoder() -> AutoencoderKL:
    """An untrained `AutoencoderKL` with factor 4 and 4 latent channels (0.65 M parameters)."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
    )


def random_scenes(count: int, seed: int) -> list[Scene]:
    """`count` independent scenes."""
    rng = random.Random(seed)
    return [random_scene(rng) for _ in range(count)]


def random_images(count: int, seed: int) -> Tensor:
    """Renders of random scenes, (count, 3, 64, 64) in [-1, 1]."""
    return render(random_scenes(count, seed)) * 2 - 1


def train_autoencoder(
    checkpoint: Path,
    *,
    steps: int,
    progress: Progress,
    device: torch.device,
    batch: int,
    seed: int = 0,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> AutoencoderKL:
    """Train on L1 + MSE, the object's pixels weighing more, plus a small KL term.

    Finally `scaling_factor` is set so that latents have unit variance.
    """
    torch.manual_seed(seed)
    vae = build_autoencoder().to(device)

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        scenes = random_scenes(batch, seed=seed * 7_000_003 + step)
        images = (render(scenes) * 2 - 1).to(device)
        weight = 1 + OBJECT_WEIGHT * coverage(scenes)[:, None].to(device)
        posterior = vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        error = decoded - images
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        loss: Tensor = (weight * (error.abs() + error.square())).mean() + KL_WEIGHT * kl
        return loss

    config = LoopConfig(steps=steps, learning_rate=2e-3, seed=seed, ema=0.995, weight_decay=0.0)
    fit(vae, loss_fn, config, checkpoint, progress=progress, label="autoencoder", log=log)
    with torch.no_grad():
        spread = vae.encode(random_images(16 * batch, seed=-1).to(device)).latent_dist.mean.std().item()
    vae.register_to_config(scaling_factor=round(1.0 / spread, 5))
    return vae
