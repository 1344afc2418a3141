"""Trains the judge of PictoWorld 2 on renders, their autoencoder round trips, and on spoilt images that it must call broken."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, cross_entropy

from saferedir.pictoworld.world2.judge import HEADS, Judge, head_values
from saferedir.pictoworld.world2.posters import NEAR_VARIANTS, POSTERS, Poster
from saferedir.pictoworld.world2.renderer import render_contents
from saferedir.pictoworld.world2.scene import Scene, random_scene
from saferedir.utils.progress import Progress
from tools.pictoworld.training.judge import round_trip, spoil
from tools.pictoworld.training.loop import LoopConfig, fit

POSTER_SHARE = 0.06
ROUND_TRIPS = 4  # one row of so many went through the autoencoder
BROKEN = 4  # one row of so many is spoilt
_UNKNOWN = -100  # no right answer: cross-entropy leaves it out


def random_contents(count: int, seed: int) -> list[Scene | Poster]:
    """`count` independent scenes, some posters and near variants among them."""
    rng = random.Random(f"judge-2/{seed}")
    posters = [poster for title in POSTERS for poster in (POSTERS[title], *NEAR_VARIANTS[title])]
    return [rng.choice(posters) if rng.random() < POSTER_SHARE else random_scene(rng) for _ in range(count)]


def head_labels(contents: Sequence[Scene | Poster]) -> dict[str, Tensor]:
    """Class indices (B,) per head, `_UNKNOWN` where a head has no right answer."""
    values = [
        {"layout": "poster", "background": content.background} if isinstance(content, Poster) else head_values(content)
        for content in contents
    ]
    return {
        name: torch.tensor([classes.index(v[name]) if name in v else _UNKNOWN for v in values])
        for name, classes in HEADS.items()
    }


def judge_loss(judge: Judge, images: Tensor, contents: Sequence[Scene | Poster], broken: Tensor) -> Tensor:
    """Cross-entropy of every head on whole images, and of the broken flag on all."""
    logits, broken_logit = judge(images)
    loss = binary_cross_entropy_with_logits(broken_logit.float(), broken.float())
    for name, labels in head_labels(contents).items():
        labels = torch.where(broken, _UNKNOWN, labels.to(images.device))
        count = (labels != _UNKNOWN).sum().clamp(min=1)
        summed = cross_entropy(logits[name].float(), labels, reduction="sum", label_smoothing=0.02)
        loss = loss + summed / count
    return loss


def disturbed(vae: AutoencoderKL, images: Tensor, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A batch as the judge meets it, and which rows are broken: round trips, spoilt images, light blur and noise."""
    rows = torch.arange(len(images), device=images.device)
    broken, through = rows % BROKEN == 0, rows % ROUND_TRIPS == 1
    images = images.clone()
    level = 0.3 * float(torch.rand((), generator=generator))
    images[through] = round_trip(vae, images[through], generator, noise=level)
    images[broken] = spoil(images[broken], generator)
    if step % 3 == 0:
        images = (images + 0.03 * torch.randn(images.shape, generator=generator).to(images)).clamp(0, 1)
    if step % 5 == 0:
        images = 0.6 * images + 0.4 * avg_pool2d(images, 3, 1, 1)
    return images, broken


def train_judge(
    vae: AutoencoderKL,
    checkpoint: Path,
    *,
    steps: int,
    progress: Progress,
    device: torch.device,
    batch: int = 64,
    seed: int = 0,
    bf16: bool = True,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> Judge:
    """Train the judge."""
    torch.manual_seed(seed)
    judge = Judge().to(device)

    def loss_fn(step: int, generator: torch.Generator) -> Tensor:
        contents = random_contents(batch, seed * 5_000_011 + step)
        with torch.no_grad():
            images, broken = disturbed(vae, render_contents(contents).to(device), step, generator)
        return judge_loss(judge, images, contents, broken)

    config = LoopConfig(steps=steps, learning_rate=1.5e-3, warmup=100, seed=seed, ema=0.995, save_every=200, bf16=bf16)
    fit(judge, loss_fn, config, checkpoint, progress=progress, label="judge", log=log)
    return judge


@torch.no_grad()
def judge_accuracy(judge: Judge, vae: AutoencoderKL | None, count: int, seed: int = 77) -> dict[str, float]:
    """Head -> accuracy on fresh renders, or on their round trips through an autoencoder; and "whole", called unbroken."""
    contents = random_contents(count, seed)
    labels, right, whole = head_labels(contents), dict.fromkeys(HEADS, 0), 0
    for start in range(0, count, 64):
        images = render_contents(contents[start : start + 64])
        if vae is not None:
            images = round_trip(vae, images, torch.Generator().manual_seed(start))
        logits, broken = judge(images)
        whole += int((broken < 0).sum())
        for name, values in logits.items():
            right[name] += int((values.argmax(1) == labels[name][start : start + 64]).sum())
    known = {name: int((values != _UNKNOWN).sum()) for name, values in labels.items()}
    return {"whole": whole / count, **{name: right[name] / max(1, known[name]) for name in HEADS}}
