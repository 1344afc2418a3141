"""Input images of a call: the pipeline gets what was checked, what cannot be checked is refused, `protect` asks first."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tests.contract.guards import shared_pipeline
from tests.tiny_pipelines import PIPELINES
from tests.tiny_variants import ALL_CASES

import saferedir as sr
from saferedir.errors import BlockedError, GuardConfigError, GuardError
from saferedir.guard import Guard, GuardConfig
from saferedir.pipelines.families import FAMILIES
from saferedir.policy.input_images import kind_of_argument, with_input_images

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
        [Image.fromarray(BYTES)],
    ],
    ids=["pil", "tensor", "batch", "signed", "array", "list"],
)
def test_every_kind_of_image_is_the_same_pixels(value: Any) -> None:
    _, (item,) = with_input_images({"prompt": "a star", "image": value, "num_images_per_prompt": 2, "strength": 0.5})
    assert item[:2] == ("image", 0) and np.abs(np.asarray(item.image).astype(int) - BYTES).max() <= 1


def test_the_call_goes_on_with_what_was_looked_at() -> None:
    hidden = Image.fromarray(np.dstack([BYTES, np.zeros(BYTES.shape[:2], np.uint8)]))  # colour under full transparency
    turned = Image.fromarray(BYTES)
    turned.getexif()[0x0112] = 6
    call, (first, second) = with_input_images({"image": [hidden, turned]})
    assert [image.mode for image in call["image"]] == ["RGB", "RGB"]
    assert np.asarray(first.image).min() == 255 and call["image"][0] is first.image
    assert second.image.size == (4, 6) and call["image"][1] is second.image


def test_the_sign_is_decided_for_the_whole_argument() -> None:
    _, images = with_input_images({"image": [PIXELS, PIXELS * 2 - 1]})
    assert np.asarray(images[0].image).min() >= 127  # as diffusers reads it: from the middle grey up
    assert np.asarray(images[1].image).min() == 0


def test_masks_numbers_and_negative_images_are_left_out_and_videos_are_many() -> None:
    call = {"mask_image": PIXELS, "image_guidance_scale": 1.5, "ip_adapter_image": None, "video": [PIXELS, PIXELS]}
    call["negative_ip_adapter_image"] = PIXELS
    assert [item[:2] for item in with_input_images(call)[1]] == [("video", 0), ("video", 1)]


HIDDEN = {
    "latents as an image": {"image": torch.zeros(1, 4, 8, 8)},
    "latents": {"latents": torch.zeros(1, 4, 8, 8)},
    "masked latents": {"masked_image_latents": torch.zeros(1, 4, 8, 8)},
    "embeddings": {"ip_adapter_image_embeds": [PIXELS]},
    "within others": {"joint_attention_kwargs": {"ip_adapter_image_embeds": [PIXELS]}},
    "an enlarged crop": {"padding_mask_crop": 8},
    "an address": {"image": "https://x"},
    "NaN": {"image": PIXELS * torch.nan},
    "too bright": {"image": PIXELS + 1},
    "bytes": {"image": BYTES},
}


@pytest.mark.parametrize("call", HIDDEN.values(), ids=HIDDEN)
def test_what_cannot_be_looked_at_is_refused(call: dict[str, Any]) -> None:
    with pytest.raises(GuardError, match="nothing is generated"):
        with_input_images(call)


def test_tested_latents_and_plain_settings_may_be_given() -> None:
    call = {"latents": torch.zeros(1, 4, 8, 8), "cross_attention_kwargs": {"scale": 0.5}}
    assert with_input_images(call, are_latents_tested=True) == (call, [])


def test_every_argument_of_every_guarded_pipeline_is_known() -> None:
    """A new argument that brings images fails here until somebody has said what it is."""
    names = {
        name
        for family in FAMILIES.values()
        for kind in family.pipelines
        for name in inspect.signature(getattr(diffusers, kind).__call__).parameters
    }
    kinds = {name: kind_of_argument(name) for name in names}
    assert {name for name, kind in kinds.items() if kind == "image"} <= {
        "image", "control_image", "image_reference", "ip_adapter_image", "video", "reference_image", "last_image",
    }  # fmt: skip
    assert {name for name, kind in kinds.items() if kind == "hidden"} <= {
        "latents", "masked_image_latents", "ip_adapter_image_embeds", "padding_mask_crop", "image_latents", "image_embeds",
    }  # fmt: skip
    words = ("image", "video", "mask", "frame", "picture", "pose", "reference", "latents", "style")
    assert {name for name, kind in kinds.items() if kind == "other" and any(word in name for word in words)} <= {
        "mask_image", "control_mask", "image_guidance_scale", "num_images_per_prompt", "num_videos_per_prompt", "num_frames",
        "negative_ip_adapter_image", "negative_ip_adapter_image_embeds", "prompt_attention_mask", "prompt_embeds_mask",
        "negative_prompt_attention_mask", "negative_prompt_embeds_mask", "max_area", "frame_rate",
        "attention_mask", "negative_attention_mask",  # of the prompt, Kandinsky 3
        "prompt_attention_mask_2", "negative_prompt_attention_mask_2",  # of its second sequence, HunyuanDiT
        "prompt_embeds_mask_2", "negative_prompt_embeds_mask_2",  # HunyuanImage
    }  # fmt: skip


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
        runs = safe._attached.runs
        with pytest.raises(BlockedError, match=r"1 of 1 input images .* image\[0\]"):
            safe(**{**call, "image": torch.zeros_like(call["image"])})
        assert safe._attached.runs == runs
        assert [(d.guard, d.image, d.action) for d in safe.decisions] == [("check_inputs", 0, "blocked")]
    with (
        sr.protect(pipe, guard, check_inputs=lambda images: [1 / 0]) as safe,
        pytest.raises(GuardError, match="the verifier failed"),
    ):
        safe(**call)


def images_of(call: Any) -> list[str]:
    return [name for name in call if kind_of_argument(name) == "image"]


#: tiny pipeline -> the call of one that is given an image
GIVEN_IMAGES = {name: case.settings for name, case in ALL_CASES.items() if images_of(case.settings)}
GIVEN_IMAGES["flux-2"] = ALL_CASES["flux-2-klein-image"].settings


def test_every_class_that_takes_an_image_is_in_the_next_test() -> None:
    """Beside those that take one as a prompt alone (IP-Adapter), and the last image of a video whose first one is given."""
    takes = {
        kind
        for family in FAMILIES.values()
        for kind in family.pipelines
        for name in inspect.signature(getattr(diffusers, kind).__call__).parameters
        if kind_of_argument(name) == "image" and name not in ("ip_adapter_image", "last_image")
    }
    tried = {base.__name__ for name in GIVEN_IMAGES for base in type(shared_pipeline(name)).__mro__}
    assert takes - tried == set() and len(takes) > 60


@pytest.mark.parametrize("name", GIVEN_IMAGES)
def test_input_images_of_every_pipeline_are_checked_before_it_runs_and_blocked_by_a_decision(name: str) -> None:
    asked: list[int] = []

    def is_unsafe(images: list[Image.Image]) -> list[bool]:
        asked.append(len(images))
        return [True] * len(images)

    given = images_of(GIVEN_IMAGES[name])
    with sr.protect(shared_pipeline(name), Guard(GuardConfig(concept="star")), check_inputs=is_unsafe) as safe:
        with pytest.raises(BlockedError, match=rf"{given[0]}\[0\]"):
            safe(prompt="a star", num_inference_steps=2, **GIVEN_IMAGES[name])
        assert safe._attached.runs == 0 and asked[0] >= len(given)
        assert {(d.guard, d.action) for d in safe.decisions} == {("check_inputs", "blocked")}
        assert len(safe.decisions) == asked[0] and all(given[0] in d.message for d in safe.decisions)
