"""Input images of a call: every kind gives the same pixels, what cannot be looked at is refused, `protect` asks first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny_pipelines import PIPELINES

import saferedir as sr
from saferedir.errors import BlockedError, GuardConfigError, GuardError
from saferedir.guard import Guard, GuardConfig
from saferedir.policy.input_images import input_images

PIXELS = torch.linspace(0, 1, 3 * 4 * 6).view(3, 4, 6)
BYTES = (PIXELS.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


@pytest.mark.parametrize(
    "value",
    [
        Image.fromarray(BYTES),
        PIXELS,
        PIXELS[None],
        PIXELS * 2 - 1,
        PIXELS.permute(1, 2, 0).numpy(),
        BYTES,
        [Image.fromarray(BYTES)],
    ],
    ids=["pil", "tensor", "batch", "signed", "array", "bytes", "list"],
)
def test_every_kind_of_image_is_the_same_pixels(value: Any) -> None:
    ((name, image),) = input_images({"prompt": "a star", "image": value, "num_images_per_prompt": 2, "strength": 0.5})
    assert name == "image" and np.abs(np.asarray(image).astype(int) - BYTES).max() <= 1


def test_masks_and_numbers_are_no_images_and_videos_are_many() -> None:
    call = {"mask_image": PIXELS, "image_guidance_scale": 1.5, "ip_adapter_image": None, "video": [PIXELS, PIXELS]}
    assert [name for name, _ in input_images(call)] == ["video", "video"]


@pytest.mark.parametrize(
    "call",
    [
        {"image": torch.zeros(1, 4, 8, 8)},
        {"ip_adapter_image_embeds": [PIXELS]},
        {"image": "https://x"},
        {"image": PIXELS * torch.nan},
    ],
    ids=["latents", "embeddings", "address", "NaN"],
)
def test_what_cannot_be_looked_at_is_refused(call: dict[str, Any]) -> None:
    with pytest.raises(GuardError, match="nothing is generated"):
        input_images(call)


def test_protect_looks_before_it_generates() -> None:
    case = PIPELINES["sd-img2img"]
    pipe = case.build()
    guard, seen = Guard(GuardConfig(concept="star")), []

    def is_dark(images: list[Image.Image]) -> list[bool]:
        seen.append(len(images))
        return [bool(np.asarray(image).mean() < 50) for image in images]

    call = {**case.settings, **case.guidance, "prompt": "a star", "num_inference_steps": 3}
    with pytest.raises(GuardConfigError, match="nothing to look with"):
        sr.protect(pipe, guard, check_inputs=True)
    with sr.protect(pipe, guard, check_inputs=is_dark) as safe:
        assert safe(**call).blocked == [False] and seen == [1]
        attached_runs = safe._attached.runs
        with pytest.raises(BlockedError, match="1 of 1 input images"):
            safe(**{**call, "image": torch.zeros_like(call["image"])})
        assert safe._attached.runs == attached_runs and [d.action for d in safe.decisions] == ["blocked"]
        with pytest.raises(GuardError, match="the verifier failed"):
            safe._input_verifiers = (lambda images: 1 / 0,)
            safe(**call)
