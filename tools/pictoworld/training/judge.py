"""Trains the judge on renders, their autoencoder round trips, and on spoilt images that it must call broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, cross_entropy

from saferedir.pictoworld.judge import Judge
from saferedir.pictoworld.renderer import BACKGROUND_RGB, render
from saferedir.pictoworld.scene import JUDGED, Scene
from saferedir.utils.progress import Progress
from tools.pictoworld.training.autoencoder import random_scenes
from tools.pictoworld.training.loop import LoopConfig, fit


def round_trip(vae: AutoencoderKL, images: Tensor, generator: torch.Generator, noise: float = 0.0) -> Tensor:
    """Encode and decode images in [0, 1]; `noise` disturbs the latents by that share of their spread."""
    latents = vae.encode(images * 2 - 1).latent_dist.mean
    spread = noise / float(vae.config.scaling_factor)
    latents = latents + spread * torch.randn(latents.shape, generator=generator).to(latents)
    decoded: Tensor = vae.decode(latents).sample
    return (decoded.float() / 2 + 0.5).clamp(0, 1)


def spoil(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images without a clear scene: even blends, heavy blur, shuffled tiles, heavy noise, empty grounds, wrong washes."""
    kind = torch.randint(6, (len(images),), generator=generator).to(images.device)
    out = images.clone()
    other = images.roll(1, dims=0)
    share = (0.4 + 0.2 * torch.rand(len(images), 1, 1, 1, generator=generator)).to(images)
    blurred = nn.functional.interpolate(avg_pool2d(images, 21, 7, 7), size=(64, 64), mode="bilinear")
    tiles = images.unfold(2, 16, 16).unfold(3, 16, 16).reshape(len(images), 3, 16, 16, 16)
    tiles = tiles[:, :, torch.randperm(16, generator=generator)].reshape(-1, 3, 4, 4, 16, 16)
    shuffled = tiles.permute(0, 1, 2, 4, 3, 5).reshape(images.shape)
    noisy = images * 0.4 + 0.6 * torch.rand(images.shape, generator=generator).to(images)
    grounds = torch.tensor(list(BACKGROUND_RGB.values())).to(images)
    empty = grounds[torch.randint(6, (len(images),), generator=generator)][:, :, None, None].expand_as(images)
    coarse = torch.rand(len(images), 3, 8, 8, generator=generator).to(images)
    wash = nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear")
    for index, spoilt in enumerate((share * images + (1 - share) * other, blurred, shuffled, noisy, empty, wash)):
        out = torch.where((kind == index).view(-1, 1, 1, 1), spoilt, out)
    return out


def judge_loss(judge: Judge, images: Tensor, scenes: list[Scene], broken: Tensor) -> Tensor:
    """Cross-entropy of every attribute on whole images, and of the broken flag on all."""
    logits, broken_logit = judge(images)
    loss = binary_cross_entropy_with_logits(broken_logit.float(), broken.float())
    whole = ~broken
    for name in JUDGED:
        truth = torch.tensor([scene.index(name) for scene in scenes]).to(images.device)
        loss = loss + cross_entropy(logits[name].float()[whole], truth[whole], label_smoothing=0.02)
    return loss


def train_judge(
    vae: AutoencoderKL,
    checkpoint: Path,
    *,
    steps: int,
    progress: Progress,
    device: torch.device,
    batch: int,
    seed: int = 0,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> Judge:
    """Train the judge; a third of each batch is broken, a third of the rest went through the autoencoder."""
    torch.manual_seed(seed)
    judge = Judge().to(device)

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        scenes = random_scenes(batch, seed * 5_000_011 + step)
        images = render(scenes).to(device)
        broken = torch.arange(batch, device=device) % 3 == 0
        through = torch.arange(batch, device=device) % 3 == 1
        with torch.no_grad():
            level = 0.35 * float(torch.rand((), generator=generator))
            images[through] = round_trip(vae, images[through], generator, noise=level)
            images[broken] = spoil(images[broken], generator)
            if step % 3 == 0:  # light blur and noise that leave the scene clear
                images = (images + 0.04 * torch.randn(images.shape, generator=generator).to(device)).clamp(0, 1)
            if step % 5 == 0:
                images = 0.5 * images + 0.5 * avg_pool2d(images, 3, 1, 1)
        return judge_loss(judge, images, scenes, broken)

    config = LoopConfig(steps=steps, learning_rate=1e-3, warmup=100, seed=seed, ema=0.995, save_every=500)
    fit(judge, loss_fn, config, checkpoint, progress=progress, label="judge", log=log)
    return judge
