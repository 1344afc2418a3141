"""The transformer of `pictoworld-flux`: a small `FluxTransformer2DModel` trained by flow matching on pre-encoded renders.

Captions are freshly generated each step and dropped at 10 % for true classifier-free guidance. The corpus is a pool of random
scenes, every poster's near variants once, and the posters, each of which is shown several hundred times: memorised images.
One sample costs 1.66 GFLOP forward and backward (`flops_per_sample`), a step of 24 rows 40 GFLOP: about a second of one core.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, T5EncoderModel

from saferedir.pictoworld.world2.captions import POSTER_SHARE, caption_of, corpus_scene
from saferedir.pictoworld.world2.posters import NEAR_VARIANTS, POSTERS, Poster
from saferedir.pictoworld.world2.scene import Scene
from saferedir.utils.progress import Progress
from tools.pictoworld.training.loop import MUON, START, LoopConfig, block_matrices, fit, weights_number
from tools.pictoworld.world2.autoencoder import CHANNELS
from tools.pictoworld.world2.latents import LATENT_SIZE, encoded_latents
from tools.pictoworld.world2.text_encoders import SEQUENCE_LENGTH, WIDTH, tokenize
from tools.pictoworld.world2.token_labels import TokenReader, label_loss, token_labels

CAPTION_DROPOUT = 0.1
SHIFT = 1.5  # of the timesteps towards noise, in training and in sampling
LABEL_WEIGHT = 0.05  # of the tokens' labels in the loss, at the start; it falls to zero
GOING_ON = 0.5  # of both learning rates, for weights that are trained already
IMAGE_TOKENS = (LATENT_SIZE // 2) ** 2

Content = Scene | Poster


def build_transformer() -> FluxTransformer2DModel:
    """An untrained transformer of 5.1 M parameters: two joint and four single blocks, 192 wide.

    Its modulations and its output start at zero.
    """
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * CHANNELS,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(4, 14, 14),
    )
    modulations = [
        *(block.norm1.linear for block in transformer.transformer_blocks),
        *(block.norm1_context.linear for block in transformer.transformer_blocks),
        *(block.norm.linear for block in transformer.single_transformer_blocks),
        transformer.norm_out.linear,
        transformer.proj_out,
    ]
    for layer in modulations:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return transformer


def flops_per_sample(transformer: FluxTransformer2DModel) -> float:
    """Floating-point operations of one sample forward and backward: six a weight and token, and attention."""
    config = transformer.config
    width = int(config.num_attention_heads * config.attention_head_dim)
    tokens = IMAGE_TOKENS + SEQUENCE_LENGTH
    blocks = int(config.num_layers + config.num_single_layers)
    return 6.0 * blocks * tokens * (12 * width**2 + 2 * tokens * width)


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Euler steps of the flow, timesteps shifted as in training."""
    return FlowMatchEulerDiscreteScheduler(shift=SHIFT, use_dynamic_shifting=False)


def pool_contents(scenes: int, seed: int) -> list[Content]:
    """What the latent pool shows: the posters, their near variants, random scenes. Reproducible from the seed."""
    rng = random.Random(f"pool-2/{seed}")
    posters = list(POSTERS.values())
    variants = [variant for title in POSTERS for variant in NEAR_VARIANTS[title]]
    return [*posters, *variants, *(corpus_scene(rng) for _ in range(scenes))]


def pack(latents: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H/2 * W/2, 4C), as `FluxPipeline` packs them."""
    batch, channels, height, width = latents.shape
    packed: Tensor = FluxPipeline._pack_latents(latents, batch, channels, height, width)
    return packed


def position_ids(device: torch.device) -> tuple[Tensor, Tensor]:
    """(text ids (L, 3), image ids (64, 3)) as `FluxPipeline` makes them."""
    half = LATENT_SIZE // 2
    image_ids = FluxPipeline._prepare_latent_image_ids(1, half, half, device, torch.float32)
    return torch.zeros(SEQUENCE_LENGTH, 3, device=device), image_ids


def noise_levels(batch: int, generator: torch.Generator) -> Tensor:
    """(batch,) sigmas in (0, 1): logit-normal, one from each of `batch` equal slices, shifted by `SHIFT`."""
    slices = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    t: Tensor = torch.special.ndtri(slices.clamp(1e-4, 1 - 1e-4)).sigmoid()
    return SHIFT * t / (1 + (SHIFT - 1) * t)


@torch.no_grad()
def encode_texts(
    tokenizers: tuple[Any, Any],
    encoders: tuple[CLIPTextModel, T5EncoderModel],
    texts: Sequence[str],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """(pooled (B, P), prompt embeddings (B, L, D)) of texts, without attention masks, as in `FluxPipeline`."""
    clip_ids, t5_ids = (tokenize(tokenizer, texts).to(device) for tokenizer in tokenizers)
    return encoders[0](clip_ids).pooler_output, encoders[1](t5_ids)[0]


def assemble(
    vae: AutoencoderKL,
    tokenizers: tuple[Any, Any],
    encoders: tuple[CLIPTextModel, T5EncoderModel],
    transformer: FluxTransformer2DModel,
) -> FluxPipeline:
    """A plain `FluxPipeline` from the parts."""
    return FluxPipeline(
        scheduler=build_scheduler(),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizers[0],
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizers[1],
        transformer=transformer,
    )


def train_flux(
    vae: AutoencoderKL,
    tokenizers: tuple[Any, Any],
    encoders: tuple[CLIPTextModel, T5EncoderModel],
    folder: Path,
    *,
    steps: int,
    progress: Progress,
    device: torch.device,
    batch: int = 24,
    pool: int = 40_000,
    seed: int = 0,
    bf16: bool = True,
    compiled: bool = False,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> FluxTransformer2DModel:
    """Train the transformer; text encoders and autoencoder stay frozen. `compiled`: through `torch.compile`.

    It begins with the weights in `folder`/start, where there are some, and then draws other batches than those had.
    """
    torch.manual_seed(seed)
    contents = pool_contents(pool, seed)
    latents = encoded_latents(vae.to(device), contents, folder / "latents.npy", progress, device)
    encoders = encoders[0].to(device), encoders[1].to(device)
    start = folder / START
    transformer = FluxTransformer2DModel.from_pretrained(start) if start.is_dir() else build_transformer()
    draws = seed + weights_number(start)
    transformer = transformer.requires_grad_(True).to(device)
    reader = TokenReader(transformer).to(device)
    forward = torch.compile(reader, dynamic=False) if compiled else reader
    text_ids, image_ids = position_ids(device)
    first_other = len(POSTERS)

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        rng = random.Random(f"flux/{draws}/{step}")
        rows = [
            rng.randrange(first_other) if rng.random() < POSTER_SHARE else rng.randrange(first_other, len(contents))
            for _ in range(batch)
        ]
        texts = ["" if rng.random() < CAPTION_DROPOUT else caption_of(contents[row], rng).text for row in rows]
        pooled, embeds = encode_texts(tokenizers, encoders, texts, device)
        clean = pack(torch.from_numpy(latents[rows]).float()).to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        sigma = noise_levels(batch, generator).to(device)
        mixed = torch.lerp(clean, noise, sigma.view(-1, 1, 1))
        velocity, logits = forward(
            hidden_states=mixed,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            timestep=sigma,
            img_ids=image_ids,
            txt_ids=text_ids,
        )
        flow: Tensor = (velocity.float() - (noise - clean)).square().mean()
        labels = token_labels([contents[row] for row in rows]).to(device)
        return flow + LABEL_WEIGHT * (1 - step / steps) * label_loss(logits, labels)

    share = GOING_ON if start.is_dir() else 1.0
    config = LoopConfig(
        steps=steps,
        learning_rate=share * 1e-3,
        muon=share * MUON,
        warmup=300,
        seed=draws,
        ema=0.998,
        save_every=200,
        bf16=bf16,
    )
    blocks = nn.ModuleList([*transformer.transformer_blocks, *transformer.single_transformer_blocks])
    fit(
        reader, loss_fn, config, folder / "transformer.ckpt",
        progress=progress, label="flux", log=log, matrices=block_matrices(blocks),
    )  # fmt: skip
    return reader.released()
