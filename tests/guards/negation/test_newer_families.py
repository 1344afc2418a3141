"""A negation set of images fits the latents of every family whose latents are images, and is refused in a sentence elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.contract.guards import shared_pipeline
from tests.contract.plan import NEWER_FAMILIES
from tests.newer_pipelines import NEWER, PICTURE
from tests.tiny_pipelines import run

import saferedir as sr
from saferedir.errors import UnsupportedPipelineError
from saferedir.guards.negation.build import build_negation_set, image_sources
from saferedir.guards.safe_denoiser import SafeDenoiser
from saferedir.pipelines.latents import call_size, decode_latents, encode_images, vae_of

#: normalised patches; codes of a book
WITHOUT_SETS = ("flux-2", "kandinsky-3")


@pytest.mark.parametrize("family", NEWER_FAMILIES)
def test_a_set_of_images_is_of_the_latents_that_guards_are_given(family: str, tmp_path: Path) -> None:
    case = next(case for case in NEWER.values() if case.family == family)
    pipe = case.build()
    vars(pipe.vae if hasattr(pipe, "vae") else pipe.movq).pop(
        "encode", None
    )  # that of the tiny CogView4, for its control image
    height, width = call_size(pipe, case.settings)
    (tmp_path / "images").mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (width, height), colour).save(tmp_path / "images" / f"{number}.png")
    sources = {"references": image_sources(tmp_path / "images", height, width)}
    facts = {"height": height, "width": width}

    def build() -> None:
        build_negation_set(vae_of(pipe), sources, tmp_path / "set.safetensors", facts=facts, batch=2)

    if family in WITHOUT_SETS:
        with pytest.raises(UnsupportedPipelineError):
            build()
        return
    build()
    guard = SafeDenoiser.from_set(tmp_path / "set.safetensors", concept="star", outside_window="ignore")
    with sr.attach(pipe, guard) as attached:
        one = {"num_frames": 1} if "num_frames" in case.settings else {}
        assert torch.isfinite(run(case, pipe, "a star", steps=2, **one)).all()
        assert attached.runs == 1


def test_an_image_of_qwen_image_is_encoded_and_decoded_as_its_own_pipeline_does() -> None:
    pipe = shared_pipeline("qwen-image")
    latents = encode_images(pipe.vae, [np.array(PICTURE["image"])])
    assert latents.ndim == 4
    mean, std = (torch.tensor(pipe.vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    with torch.no_grad():
        wanted = pipe.vae.decode(latents[:, :, None] * std + mean, return_dict=False)[0][:, :, 0]
        torch.testing.assert_close(decode_latents(pipe, latents), (wanted / 2 + 0.5).clamp(0, 1))
