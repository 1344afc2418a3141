"""A LoRA that lets the embedded model generate in one to eight steps without guidance: latent consistency distillation.

"LCM-LoRA" (arXiv:2311.05556) with the loss of "Latent Consistency Models" (arXiv:2310.04378, Eq. 10): the estimate of x0 at a
noisy latent must agree with the estimate one DDIM step of the guided teacher further down. Student and target share weights;
only the LoRA is trained. The scheduler to sample with is diffusers' `LCMScheduler`, whose boundary scalings are used here.

Deviations: the guidance scale is fixed to that of the published figures, 4, and so is no input of the network.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import LCMScheduler
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from saferedir.pictoworld.captions import caption
from saferedir.pictoworld.evaluation import GUIDANCE_SCALE
from saferedir.utils.progress import Progress
from tools.pictoworld.training.denoiser import encode_pool, pool_scenes
from tools.pictoworld.training.loop import LoopConfig, fit
from tools.pictoworld.training.text_encoder import tokenize

#: steps of the teacher's DDIM solver over the whole schedule
SOLVER_STEPS = 50
HUBER = 1e-3
RANK = 16
TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
    "conv1", "conv2", "conv_shortcut", "time_emb_proj",
)  # fmt: skip
#: added to the seed of the world's own pool, so that the images are others
_POOL_SEED = 17


def few_step_scheduler(config: Any) -> LCMScheduler:
    """The scheduler that the LoRA was made for."""
    scheduler: LCMScheduler = LCMScheduler.from_config(config)
    return scheduler


def solver_step(x_t: Tensor, eps: Tensor, a_t: Tensor, a_s: Tensor) -> Tensor:
    """One deterministic DDIM step (B, C, h, w) from cumulative alpha `a_t` to `a_s`, each (B, 1, 1, 1)."""
    x0 = (x_t - (1 - a_t).sqrt() * eps) / a_t.sqrt()
    return a_s.sqrt() * x0 + (1 - a_s).sqrt() * eps


def train_few_steps(
    pipe: Any,
    folder: Path,
    *,
    steps: int,
    progress: Progress,
    batch: int = 32,
    pool: int = 10_000,
    seed: int = 0,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Tensor]:
    """Distil `pipe`'s UNet into a LoRA, going on from a checkpoint in `folder`; its tensors, as diffusers has them."""
    device = pipe.unet.device
    scenes = pool_scenes(pool, seed + _POOL_SEED)
    latents = encode_pool(pipe.vae, scenes, folder / "latents.safetensors", progress, device)
    unet = pipe.unet.requires_grad_(False)
    torch.manual_seed(seed)
    unet.add_adapter(
        LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS), init_lora_weights="gaussian"), "few_steps"
    )
    scheduler = few_step_scheduler(pipe.scheduler.config)
    alphas = scheduler.alphas_cumprod.to(device)
    spacing = scheduler.config.num_train_timesteps // SOLVER_STEPS

    def embed(texts: list[str]) -> Tensor:
        states: Tensor = pipe.text_encoder(tokenize(pipe.tokenizer, texts).to(device)).last_hidden_state
        return states

    def estimate(x_t: Tensor, t: Tensor, embeds: Tensor) -> Tensor:
        """The consistency function f(x_t, t), (B, C, h, w)."""
        a = alphas[t].view(-1, 1, 1, 1)
        x0 = (x_t - (1 - a).sqrt() * unet(x_t, t, embeds).sample) / a.sqrt()
        c_skip, c_out = scheduler.get_scalings_for_boundary_condition_discrete(t)
        consistent: Tensor = c_skip.view(-1, 1, 1, 1) * x_t + c_out.view(-1, 1, 1, 1) * x0
        return consistent

    def teacher(x_t: Tensor, t: Tensor, embeds: Tensor) -> Tensor:
        """The guided prediction of the bare UNet, (B, C, h, w)."""
        unet.disable_adapters()
        uncond, cond = unet(torch.cat([x_t, x_t]), torch.cat([t, t]), embeds).sample.chunk(2)
        unet.enable_adapters()
        guided: Tensor = uncond + GUIDANCE_SCALE * (cond - uncond)
        return guided

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(scenes), (batch,), generator=generator)
        rng = random.Random(f"few-steps/{seed}/{step}")
        texts = [caption(scenes[row], rng).text for row in rows.tolist()]
        clean = latents[rows].float().to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        index = torch.randint(SOLVER_STEPS, (batch,), generator=generator).to(device)
        t = (index + 1) * spacing - 1
        s = (t - spacing).clamp(min=0)
        a_t, a_s = alphas[t].view(-1, 1, 1, 1), alphas[s].view(-1, 1, 1, 1)
        with torch.no_grad():
            embeds = embed(texts)
            x_t = a_t.sqrt() * clean + (1 - a_t).sqrt() * noise
            both = torch.cat([embed([""]).expand_as(embeds), embeds])
            target = estimate(solver_step(x_t, teacher(x_t, t, both), a_t, a_s), s, embeds)
        difference = estimate(x_t, t, embeds) - target
        loss: Tensor = ((difference.square() + HUBER**2).sqrt() - HUBER).mean()
        return loss

    config = LoopConfig(
        steps=steps, learning_rate=1e-3, warmup=50, weight_decay=0.0, seed=seed, ema=0.98, save_every=50, bf16=False
    )
    fit(unet, loss_fn, config, folder / "few_steps.ckpt", progress=progress, label="few steps", log=log)
    return {
        f"unet.{name}": value.half().contiguous()
        for name, value in get_peft_model_state_dict(unet, adapter_name="few_steps").items()
    }
