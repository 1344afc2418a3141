"""Training ESD: what moves and what does not, its own images, resuming, learning, and the files it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from tests.tiny_pipelines import PIPELINES, run

import saferedir as sr
from saferedir.training.esd.loop import Loop
from saferedir.training.esd.train import train_esd
from saferedir.training.esd.train_config import TrainConfig, adapted_layers
from saferedir.training.saferedir.dataset import Pair

PAIRS = [Pair("a star", "a ring"), Pair("big star here", "big ring here"), Pair(None, "the moon")]
QUICK: dict[str, Any] = {
    "steps": 3, "batch": 2, "moments": 2, "sampling_steps": 4, "rank": 2, "learning_rate": 1e-2, "checkpoint_every": 2,
    "size": (32, 48),
}  # fmt: skip


def denoiser_of(pipe: Any) -> Any:
    return getattr(pipe, "unet", None) or pipe.transformer


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sd", {}),
        ("sd", {"variant": "u"}),
        ("sd", {"variant": "full", "reference": "safe"}),
        ("sd3", {}),
        ("sd3", {"variant": "u", "reference": "safe"}),
        ("flux", {}),
        ("flux", {"targets": ("text_embedder.linear_1", "context_embedder")}),
    ],
)
def test_only_the_lora_moves_and_the_pipeline_comes_back(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    case = PIPELINES[name]
    pipe = case.build()
    denoiser = denoiser_of(pipe)
    before, plain = {k: v.clone() for k, v in denoiser.state_dict().items()}, run(case, pipe)
    state = torch.get_rng_state()
    log: list[dict[str, Any]] = []
    config = TrainConfig(**{**QUICK, **changes})
    guard = train_esd(pipe, PAIRS, tmp_path / "guard", concept="star", config=config, log=log.append)
    after = denoiser.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)
    assert all(value.requires_grad for value in denoiser.parameters())
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(run(case, pipe), plain)
    assert [line["step"] for line in log] == [1, 2, 3] and log[0]["relative"] == pytest.approx(1)
    assert [json.loads(line) for line in (tmp_path / "guard" / "training.jsonl").read_text().splitlines()] == log
    loaded = sr.Guard.from_pretrained(tmp_path / "guard")
    assert all(torch.equal(loaded.tensors()[k], v) for k, v in guard.tensors().items())
    assert {name.rpartition(".lora_")[0] for name in guard.lora} == set(
        adapted_layers(denoiser, config.variant, config.targets)
    )
    assert not config.targets or loaded.config.targets == config.targets  # as they were asked for
    with sr.attach(pipe, loaded):
        assert not torch.equal(run(case, pipe), plain)
    assert torch.equal(run(case, pipe), plain) and not (tmp_path / "guard.work").exists()


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_the_variants_share_the_layers_out(name: str) -> None:
    denoiser = denoiser_of(PIPELINES[name].build())
    x, u, full = (set(adapted_layers(denoiser, variant)) for variant in ("x", "u", "full"))
    assert x and u and not x & u and x | u == full
    assert all(".attn2." in layer or "add_" in layer for layer in x)
    with pytest.raises(sr.GuardConfigError, match="no layers for nowhere"):
        adapted_layers(denoiser, "x", ("nowhere",))


def test_nothing_is_asked_where_the_concept_is_its_reference(tmp_path: Path) -> None:
    """Prompts equal to their counterparts: at any eta the frozen prediction is the target, the LoRA stays at nothing, and no
    guard is made of it.
    """
    pipe, losses = PIPELINES["sd"].build(), []
    config = TrainConfig(**{**QUICK, "reference": "safe", "eta": 3.0})
    with pytest.raises(sr.GuardError, match="changes nothing"):
        train_esd(
            pipe, [Pair("a ring", "a ring")], tmp_path / "guard", concept="star", config=config, log=losses.append
        )
    assert losses and all(line["loss"] == 0 for line in losses)
    assert not (tmp_path / "guard" / "guard_config.json").exists()


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
def test_its_own_images_are_the_pipelines(scheduler: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained student's latents at a sampling step are those of the pipeline itself there."""
    case = PIPELINES["sd"]
    pipe = case.build()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    given: dict[int, Any] = {}

    def step(self: Loop, number: int) -> dict[str, Any]:
        rows = torch.tensor([0])
        given.update(self.generate(rows, 3, [0, 2, 3], torch.Generator().manual_seed(5)))
        return {"step": number + 1, "loss": 0.0, "relative": 0.0}

    monkeypatch.setattr(Loop, "step", step)
    config = TrainConfig(**{**QUICK, "steps": 1, "guidance_scale": 5.0})
    with pytest.raises(sr.GuardError, match="changes nothing"):
        train_esd(pipe, PAIRS[:1], tmp_path / "guard", concept="star", config=config)
    noise = torch.randn(1, 4, *given[0][0].shape[2:], generator=torch.Generator().manual_seed(5))
    seen = {}

    def keep(pipe: Any, number: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen[number + 1] = values["latents"].clone()
        return values

    run(case, pipe, "a star", steps=4, latents=noise, callback_on_step_end=keep)
    for number in (2, 3):
        pipe.scheduler.set_timesteps(4)
        pipe.scheduler._step_index = number
        expected = pipe.scheduler.scale_model_input(seen[number], pipe.scheduler.timesteps[number])
        torch.testing.assert_close(given[number][0], expected, atol=1e-4, rtol=1e-4)
        assert given[number][1] == pipe.scheduler.timesteps[number]


def test_it_learns_to_turn_round(tmp_path: Path) -> None:
    """The loss falls well below that of the model it began with."""
    pipe = PIPELINES["sd"].build()
    config = TrainConfig(**{**QUICK, "steps": 60, "rank": 4, "variant": "full", "reference": "safe"})
    guard = train_esd(pipe, PAIRS, tmp_path / "guard", concept="star", config=config)
    assert guard.config.training["last_relative"] < 0.5


class Killed(Exception):
    """Stands for a kill in the middle of training."""


@pytest.mark.parametrize("stop", [2, 3])
def test_a_killed_run_goes_on_to_the_same_weights(stop: int, tmp_path: Path) -> None:
    config = TrainConfig(**{**QUICK, "steps": 6})
    whole = train_esd(PIPELINES["sd"].build(), PAIRS, tmp_path / "whole", concept="star", config=config)

    def kill(line: dict[str, Any]) -> None:
        if line["step"] == stop + 1:
            raise Killed

    out = tmp_path / "killed"
    pipe = PIPELINES["sd"].build()
    with pytest.raises(Killed):
        train_esd(pipe, PAIRS, out, concept="star", config=config, log=kill)
    assert not out.exists() and not hasattr(pipe.unet, "peft_config")
    with pytest.raises(sr.GuardConfigError, match="unfinished training"):
        train_esd(pipe, PAIRS, out, concept="star", config=TrainConfig(**{**QUICK, "steps": 7}))
    resumed = train_esd(pipe, PAIRS, out, concept="star", config=config)
    for name, value in whole.lora.items():
        assert torch.allclose(resumed.lora[name], value, atol=1e-6), name
    lines = [json.loads(line)["step"] for line in (out / "training.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4, 5, 6]


def test_v_models_train_too(tmp_path: Path) -> None:
    pipe = PIPELINES["sd"].build()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="v_prediction")
    guard = train_esd(pipe, PAIRS, tmp_path / "g", concept="star", config=TrainConfig(**{**QUICK, "steps": 2}))
    assert guard.config.backbone is not None
    assert guard.config.backbone["architecture"]["prediction_type"] == "v_prediction"


def test_refusals(tmp_path: Path) -> None:
    out = tmp_path / "guard"
    with pytest.raises(sr.UnsupportedPipelineError, match="ESD cannot be trained on lumina"):
        train_esd(PIPELINES["lumina"].build(), PAIRS, out, concept="x")
    with pytest.raises(sr.UnsupportedPipelineError, match="takes 9 channels and the VAE makes 4"):
        train_esd(PIPELINES["sd-inpaint9"].build(), PAIRS, out, concept="x")
    pipe = PIPELINES["sd"].build()
    with pytest.raises(sr.GuardConfigError, match="no prompt for the concept"):
        train_esd(pipe, PAIRS[2:], out, concept="x")
    guard = train_esd(pipe, PAIRS, out, concept="x", config=TrainConfig(**{**QUICK, "steps": 1}))
    pipe.load_lora_weights(guard.tensors())
    with pytest.raises(sr.GuardConfigError, match="has LoRAs loaded"):
        train_esd(pipe, PAIRS, tmp_path / "b", concept="x", config=TrainConfig(**QUICK))
    for changes in ({"variant": "y"}, {"eta": -1.0}, {"moments": 9}, {"sampling_steps": 1}, {"size": (32,)}):
        with pytest.raises(sr.GuardConfigError, match=next(iter(changes))):
            TrainConfig(**{**QUICK, **changes})
