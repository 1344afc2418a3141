"""The class-conditional model `pictoworld-dit`: a small `DiTTransformer2DModel` on the latents of `pictoworld-flux`.

Its corpus has the sixteen classes in equal shares, each a mixture of sub-populations of known shares. Sample it without
guidance (`guidance_scale=1`): guidance makes frequent sub-populations more frequent.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from torch import Tensor, nn

from saferedir.pictoworld.world2.classes import CLASSES, class_scene
from saferedir.pictoworld.world2.scene import Scene
from saferedir.utils.progress import Progress
from tools.pictoworld.training.loop import MUON, START, LoopConfig, block_matrices, fit, weights_number
from tools.pictoworld.training.noise import stratified_timesteps, velocity_loss
from tools.pictoworld.world2.autoencoder import CHANNELS
from tools.pictoworld.world2.latents import LATENT_SIZE, encoded_latents

LABEL_DROPOUT = 0.1
NO_LABEL = 1000  # of `DiTPipeline`, whatever the number of classes


def build_transformer() -> DiTTransformer2DModel:
    """An untrained transformer of 2.4 M parameters, five blocks, 128 wide, whose modulations and output start at zero."""
    transformer = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=5,
        sample_size=LATENT_SIZE,
        patch_size=2,
        num_embeds_ada_norm=NO_LABEL,
    )
    modulations = [block.norm1.linear for block in transformer.transformer_blocks]
    for layer in (*modulations, transformer.proj_out_1, transformer.proj_out_2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return transformer


def build_scheduler() -> DDIMScheduler:
    """A cosine schedule, whose noisiest latents keep nothing of the clean ones, and velocity prediction.

    At that step noise prediction says nothing of the clean latents, and latents cannot be clipped as pixels can; a velocity
    says all of them there (arXiv:2202.00512), which the colours of whole images, and so the shares, depend on.
    """
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
    )


def pool_scenes(count: int, seed: int) -> list[Scene]:
    """Scenes of the latent pool, the classes in turn; reproducible from the seed."""
    rng = random.Random(f"classes/{seed}")
    return [class_scene(i % len(CLASSES), rng) for i in range(count)]


CLASS_NAMES = {entry.index: entry.name for entry in CLASSES}


def assemble(vae: AutoencoderKL, transformer: DiTTransformer2DModel) -> DiTPipeline:
    """A plain `DiTPipeline` from the parts, with the classes' names."""
    return DiTPipeline(transformer=transformer, vae=vae, scheduler=build_scheduler(), id2label=CLASS_NAMES)


def train_dit(
    vae: AutoencoderKL,
    folder: Path,
    *,
    steps: int,
    progress: Progress,
    device: torch.device,
    batch: int = 32,
    pool: int = 24_000,
    seed: int = 0,
    bf16: bool = True,
    compiled: bool = False,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> DiTTransformer2DModel:
    """Train the transformer on velocity prediction; the autoencoder stays frozen. Little noise counts less (arXiv:2303.09556).

    `compiled`: through `torch.compile`. It begins with the weights in `folder`/start, where there are some, and then draws other
    batches than those had.
    """
    torch.manual_seed(seed)
    scenes: Sequence[Scene] = pool_scenes(pool, seed)
    latents = encoded_latents(vae.to(device), scenes, folder / "latents.npy", progress, device)
    start = folder / START
    transformer = DiTTransformer2DModel.from_pretrained(start) if start.is_dir() else build_transformer()
    transformer = transformer.requires_grad_(True).to(device)
    draws = seed + weights_number(start)
    forward = torch.compile(transformer, dynamic=False) if compiled else transformer
    alphas = build_scheduler().alphas_cumprod.to(device)

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(scenes), (batch,), generator=generator)
        dropped = torch.rand(batch, generator=generator) < LABEL_DROPOUT
        labels = torch.where(dropped, NO_LABEL, rows % len(CLASSES)).to(device)
        clean = torch.from_numpy(latents[rows.numpy()]).float().to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        t = stratified_timesteps(batch, generator).to(device)
        return velocity_loss(lambda x, t: forward(x, timestep=t, class_labels=labels).sample, clean, noise, t, alphas)

    # the labels' own random dropout would depend on what ran before
    for block in transformer.transformer_blocks:
        block.norm1.emb.class_embedder.dropout_prob = 0.0
    config = LoopConfig(
        steps=steps, learning_rate=1e-3, muon=MUON, warmup=300, seed=draws, ema=0.998, save_every=200, bf16=bf16
    )
    fit(
        transformer, loss_fn, config, folder / "transformer.ckpt",
        progress=progress, label="dit", log=log, matrices=block_matrices(transformer.transformer_blocks),
    )  # fmt: skip
    return transformer
