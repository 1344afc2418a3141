"""The command line and the library train the same guard: one source of defaults, the same bytes for the same seed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from typer.testing import CliRunner

from saferedir import Guard, load_pipeline
from saferedir.cli import app
from saferedir.cli.train import _config, finish_guard
from saferedir.cli.train_duo import _train_config
from saferedir.training.duo.train_config import TrainConfig as DuoConfig
from saferedir.training.saferedir.dataset import read_pairs
from saferedir.training.saferedir.train import train_saferedir
from saferedir.training.saferedir.train_config import TrainConfig


def test_the_defaults_are_the_librarys() -> None:
    assert _config({}, None, 0) == TrainConfig()
    assert _config({"rollouts": TrainConfig().rollouts}, None, 0) == TrainConfig()
    assert _config({"rollouts": 8}, None, 0).held_out_rollouts == 5
    text = " ".join(
        CliRunner()
        .invoke(app, ["train", "saferedir", "--help"], env={"COLUMNS": "250"})
        .output.replace("│", " ")
        .split()
    )
    said = {
        name: re.search(rf"--{name} .*?default: ([\d.]*\d)", text) for name in ("steps", "rollouts", "rollout-steps")
    }
    found = {name: int(match[1]) for name, match in said.items() if match}
    assert found == {"steps": TrainConfig.steps, "rollouts": TrainConfig.rollouts, "rollout-steps": 20}
    assert TrainConfig.rollout_steps == 20 and TrainConfig.guidance_scale == 4.0 and "images; default: 4." in text


def test_the_defaults_of_duo_are_the_librarys() -> None:
    for scheduler, is_flow in ((DDIMScheduler(), False), (FlowMatchEulerDiscreteScheduler(), True)):
        pipe = SimpleNamespace(scheduler=scheduler)
        found = _train_config(pipe, "owner/name", "dog", "as-paper", None, {}, DuoConfig().seed)
        assert found == DuoConfig.of_variant("as-paper", is_flow=is_flow)
    assert DuoConfig.of_variant("as-paper") == DuoConfig()


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    run = CliRunner().invoke
    pairs, ours, theirs = tmp_path / "pairs.jsonl", tmp_path / "ours", tmp_path / "theirs"
    words = ["pictoworld", "pairs", "--task", "star", "--out", str(pairs), "--pairs", "80", "--benign", "20"]
    assert run(app, words).exit_code == 0
    small = ["--steps", "2", "--rollouts", "6", "--rollout-steps", "1", "--seed", "3"]
    words = ["train", "saferedir", "--pairs", str(pairs), "--concept", "star", "--out", str(ours), *small]
    result = run(app, words)
    assert result.exit_code == 0, result.output
    config = TrainConfig(steps=2, rollouts=6, held_out_rollouts=4, rollout_steps=1, seed=3)
    guard = train_saferedir(load_pipeline("pictoworld"), read_pairs(pairs), theirs, concept="star", config=config)
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    seconds = re.compile(r'"seconds": [\d.]+')
    first, second = (seconds.sub("", (place / "guard_config.json").read_text()) for place in (ours, theirs))
    assert first == second and guard.config.training["held_out_rollouts"] == 4


def test_a_guard_is_trained_for_a_model_with_its_loras(tmp_path: Path) -> None:
    donor = load_pipeline("pictoworld")
    donor.unet.add_adapter(LoraConfig(r=1, lora_alpha=1, target_modules=["to_q"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(tmp_path, get_peft_model_state_dict(donor.unet))
    lora, out, pairs = tmp_path / "pytorch_lora_weights.safetensors", tmp_path / "guard", tmp_path / "pairs.jsonl"
    run = CliRunner().invoke
    words = ["pictoworld", "pairs", "--task", "star", "--out", str(pairs), "--pairs", "80", "--benign", "20"]
    assert run(app, words).exit_code == 0
    small = ["--steps", "2", "--rollouts", "6", "--rollout-steps", "1", "--lora", f"{lora}:0.5"]
    result = run(app, ["train", "saferedir", "--pairs", str(pairs), "--concept", "star", "--out", str(out), *small])
    assert result.exit_code == 0, result.output
    backbone = Guard.from_pretrained(out).config.backbone
    assert backbone is not None
    (adapters,) = {str(found) for found in backbone["adapters"].values()}
    assert "'name': 'lora-1'" in adapters and "'scale': 0.5" in adapters
    summary = json.loads((out / "summary.json").read_text())
    assert summary["loras"] == [f"{lora}:0.5"]


def test_the_next_command_is_of_the_same_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`finish_guard`: a guard that was made for a model with a LoRA is tried on that model, called as in its training."""
    config = SimpleNamespace(
        concept="star", prompt_threshold=1.0, image_threshold=2.0, last_threshold=None, measured={},
        training={"call": {"max_sequence_length": 32, "negative_prompt": ""}},
        calibration={"verdict": {"good": True, "why": "Good: on held-out data it is."}},
    )  # fmt: skip
    finish_guard(SimpleNamespace(config=config, method="saferedir"), tmp_path, "some/model", ["style:0.5"], {})
    shown = capsys.readouterr().out
    assert "--model some/model --lora style:0.5 --guard" in shown
    assert (
        "--call max_sequence_length=32 --call negative_prompt='' --out" in shown
    )  # without it the guard refuses FLUX's call
    assert json.loads((tmp_path / "summary.json").read_text())["loras"] == ["style:0.5"]
