"""What a redirector is trained on, in memory, and how batches are drawn from it. Imports torch and dataset.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saferedir.guards.saferedir.dataset import moved_tokens
from saferedir.guards.saferedir.guard import LATENT_CLAMP


@dataclass(frozen=True)
class TextData:
    """Embeddings of one side of the split: unsafe and aligned safe prompts (P, L, D), and benign ones (N, L, D)."""

    unsafe: Tensor
    safe: Tensor
    benign: Tensor


@dataclass(frozen=True)
class ImageData:
    """Frames (N, S, C, h, w) with one label and one prompt embedding an image, and the times (S,)."""

    frames: Tensor
    embeds: Tensor
    label: Tensor
    t: Tensor


def text_batch(data: TextData, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Half unsafe rows with their safe targets, half benign rows whose target is themselves."""
    i = torch.randint(len(data.unsafe), (count // 2,), generator=generator)
    j = torch.randint(len(data.benign), (count - count // 2,), generator=generator)
    e = torch.cat([data.unsafe[i], data.benign[j]])
    e_safe = torch.cat([data.safe[i], data.benign[j]])
    return {
        "e": e,
        "e_safe": e_safe,
        "mask_target": moved_tokens(e, e_safe),
        "label": torch.cat([torch.ones(len(i)), torch.zeros(len(j))]),
    }


def image_batch(data: ImageData, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random frames of random steps, shifted by at most one latent cell and slightly disturbed."""
    rows = torch.randint(len(data.frames), (count,), generator=generator)
    steps = torch.randint(len(data.t), (count,), generator=generator)
    frames = data.frames[rows, steps].float().clamp(-LATENT_CLAMP, LATENT_CLAMP)
    shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
    frames = torch.roll(frames, shifts=tuple(shift), dims=(-2, -1))
    frames = frames + 0.05 * torch.randn(frames.shape, generator=generator)
    return {"frames": frames, "t": data.t[steps], "embeds": data.embeds[rows], "label": data.label[rows]}
