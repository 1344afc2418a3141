"""On every family guards see latents of the shape that `latent_shape` tells, and a weight of guidance that is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.newer_pipelines import EVERY
from tests.tiny_pipelines import run
from tests.tiny_variants import ALL_CASES
from torch import Tensor

import saferedir as sr
from saferedir.errors import UnsupportedPipelineError
from saferedir.guard import Guard, GuardConfig, Step
from saferedir.pipelines.latents import decode_latents, encode_pixels, latent_shape

FIRST = {case.family: name for name, case in reversed(EVERY.items())}


class Watcher(Guard[GuardConfig]):
    """Keeps the first step."""

    method = "watcher"

    def __init__(self) -> None:
        super().__init__(GuardConfig(concept="star"))
        self.steps: list[Step] = []

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        self.steps.append(step)
        return x0


def first_step(name: str) -> tuple[Any, Step]:
    case, watcher = ALL_CASES[name], Watcher()
    pipe = case.build()
    with sr.attach(pipe, watcher):
        run(case, pipe)
    return pipe, watcher.steps[0]


@pytest.mark.parametrize("name", FIRST.values())
def test_latents_have_the_shape_that_is_told(name: str) -> None:
    pipe, step = first_step(name)
    channels, frames, height, width = latent_shape(pipe, dict(ALL_CASES[name].settings))
    assert step.x_t.shape[1] == channels and step.x_t.shape[-2:] == (height, width)
    assert step.x_t.ndim == 4 or step.x_t.shape[2] == frames


@pytest.mark.parametrize("name", ["flux", "flux-fill", "flux-control", "flux-2"])
def test_distilled_guidance_is_no_weight(name: str) -> None:
    _, step = first_step(name)
    assert step.pred_uncond is None and step.guidance_scale == 1.0


def test_constants_that_an_autoencoder_keeps_in_buffers_count() -> None:
    pipe = EVERY["ltx-video"].build()
    pixels = torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mode = pipe.vae.encode(pixels[:, :, None]).latent_dist.mode()
    own = pipe._normalize_latents(mode, pipe.vae.latents_mean, pipe.vae.latents_std, pipe.vae.config.scaling_factor)
    torch.testing.assert_close(encode_pixels(pipe.vae, pixels), own.detach())


def test_normalised_patches_are_not_encoded_by_halves() -> None:
    pipe = EVERY["flux-2"].build()
    with pytest.raises(UnsupportedPipelineError, match="normalised patches"):
        encode_pixels(pipe.vae, torch.zeros(1, 3, 32, 32))
    with pytest.raises(UnsupportedPipelineError, match="normalised patches"):
        decode_latents(pipe, torch.zeros(1, 16, 4, 4))
