"""Images of known truth, for judges of PictoWorld 2: with a concept and without it, as the model's autoencoder generates them.

Diffusers when first needed.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from saferedir.pictoworld.world2.renderer import render_contents
from saferedir.pictoworld.world2.tasks import Content, Task, concept_contents, other_contents, other_scene
from saferedir.utils.packaged import packaged_model_path

_BATCH = 50


def labelled_contents(task: Task, n: int, seed: int = 0) -> tuple[Tensor, list[bool]]:
    """(2n, 3, 64, 64) in [0, 1], in steps of 1/255: n images that show the task's concept, then n that do not; and labels.

    Every other one of the latter is a near miss: a neighbour of the concept, a near variant of a poster.

    Raises:
        FileNotFoundError: the model that images go through is not packaged.
    """
    rng = random.Random(f"world-2/labelled/{task.name}/{seed}")
    negative: list[Content] = other_contents(task, n, seed)
    if not task.poster and task.neighbours:
        negative[1::2] = [other_scene(task, rng, values=rng.choice(task.neighbours)) for _ in negative[1::2]]
    images = render_contents([*concept_contents(task, n, seed), *negative])
    return _through_autoencoder(images), [True] * n + [False] * n


@torch.no_grad()
def _through_autoencoder(images: Tensor) -> Tensor:
    from diffusers import AutoencoderKL

    folder = packaged_model_path("pictoworld-flux")
    if folder is None:
        raise FileNotFoundError("The packaged model 'pictoworld-flux' is missing from this installation.")
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").eval()
    generated = [vae.decode(vae.encode(2 * part - 1).latent_dist.mode()).sample for part in images.split(_BATCH)]
    return ((torch.cat(generated) / 2 + 0.5).clamp(0, 1) * 255).round() / 255
