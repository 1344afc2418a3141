"""The autoencoder of PictoWorld 2: 64x64x3 images to 16x16x8 latents, PictoWorld's own widened and trained on.

Scenes of two items, characters and posters have finer parts than PictoWorld's scenes, and four channels blur them; shapes,
paints and backgrounds are the same, so its weights are the start. First it learns the new images with its four channels, then
with four more. Next stage: flux.py.
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
from saferedir.pictoworld.world2.characters import CHARACTERS
from saferedir.pictoworld.world2.posters import NEAR_VARIANTS, POSTERS, Poster
from saferedir.pictoworld.world2.renderer import render, render_posters
from saferedir.pictoworld.world2.scene import Scene, random_item, random_scene
from saferedir.utils.packaged import packaged_model_path
from saferedir.utils.progress import Progress
from tools.pictoworld.training.autoencoder import KL_WEIGHT, OBJECT_WEIGHT
from tools.pictoworld.training.loop import LoopConfig, LossFn, fit

CHANNELS = 8
FIRST_STEPS = 900  # with four channels
POSTER_ROWS = 8  # one image of so many is a poster or a near variant
MORE_CHARACTERS = 0.4  # of the scenes that train eight channels have a character as first item


def first_world_autoencoder() -> AutoencoderKL:
    """PictoWorld's autoencoder in float32, trainable."""
    folder = packaged_model_path("pictoworld")
    if folder is None:
        raise FileNotFoundError("The packaged model 'pictoworld' is missing; install saferedir with its weights.")
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(folder, subfolder="vae").float()
    return vae.requires_grad_(True)


@torch.no_grad()
def widened(vae: AutoencoderKL) -> AutoencoderKL:
    """The autoencoder with `CHANNELS` latent channels; the old ones keep their weights, the new ones start at random."""
    old, new = vae.config.latent_channels, CHANNELS
    out: AutoencoderKL = AutoencoderKL.from_config({**vae.config, "latent_channels": new}).requires_grad_(True)
    weights, start = vae.state_dict(), out.state_dict()
    rows = torch.cat([torch.arange(old), new + torch.arange(old)])  # of means and of log variances
    for name, value in weights.items():
        if start[name].shape == value.shape:
            start[name] = value
    for name in ("weight", "bias"):
        start[f"encoder.conv_out.{name}"][rows] = weights[f"encoder.conv_out.{name}"]
    start["encoder.conv_out.bias"][new + old :] = -6.0  # nearly no noise in the new channels
    start["quant_conv.weight"] = torch.eye(2 * new)[:, :, None, None]
    start["quant_conv.bias"] = torch.zeros(2 * new)
    start["quant_conv.weight"][rows[:, None], rows] = weights["quant_conv.weight"]
    start["quant_conv.bias"][rows] = weights["quant_conv.bias"]
    start["post_quant_conv.weight"] = torch.eye(new)[:, :, None, None]
    start["post_quant_conv.bias"] = torch.zeros(new)
    start["post_quant_conv.weight"][:old, :old] = weights["post_quant_conv.weight"]
    start["post_quant_conv.bias"][:old] = weights["post_quant_conv.bias"]
    start["decoder.conv_in.weight"][:, :old] = weights["decoder.conv_in.weight"]
    start["decoder.conv_in.bias"] = weights["decoder.conv_in.bias"]
    out.load_state_dict(start)
    return out


def random_contents(count: int, seed: int, characters: float = 0.0) -> tuple[list[Scene], list[Poster]]:
    """`count` independent images' contents: scenes, and one poster or near variant in `POSTER_ROWS`.

    `characters` is a share of scenes that have a character as their first item, whatever chance says of the others.
    """
    rng = random.Random(f"autoencoder/{seed}")
    posters = [poster for title in POSTERS for poster in (POSTERS[title], *NEAR_VARIANTS[title])]
    some = max(1, count // POSTER_ROWS)
    scenes = [random_scene(rng) for _ in range(count - some)]
    names = list(CHARACTERS)
    for i in range(round(characters * len(scenes))):
        items = (random_item(rng, character=rng.choice(names)), *scenes[i].items[1:])
        scenes[i] = random_scene(rng, items=items)
    return scenes, rng.sample(posters, some)


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
    """Train on L1 + MSE, covered pixels weighing more, plus a small KL term; `steps` are those with all channels.

    Finally every latent channel is given mean 0 and unit variance, see `standardise`.
    """
    settings: dict[str, Any] = {"warmup": 50, "seed": seed, "ema": 0.99, "weight_decay": 0.0, "save_every": 100}
    torch.manual_seed(seed)
    vae = first_world_autoencoder().to(device)
    first = LoopConfig(steps=min(steps, FIRST_STEPS), learning_rate=1e-3, bf16=bf16, **settings)
    loss_fn = _reconstruction_loss(vae, batch, device, seed)
    fit(vae, loss_fn, first, checkpoint.with_stem("first"), progress=progress, label="four channels", log=log)
    vae = widened(vae).to(device)
    config = LoopConfig(steps=steps, learning_rate=1.5e-3, bf16=bf16, **settings)
    loss_fn = _reconstruction_loss(vae, batch, device, seed + 1, MORE_CHARACTERS)
    fit(vae, loss_fn, config, checkpoint, progress=progress, label="autoencoder", log=log)
    images, _ = images_and_weights(*random_contents(256, seed=-1))
    return standardise(vae, images.to(device))


def _reconstruction_loss(
    vae: AutoencoderKL, batch: int, device: torch.device, seed: int, characters: float = 0.0
) -> LossFn:
    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        images, weight = (
            part.to(device) for part in images_and_weights(*random_contents(batch, seed * 7_000_003 + step, characters))
        )
        posterior = vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        error = vae.decode(posterior.mean + posterior.std * noise).sample.float() - images
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        loss: Tensor = (weight * (error.abs() + error.square())).mean() + KL_WEIGHT * kl
        return loss

    return loss_fn


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
