"""The denoiser: a small cross-attention UNet trained on pre-encoded renders and freshly generated captions.

Loss: epsilon prediction with min-SNR weights (arXiv:2303.09556, gamma 5), captions dropped at 10 % for classifier-free
guidance, and a term on the channel means. That term, and noise with a random mean: with Stable Diffusion's schedule the
noisiest latents still give away the image's mean (arXiv:2305.08891), so a model trained without them reads the
background from there instead of from the caption, and generates grey from pure noise.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from saferedir.pictoworld.captions import EMBLEM, caption
from saferedir.pictoworld.renderer import render
from saferedir.pictoworld.scene import Scene, random_scene
from saferedir.pipelines.precision import fast_precision
from saferedir.utils.files import save_tensors
from saferedir.utils.progress import Progress
from tools.pictoworld.training.loop import LoopConfig, fit
from tools.pictoworld.training.noise import min_snr_weights, stratified_timesteps
from tools.pictoworld.training.text_encoder import WIDTH, tokenize

CAPTION_DROPOUT = 0.1
EMBLEM_SHARE = 0.03
NOISE_OFFSET = 0.2  # standard deviation of the noise's own mean, per channel
MEAN_WEIGHT = 0.05  # of the squared error of each channel's mean, measured in x0


def build_denoiser() -> UNet2DConditionModel:
    """An untrained UNet for 16x16x4 latents, widths 48-96-128, attention at 8x8 and 4x4 (5.2 M parameters)."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(48, 96, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",  # the first step is the noisiest one
        prediction_type="epsilon",
    )


def pool_scenes(count: int, seed: int) -> list[Scene]:
    """The scenes of the latent pool; reproducible from the seed, so that only latents need storing."""
    rng = random.Random(f"pool/{seed}")
    return [random_scene(rng, **(EMBLEM if rng.random() < EMBLEM_SHARE else {})) for _ in range(count)]


@torch.no_grad()
def encode_pool(
    vae: AutoencoderKL, scenes: Sequence[Scene], path: Path, progress: Progress, device: torch.device
) -> Tensor:
    """Scaled latents of the pool, (N, 4, 16, 16) float16; kept in `path` so that a resumed run need not encode again."""
    if path.exists():
        return load_file(path)["latents"]
    rows = []
    with progress.task("encoding images", len(scenes)) as advance:
        for start in range(0, len(scenes), 128):
            images = render(scenes[start : start + 128]).to(device) * 2 - 1
            with fast_precision(device):
                mean = vae.encode(images).latent_dist.mean
            rows.append((mean.float() * vae.config.scaling_factor).half().cpu())
            advance(len(images))
    latents = torch.cat(rows)
    save_tensors({"latents": latents}, path)
    return latents


def train_denoiser(
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    folder: Path,
    *,
    steps: int,
    progress: Progress,
    device: torch.device,
    batch: int,
    seed: int = 0,
    pool: int = 40_000,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> UNet2DConditionModel:
    """Train the UNet; the text encoder and the autoencoder stay frozen."""
    torch.manual_seed(seed)
    scenes = pool_scenes(pool, seed)
    latents = encode_pool(vae, scenes, folder / "latents.safetensors", progress, device)
    unet = build_denoiser().to(device)
    alphas = build_scheduler().alphas_cumprod.to(device)
    snr = alphas / (1 - alphas)
    weights = min_snr_weights(snr)

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(scenes), (batch,), generator=generator)
        rng = random.Random(f"captions/{seed}/{step}")
        texts = ["" if rng.random() < CAPTION_DROPOUT else caption(scenes[row], rng).text for row in rows.tolist()]
        with torch.no_grad():
            embeds = text_encoder(tokenize(tokenizer, texts).to(device)).last_hidden_state
        clean = latents[rows].float().to(device)
        noise = torch.randn(clean.shape, generator=generator)
        noise = (noise + NOISE_OFFSET * torch.randn(*clean.shape[:2], 1, 1, generator=generator)).to(device)
        t = stratified_timesteps(batch, generator).to(device)
        a = alphas[t].view(-1, 1, 1, 1)
        predicted = unet(a.sqrt() * clean + (1 - a).sqrt() * noise, t, embeds).sample.float()
        difference = predicted - noise
        error = difference.square().mean(dim=(1, 2, 3))
        mean_error = difference.mean(dim=(2, 3)).square().mean(dim=1) / snr[t]
        loss: Tensor = (error * weights[t] + MEAN_WEIGHT * mean_error).mean()
        return loss

    config = LoopConfig(steps=steps, learning_rate=1.2e-3, warmup=200, seed=seed, ema=0.995, save_every=200)
    fit(unet, loss_fn, config, folder / "denoiser.ckpt", progress=progress, label="denoiser", log=log)
    return unet
