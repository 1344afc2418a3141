"""Latents of a pool of images, encoded once into a memory-mapped file; a run that was stopped goes on encoding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from saferedir.pictoworld.world2.posters import Poster
from saferedir.pictoworld.world2.renderer import render_contents
from saferedir.pictoworld.world2.scene import Scene
from saferedir.utils.progress import Progress

LATENT_SIZE = 16
_CHUNK = 64


@torch.no_grad()
def encoded_latents(
    vae: AutoencoderKL, contents: Sequence[Scene | Poster], path: Path, progress: Progress, device: torch.device
) -> np.ndarray:
    """Scaled latents (N, C, 16, 16) float16, memory-mapped from `path`."""
    shape = (len(contents), int(vae.config.latent_channels), LATENT_SIZE, LATENT_SIZE)
    counter = path.with_suffix(".count")
    if counter.exists():
        latents = np.lib.format.open_memmap(path, mode="r+")
        if latents.shape != shape:
            raise ValueError(
                f"{path} holds latents of shape {latents.shape}, expected {shape}; delete it to start over."
            )
        start = int(counter.read_text())
    else:
        latents, start = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape), 0
    shift, scale = float(vae.config.shift_factor or 0), float(vae.config.scaling_factor)
    with progress.task("encoding images", len(contents), start) as advance:
        for first in range(start, len(contents), _CHUNK):
            images = render_contents(contents[first : first + _CHUNK]).to(device) * 2 - 1
            mean = (vae.encode(images).latent_dist.mean - shift) * scale
            latents[first : first + len(images)] = mean.cpu().numpy()
            advance(len(images))
            if first // _CHUNK % 50 == 0:
                latents.flush()
                counter.write_text(str(first + len(images)))
    latents.flush()
    counter.write_text(str(len(contents)))
    return latents
