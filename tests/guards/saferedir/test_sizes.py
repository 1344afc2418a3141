"""What a trainer reckons with at real sizes: latents of a call, images at once, memory held once, videos in pieces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny_pipelines import PIPELINES
from torch import Tensor

from saferedir.guards.saferedir.frames import LATENT_CLAMP, highest_over_frames
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.latents import PIXELS_AT_ONCE, default_size, encode_images, encode_pixels, latent_shape
from saferedir.training.saferedir.dataset import _gathered, images_at_once, roll_out


@pytest.mark.parametrize(
    "name", ["sd", "sdxl", "sd3", "flux", "pixart-sigma", "sana", "lumina2", "lumina", "aura-flow", "wan"]
)
def test_the_latents_of_a_call_are_foretold(name: str) -> None:
    case = PIPELINES[name]
    pipe = case.build()
    call = {key: value for key, value in case.settings.items() if key not in ("image", "mask_image")}
    found = roll_out(pipe, ["a"], steps=1, guidance_scale=1.0, seed=0, call=call).frames[0, 0]
    channels, frames, height, width = latent_shape(pipe, call)
    assert (channels, height, width) == (found.shape[0], *found.shape[-2:])
    assert frames == (found.shape[1] if found.ndim == 4 else 1)


def test_a_number_in_the_call_is_the_default_size() -> None:
    """Wan's configs name no size; AuraFlow's name another than its call draws."""
    assert default_size(PIPELINES["wan"].build()) == (480, 832)
    assert default_size(PIPELINES["aura-flow"].build()) == (1024, 1024)
    assert default_size(PIPELINES["sd"].build()) == (32, 32)
    assert latent_shape(PIPELINES["wan"].build()) == (16, 21, 60, 104)


@pytest.mark.parametrize(("side", "count"), [(64, 50), (512, 16), (1024, 4), (8192, 1)])
def test_fewer_large_images_are_generated_at_once(side: int, count: int) -> None:
    pipe = PIPELINES["sd"].build()
    pipe.vae_scale_factor = 8  # the tiny one shrinks by 4
    assert images_at_once(pipe, {"height": side, "width": side}) == count
    assert images_at_once(PIPELINES["wan"].build()) == 1


@pytest.mark.parametrize("lengths", [(3, 3, 3), (3, 5, 4), (5, 3, 5)])
def test_embeddings_gathered_are_those_joined(lengths: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [
        PromptEmbeds(
            torch.randn(rows, length, 2, generator=generator).bfloat16(),
            torch.randn(rows, 4, generator=generator).bfloat16(),
            torch.ones(rows, length, dtype=torch.bool),
        )
        for rows, length in zip((2, 2, 1), lengths, strict=True)
    ]
    for found, expected in zip(_gathered(iter(parts), 5), parts[0].cat(*parts[1:]), strict=True):
        assert found is not None and expected is not None and torch.equal(found, expected)


def test_the_worst_frame_of_videos_is_found_in_pieces() -> None:
    """64 videos of 21 frames are scored a frame at a time; their prompts repeated for every frame would fill 11 GB."""
    x0 = torch.randn(40, 3, 7, 2, 2, generator=torch.Generator().manual_seed(0)) * 4
    t = torch.arange(40.0)
    rows: list[int] = []

    def verdict(frames: Tensor, times: Tensor) -> Tensor:
        rows.append(len(frames))
        assert torch.equal(times.view(40, -1)[:, 0], t)
        return torch.stack([frames.sum(dim=(1, 2, 3)), frames[:, 0, 0, 0]], dim=1)

    found = highest_over_frames(verdict, x0, t)
    clamped = x0.clamp(-LATENT_CLAMP, LATENT_CLAMP)
    each = torch.stack([clamped.sum(dim=(1, 3, 4)), clamped[:, 0, :, 0, 0]])
    torch.testing.assert_close(found, each.amax(dim=(0, 2)))
    assert max(rows) <= 64 and sum(rows) == 40 * 7


def test_large_images_are_encoded_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    vae: Any = PIPELINES["sd"].build().vae
    images = [torch.randint(0, 256, (16, 24, 3), dtype=torch.uint8).numpy() for _ in range(5)]
    whole = encode_images(vae, images)
    sizes: list[int] = []

    def seen(vae: Any, pixels: Tensor) -> Tensor:
        sizes.append(len(pixels))
        return encode_pixels(vae, pixels)

    monkeypatch.setattr("saferedir.pipelines.latents.encode_pixels", seen)
    monkeypatch.setattr("saferedir.pipelines.latents.PIXELS_AT_ONCE", 2 * 16 * 24)
    torch.testing.assert_close(encode_images(vae, images), whole)
    assert sizes == [2, 2, 1] and PIXELS_AT_ONCE == 2 * 1024 * 1024
