"""Images of known truth, for judges: scenes with a concept and without it, as the model's autoencoder generates them.

Diffusers when first needed. A judge meets images that came out of this decoder, never the renderer's own, so that is
what its errors are counted on.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from saferedir.pictoworld.renderer import render
from saferedir.pictoworld.scene import VALUES, Scene, random_scene
from saferedir.pictoworld.tasks import Task
from saferedir.utils.packaged import packaged_model_path

_BATCH = 50


def labelled_scenes(task: Task, n: int, seed: int = 0) -> tuple[Tensor, list[bool]]:
    """(2n, 3, 64, 64) in [0, 1], in steps of 1/255: n scenes that show the task's concept, then n that do not; and labels.

    Every other one of the latter is a near miss: the concept with one of its attributes changed.
    """
    rng = random.Random(f"labelled/{task.name}/{seed}")
    positive = [random_scene(rng, **task.forget) for _ in range(n)]
    negative: list[Scene] = []
    while len(negative) < n:
        fixed = dict(task.forget) if len(negative) % 2 else {}
        if fixed:
            changed = rng.choice(sorted(fixed))
            fixed[changed] = rng.choice(VALUES[changed])
        scene = random_scene(rng, **fixed)
        negative += [] if task.shows_concept(scene) else [scene]
    return _through_autoencoder(render([*positive, *negative])), [True] * n + [False] * n


@torch.no_grad()
def _through_autoencoder(images: Tensor) -> Tensor:
    from diffusers import AutoencoderKL

    folder = packaged_model_path("pictoworld")
    assert folder is not None  # it is part of the package
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").eval()
    generated = [vae.decode(vae.encode(2 * part - 1).latent_dist.mode()).sample for part in images.split(_BATCH)]
    return ((torch.cat(generated) / 2 + 0.5).clamp(0, 1) * 255).round() / 255
