"""`saferedir guards calibrate`: thresholds of a packaged guard measured anew with a LoRA on, and what the command refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from typer.testing import CliRunner

import saferedir as sr
from saferedir.cli import app
from saferedir.utils.packaged import packaged_guard_path

PLACES = ("", "on sand", "at night", "on grass", "on white")
FORGET = [f"a {colour} star {place}" for colour in ("red", "blue", "green", "pink") for place in PLACES]
BENIGN = [text.replace("star", "circle") for text in FORGET]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Prompt files of both sides, and a small LoRA for PictoWorld."""
    pipe = sr.load_pipeline("pictoworld")
    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(r=1, lora_alpha=1, target_modules=["to_q"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(tmp_path / "lora", get_peft_model_state_dict(pipe.unet))
    found = {"lora": tmp_path / "lora" / "pytorch_lora_weights.safetensors"}
    for name, texts in (("forget", FORGET), ("benign", BENIGN)):
        found[name] = tmp_path / f"{name}.txt"
        found[name].write_text("\n".join(texts) + "\n")
    return found


def call(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in ("guards", "calibrate", *words)])
    return result.exit_code, result.output


def test_a_guard_is_calibrated_with_a_lora_and_says_good_or_weak(files: dict[str, Path], tmp_path: Path) -> None:
    sides = ["--forget", files["forget"], "--benign", files["benign"]]
    settings = [
        "--rollouts",
        40,
        "--steps",
        2,
        "--guidance",
        4,
        "--lora",
        f"{files['lora']}:0.01",
        "--out",
        tmp_path / "new",
    ]
    code, output = call("pictoworld/star", *sides, *settings)
    assert code == 0, output
    assert ("Good: on held-out data" in output or "Weak: on held-out data" in output) and "Next: " in output
    config = json.loads((tmp_path / "new" / "guard_config.json").read_text())
    (adapter,) = config["backbone"]["adapters"]["unet"]
    assert adapter["scale"] == 0.01 and config["calibration"]["guidance_scales"] == [4.0]
    assert config["calibration"]["unsafe"] == config["calibration"]["benign"] == 20
    source = packaged_guard_path("pictoworld/star")
    assert source is not None
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "new" / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not (tmp_path / "new.work").exists() and not list(tmp_path.glob(".new*"))
    code, output = call("pictoworld/star", *sides, *settings)
    assert code == 1 and "holds finished work" in output


def test_what_is_missing_is_said_before_any_work(files: dict[str, Path], tmp_path: Path) -> None:
    out = ["--out", tmp_path / "new"]
    for words, said in (
        ([], "give --pairs, or --forget and --benign"),
        (["--forget", files["forget"]], "needs prompts without the concept"),
        (["--forget", files["forget"], "--benign", files["benign"], "--only", "all"], "neither prompt nor image"),
        (["--forget", files["forget"], "--benign", files["benign"], "--lora", "nowhere:0.5"], "no LoRA at nowhere"),
        (["--forget", files["forget"], "--benign", files["benign"], "--lora", f"{files['lora']}:much"], "is no scale"),
    ):
        code, output = call("pictoworld/star", *words, *out)
        assert code == 2 and said in " ".join(output.replace("│", " ").split()), output
    assert not (tmp_path / "new").exists()
