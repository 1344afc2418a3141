"""An image verifier: learns apart from the guard, travels in its folder, and has the last word under "verify" and "block"."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny_pipelines import PIPELINES

import saferedir as sr
from saferedir.guards.base import Guard
from saferedir.guards.image_verifier import ImageVerifier, ImageVerifierConfig
from saferedir.guards.negative_prompt import NegativePrompt, NegativePromptConfig
from saferedir.pipelines.fingerprint import backbone_fingerprint
from saferedir.training.image_verifier.train import (
    VerifierTrainConfig,
    attacked,
    fit_verifier,
    train_verifier,
)
from saferedir.training.saferedir.dataset import Pair
from saferedir.utils.shared_files import VERIFIER_CONFIG, VERIFIER_WEIGHTS

PAIRS = [Pair(f"a star number {i}", f"a ring number {i}") for i in range(40)] + [
    Pair(None, f"moon {i}") for i in range(40)
]
QUICK = VerifierTrainConfig(
    images=40,
    steps=(2, 1),
    guidance_scales=(2.0,),
    optimiser_steps=2,
    batch=4,
    size=16,
    width=8,
    call={"height": 32, "width": 32},
)


def verifier_that_says(answer: bool) -> ImageVerifier:
    torch.manual_seed(0)
    verifier = ImageVerifier(ImageVerifierConfig(concept="star", size=16, width=8, threshold=-1e9 if answer else 1e9))
    return verifier.half().float().eval().requires_grad_(False)  # what a folder keeps


def guard_with(verifier: ImageVerifier | None) -> NegativePrompt:
    guard = NegativePrompt(NegativePromptConfig(concept="star", phrases=("star",)))
    guard.image_verifier = verifier
    return guard


def squares(count: int, size: int = 32, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images in bytes with a white square at a random place, and without."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(40, 120, (count, 3, 1, 1), generator=generator).expand(-1, -1, size, size).clone()
    labels = (torch.arange(count) % 2).float()
    for row in range(1, count, 2):
        y, x = torch.randint(0, size - 10, (2,), generator=generator).tolist()
        images[row, :, y : y + 10, x : x + 10] = 250
    return images.to(torch.uint8), labels


def test_it_learns_what_is_plain_and_holds_against_a_small_step() -> None:
    images, labels = squares(400)
    config = VerifierTrainConfig(optimiser_steps=150, size=32, width=8)
    verifier = fit_verifier(images, labels, "square", config)
    assert verifier.config.measured["auroc"] > 0.98 and verifier.config.measured["recall"]["rate"] > 0.9
    fresh, truth = squares(100, seed=1)
    pictures = [Image.fromarray(np.asarray(image.permute(1, 2, 0))) for image in fresh]
    assert np.mean(np.array(verifier.sees(pictures)) == truth.bool().numpy()) > 0.95
    moved = attacked(verifier, fresh.float() / 255, truth, 0.02, torch.Generator().manual_seed(0))
    assert float((moved - fresh.float() / 255).square().mean(dim=(1, 2, 3)).sqrt().max()) <= 0.02 + 1e-6
    with torch.no_grad():
        held = (verifier(moved) >= verifier.config.threshold)[truth.bool()].float().mean()
    assert held > 0.6
    again = fit_verifier(images, labels, "square", config)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in verifier.state_dict().items())


def test_images_of_any_size_and_mode_and_what_is_not_finite() -> None:
    verifier = verifier_that_says(False)
    pictures = [
        Image.new("RGB", (8, 8)),
        Image.new("L", (100, 40)),
        Image.new("RGBA", (16, 64)),
        Image.new("P", (64, 64)),
    ]
    assert verifier.sees(pictures) == [False] * 4 and verifier.sees([]) == []
    torch.nn.init.constant_(verifier.head.bias, float("nan"))
    assert verifier.sees(pictures[:2]) == [True, True]


def test_it_travels_in_the_guard_s_folder(tmp_path: Path) -> None:
    guard = guard_with(verifier_that_says(True))
    folder = guard.save_pretrained(tmp_path / "guard")
    loaded = sr.Guard.from_pretrained(folder)
    assert loaded.image_verifier is not None and guard.image_verifier is not None
    assert loaded.image_verifier.config == guard.image_verifier.config
    for name, value in guard.image_verifier.state_dict().items():
        assert torch.equal(loaded.image_verifier.state_dict()[name], value)
    guard_with(None).save_pretrained(folder)  # another guard in the same place does not inherit it
    assert sr.Guard.from_pretrained(folder).image_verifier is None and not (folder / VERIFIER_CONFIG).exists()


@pytest.mark.parametrize("damage", ["no weights", "no config", "other sizes", "unknown field"])
def test_half_of_one_is_refused(damage: str, tmp_path: Path) -> None:
    folder = guard_with(verifier_that_says(True)).save_pretrained(tmp_path / "guard")
    record = json.loads((folder / VERIFIER_CONFIG).read_text())
    if damage == "no weights":
        (folder / VERIFIER_WEIGHTS).unlink()
    elif damage == "no config":
        (folder / VERIFIER_CONFIG).unlink()
    else:
        record |= {"width": 16} if damage == "other sizes" else {"colour": "blue"}
        (folder / VERIFIER_CONFIG).write_text(json.dumps(record))
    with pytest.raises(sr.GuardConfigError, match="verifier"):
        sr.Guard.from_pretrained(folder)


class Silent(Guard[NegativePromptConfig]):
    """A guard that never acts."""

    method = "silent"
    config_class = NegativePromptConfig


@pytest.mark.parametrize("policy", ["verify", "block"])
@pytest.mark.parametrize("answer", [True, False])
def test_it_has_the_last_word(policy: str, answer: bool) -> None:
    call: dict[str, Any] = {"num_inference_steps": 2, "height": 32, "width": 32}
    guard = Silent(NegativePromptConfig(concept="star", phrases=("star",)))
    guard.image_verifier = verifier_that_says(answer)
    with sr.protect(PIPELINES["sd"].build(), guard, on_unsafe=policy, retries=1) as safe:
        output = safe(["a star", "a ring"], **call)
    assert output.blocked == [answer, answer]
    with sr.protect(PIPELINES["sd"].build(), guard, on_unsafe="redirect") as safe:
        assert safe(["a star", "a ring"], **call).blocked == [False, False]


def test_it_can_be_left_out() -> None:
    with pytest.raises(sr.GuardConfigError, match="nothing to verify with"):
        sr.protect(
            PIPELINES["sd"].build(), guard_with(verifier_that_says(True)), on_unsafe="verify", image_verifiers=False
        )


def test_latents_leave_it_nothing_to_read() -> None:
    with sr.protect(PIPELINES["sd"].build(), guard_with(verifier_that_says(False)), on_unsafe="verify") as safe:
        with pytest.raises(sr.GuardError, match="nothing to read"):
            safe("a star", num_inference_steps=1, height=32, width=32, output_type="latent")


def test_the_trainer_puts_one_into_the_folder_and_goes_on_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, pipe = guard_with(None).save_pretrained(tmp_path / "guard"), PIPELINES["sd"].build()
    work = tmp_path / "guard.verifier.work"
    monkeypatch.setattr("saferedir.training.image_verifier.train.LEAST_AUROC", 0.0)
    monkeypatch.setattr("saferedir.training.image_verifier.train.LEAST_RECALL", 0.0)

    def killed(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("saferedir.training.image_verifier.train.fit_verifier", killed)
        with pytest.raises(KeyboardInterrupt):
            train_verifier(pipe, folder, PAIRS, config=QUICK)
    assert len(list(work.glob("images-*.safetensors"))) == 3
    with pytest.raises(sr.GuardConfigError, match="unfinished"):
        train_verifier(pipe, folder, PAIRS, config=replace(QUICK, seed=1))
    with monkeypatch.context() as patch:
        patch.setattr(type(pipe), "__call__", killed)  # nothing is generated twice
        verifier = train_verifier(pipe, folder, PAIRS, config=QUICK)
    assert not work.exists() and verifier.config.training["images"] == 40
    loaded = sr.Guard.from_pretrained(folder).image_verifier
    assert loaded is not None and loaded.config == verifier.config
    with pytest.raises(sr.GuardConfigError, match="image verifier already"):
        train_verifier(pipe, folder, PAIRS, config=QUICK)
    with pytest.raises(sr.GuardConfigError, match="prompts of one side"):
        train_verifier(pipe, folder, PAIRS[:5], config=QUICK, overwrite=True)


def test_one_that_cannot_tell_is_not_written_nor_one_for_another_backbone(tmp_path: Path) -> None:
    folder, pipe = guard_with(None).save_pretrained(tmp_path / "guard"), PIPELINES["sd"].build()
    with pytest.raises(sr.GuardConfigError, match="cannot tell the concept"):
        train_verifier(pipe, folder, PAIRS, config=QUICK)
    assert not (folder / VERIFIER_CONFIG).exists()
    other = NegativePrompt(
        NegativePromptConfig(
            concept="star", phrases=("star",), backbone=backbone_fingerprint(PIPELINES["sdxl"].build())
        )
    )
    with pytest.raises(sr.BackboneMismatchError):
        train_verifier(pipe, other.save_pretrained(tmp_path / "other"), PAIRS, config=QUICK)


def test_weights_and_threshold_of_two_trainings_are_refused(tmp_path: Path) -> None:
    folder = guard_with(verifier_that_says(True)).save_pretrained(tmp_path / "guard")
    other = verifier_that_says(True)
    torch.nn.init.constant_(other.head.bias, 3.0)
    (tmp_path / "other").mkdir()
    other.save(tmp_path / "other")
    (folder / VERIFIER_WEIGHTS).write_bytes((tmp_path / "other" / VERIFIER_WEIGHTS).read_bytes())
    with pytest.raises(sr.GuardConfigError, match="do not belong together"):
        sr.Guard.from_pretrained(folder)


def test_it_must_be_for_the_guard_s_concept(tmp_path: Path) -> None:
    folder = guard_with(None).save_pretrained(tmp_path / "guard")
    ImageVerifier(ImageVerifierConfig(concept="circle", size=16, width=8)).save(folder)
    with pytest.raises(sr.GuardConfigError, match="is for 'circle'"):
        sr.Guard.from_pretrained(folder)


@pytest.mark.parametrize("threshold", ["Infinity", "NaN", "true", "1e999"])
def test_a_threshold_that_never_fires_is_refused(threshold: str, tmp_path: Path) -> None:
    folder = guard_with(verifier_that_says(True)).save_pretrained(tmp_path / "guard")
    text = (folder / VERIFIER_CONFIG).read_text()
    (folder / VERIFIER_CONFIG).write_text(text.replace("-1000000000.0", threshold))
    with pytest.raises(sr.GuardConfigError, match="verifier"):
        sr.Guard.from_pretrained(folder)
