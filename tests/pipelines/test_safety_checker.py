"""diffusers' own safety checker: it blackens no image that is made for us, and what it blackens for a user is blocked."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import saferedir as sr
from saferedir.attach import attach
from saferedir.cli import generate as commands
from saferedir.guard import Guard, GuardConfig
from saferedir.guards.negation.build import prompt_sources
from saferedir.pictoworld.evaluation import generate
from saferedir.pipelines.safety_checker import flagged_images, remove_safety_checker, without_safety_checker
from saferedir.target import Target
from saferedir.training.saferedir.dataset import roll_out


class Features(dict[str, torch.Tensor]):
    def __init__(self, count: int) -> None:
        super().__init__(pixel_values=torch.zeros(count, 1))
        self.pixel_values = self["pixel_values"]

    def to(self, device: Any) -> Features:
        return self


class Checker:
    """Flags the images whose numbers are given, and blackens them as diffusers' own does."""

    def __init__(self, *flagged: int, blackens: bool = True) -> None:
        self.flagged, self.blackens, self.calls = flagged, blackens, 0

    def __call__(self, images: Any, clip_input: torch.Tensor) -> tuple[Any, list[bool]]:
        self.calls += 1
        flags = [row in self.flagged for row in range(len(clip_input))]
        for row, flag in enumerate(flags):
            if flag and self.blackens:
                images[row] = 0
        return images, flags


class Quiet(Guard[GuardConfig]):
    """A guard that never acts."""

    method = "quiet"
    config_class = GuardConfig


def with_checker(pipe: Any, checker: Checker) -> Any:
    pipe.safety_checker = checker
    pipe.feature_extractor = lambda images, return_tensors: Features(len(images))
    pipe.set_progress_bar_config(disable=True)
    return pipe


CALL = {"num_inference_steps": 2, "guidance_scale": 4.0}


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def test_inside_there_is_no_checker_and_afterwards_all_of_it(pipe: Any, tmp_path: Path) -> None:
    pipe = with_checker(pipe, Checker(0))
    pipe.register_to_config(safety_checker=("stable_diffusion", "StableDiffusionSafetyChecker"))
    before, config = pipe.safety_checker, dict(pipe.config)
    with pytest.raises(RuntimeError), without_safety_checker(pipe):
        assert pipe.safety_checker is None
        raise RuntimeError
    assert pipe.safety_checker is before and dict(pipe.config) == config  # so that it is saved with the pipeline
    remove_safety_checker(pipe)
    assert pipe.safety_checker is None and not pipe.config["requires_safety_checker"]
    with without_safety_checker(SimpleNamespace()):
        pass


def test_flags_of_every_kind_of_output() -> None:
    assert flagged_images({"images": [1, 2], "nsfw_content_detected": [False, True]}, 2) == [False, True]
    assert flagged_images({"images": [1, 2], "nsfw_content_detected": None}, 2) is None
    assert flagged_images({"images": [1], "nsfw_detected": [np.bool_(True)], "watermark_detected": [False]}, 1) == [
        True
    ]
    assert flagged_images(([1, 2], [False, True]), 2) == [False, True]
    assert flagged_images(([1, 2], None), 2) is None and flagged_images(([1, 2],), 2) is None
    assert flagged_images(([1], [torch.ones(1)]), 1) is None and flagged_images(object(), 1) is None
    assert flagged_images({"nsfw_content_detected": [True]}, 3) == [True] * 3  # in doubt, all


def test_nothing_that_is_made_for_us_goes_through_the_checker(pipe: Any) -> None:
    checker = Checker(*range(8))
    pipe = with_checker(pipe, checker)
    sources = prompt_sources(pipe, ["a star", "a moon"], 32, 32, seed=0, settings={"num_inference_steps": 2})
    assert all(source.load().any() for source in sources)
    roll_out(pipe, ["a star", "a moon"], steps=2, guidance_scale=4.0, seed=0)
    assert generate(pipe, ["a star", "a moon"], steps=2).images.flatten(1).any(dim=1).all()
    with Target(pipe, (), CALL) as target, torch.no_grad():
        assert target.generate(prompt="a star").flatten(1).any()
    assert checker.calls == 0 and pipe.safety_checker is checker


@pytest.mark.parametrize("blackens", [True, False])
@pytest.mark.parametrize("return_dict", [True, False])
@pytest.mark.parametrize("policy", ["redirect", "verify", "block"])
def test_what_the_checker_flags_is_blocked_and_said(pipe: Any, policy: str, return_dict: bool, blackens: bool) -> None:
    call = {**CALL, "output_type": "np", "return_dict": return_dict}
    prompts = ["a star", "a moon", "a tree"]
    plain = pipe(prompts, generator=generators(3), **CALL, output_type="np").images
    pipe = with_checker(pipe, Checker(1, blackens=blackens))
    verify = None if policy == "redirect" else lambda images: [False] * len(images)
    guards = [Quiet(GuardConfig(concept="star")), Quiet(GuardConfig(concept="moon"))]
    with sr.protect(pipe, guards, on_unsafe=policy, verify=verify) as guarded:
        output = guarded(prompts, generator=generators(3), **call)
    images = output.images if return_dict else output[0]
    assert output.blocked == [False, True, False] and not images[1].any()
    assert (images[[0, 2]] == plain[[0, 2]]).all()
    assert [d.action for d in output.decisions] == ["none", "blocked", "none"] * 2
    assert [("own safety checker" in d.message) for d in output.decisions] == [False, True, False] * 2


def test_without_a_flag_all_is_as_before(pipe: Any) -> None:
    plain = pipe(["a star"], generator=generators(1), **CALL, output_type="np").images
    pipe = with_checker(pipe, Checker())
    with sr.protect(pipe, Quiet(GuardConfig(concept="star"))) as guarded:
        output = guarded(["a star"], generator=generators(1), **CALL, output_type="np")
    assert output.blocked == [False] and (output.images == plain).all() and output.nsfw_content_detected == [False]
    assert output.decisions[0].message == ""


def test_attach_leaves_the_checker_to_the_pipeline(pipe: Any) -> None:
    with attach(with_checker(pipe, Checker(0)), Quiet(GuardConfig(concept="star"))):
        output = pipe(["a star", "a moon"], **CALL, output_type="np")
    assert output.nsfw_content_detected == [True, False] and not output.images[0].any()


@pytest.mark.parametrize("guards", [[], ["quiet"]])
def test_generate_says_which_images_the_checker_blanked(
    pipe: Any, guards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "load_model", lambda *given, **named: with_checker(pipe, Checker(1)))
    monkeypatch.setattr(commands, "load_guards", lambda names: [Quiet(GuardConfig(concept="star")) for _ in names])
    commands.generate(prompts=["a star", "a moon"], out=tmp_path / "out", guard=guards, steps=2)
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())["images"]
    assert [row["blocked"] for row in rows] == [False, True]
    assert [row["nsfw_content_detected"] for row in rows] == [False, True]
    assert [d["action"] for row in rows for d in row["decisions"]] == ["none", "blocked"] * len(guards)
    said = " ".join(capsys.readouterr().err.split())
    assert "Blanked by diffusers' own safety checker (nsfw_content_detected): 002.png." in said
