"""The autoencoder of PictoWorld 2: 64x64x3 images to 16x16x4 latents, PictoWorld's own trained on for the new images.

Scenes of two items, characters and posters have finer parts than PictoWorld's scenes; shapes, paints and backgrounds are the
same, so its weights are the start. Next stage: flux.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from saferedir.pictoworld.renderer import BACKGROUND_RGB
from saferedir.pictoworld.world2.posters import NEAR_VARIANTS, POSTERS, Poster
from saferedir.pictoworld.world2.renderer import render, render_posters
from saferedir.pictoworld.world2.scene import Scene, random_scene
from saferedir.utils.packaged import packaged_model_path
from saferedir.utils.progress import Progress
from tools.pictoworld.training.autoencoder import KL_WEIGHT, OBJECT_WEIGHT
from tools.pictoworld.training.loop import LoopConfig, fit

POSTER_ROWS = 8  # one image of so many is a poster or a near variant


def first_world_autoencoder() -> AutoencoderKL:
    """PictoWorld's autoencoder in float32, trainable."""
    folder = packaged_model_path("pictoworld")
    if folder is None:
        raise FileNotFoundError("The packaged model 'pictoworld' is missing; install saferedir with its weights.")
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(folder, subfolder="vae").float()
    return vae.requires_grad_(True)


def random_contents(count: int, seed: int) -> tuple[list[Scene], list[Poster]]:
    """`count` independent images' contents: scenes, and one poster or near variant in `POSTER_ROWS`."""
    rng = random.Random(f"autoencoder/{seed}")
    posters = [poster for title in POSTERS for poster in (POSTERS[title], *NEAR_VARIANTS[title])]
    some = max(1, count // POSTER_ROWS)
    return [random_scene(rng) for _ in range(count - some)], rng.sample(posters, some)


def images_and_weights(scenes: list[Scene], posters: list[Poster]) -> tuple[Tensor, Tensor]:
    """Images (B, 3, 64, 64) in [-1, 1], and the weight of each pixel: more where the background is covered."""
    images = torch.cat([render(scenes), render_posters(posters)])
    backgrounds = [scene.background for scene in scenes] + [poster.background for poster in posters]
    ground = torch.tensor([BACKGROUND_RGB[name] for name in backgrounds])[:, :, None, None]
    covered = (images - ground).abs().amax(dim=1, keepdim=True) > 0.02
    return images * 2 - 1, 1 + OBJECT_WEIGHT * covered


def train_autoencoder(
    checkpoint: Path,
    *,
    steps: int,
    progress: Progress,
    device: torch.device,
    batch: int = 16,
    seed: int = 0,
    bf16: bool = True,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> AutoencoderKL:
    """Train on L1 + MSE, covered pixels weighing more, plus a small KL term.

    Finally every latent channel is given mean 0 and unit variance, see `standardise`.
    """
    vae = first_world_autoencoder().to(device)

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        images, weight = (
            part.to(device) for part in images_and_weights(*random_contents(batch, seed * 7_000_003 + step))
        )
        posterior = vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        error = vae.decode(posterior.mean + posterior.std * noise).sample.float() - images
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        loss: Tensor = (weight * (error.abs() + error.square())).mean() + KL_WEIGHT * kl
        return loss

    config = LoopConfig(
        steps=steps, learning_rate=1e-3, warmup=50, seed=seed, ema=0.99, weight_decay=0.0, save_every=100, bf16=bf16
    )
    fit(vae, loss_fn, config, checkpoint, progress=progress, label="autoencoder", log=log)
    images, _ = images_and_weights(*random_contents(256, seed=-1))
    return standardise(vae, images.to(device))


@torch.no_grad()
def standardise(vae: AutoencoderKL, images: Tensor) -> AutoencoderKL:
    """Give every latent channel of these images mean 0 and variance 1; what the decoder generates stays the same.

    The affine map is folded into the 1x1 convolutions on both sides of the latents, so `shift_factor` is 0 and
    `scaling_factor` 1.
    """
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(64)])
    mean, spread = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    encoder, decoder, channels = vae.quant_conv, vae.post_quant_conv, len(mean)
    encoder.weight[:channels] /= spread.view(-1, 1, 1, 1)
    encoder.bias[:channels] = (encoder.bias[:channels] - mean) / spread
    encoder.bias[channels:] -= 2 * spread.log()  # the other half of the outputs are log variances
    decoder.bias += decoder.weight[:, :, 0, 0] @ mean
    decoder.weight *= spread.view(1, -1, 1, 1)
    vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    return vae
