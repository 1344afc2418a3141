"""`saferedir guards manifold`: statistics of PictoWorld's text encoder beside a packaged guard's weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import saferedir as sr
from saferedir.cli import app

TEXTS = [f"a {colour} {shape} {place}" for colour in ("red", "blue", "green") for shape in ("star", "circle", "cross", "heart")
         for place in ("on sand", "at night", "on grass")]  # fmt: skip


def call(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in ("guards", "manifold", *words)])
    return result.exit_code, result.output


def test_a_guard_gets_statistics_and_then_refuses_soft_embeddings(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(TEXTS) + "\n")
    code, output = call("pictoworld/star-usual", "--prompts", prompts, "--random", 100, "--out", tmp_path / "new")
    assert code == 0, output
    assert "Distance bound" in output and "from 36 prompts" in output
    before = sr.Guard.from_pretrained("pictoworld/star-usual").tensors()
    after = load_file(tmp_path / "new" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {name.removeprefix("manifold_") for name in after.keys() - before.keys()} == {
        "mean", "whitening", "scale", "bound",
    }  # fmt: skip
    guard = sr.Guard.from_pretrained(tmp_path / "new")
    assert guard.config.embeds_test == "refuse"
    pipe = sr.load_pipeline("pictoworld")
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        embeds = pipe.encode_prompt("a blue heart on sand", "cpu", 1, False)[0]
    soft = embeds + embeds.std() * torch.randn(embeds.shape, generator=torch.Generator().manual_seed(0))
    with sr.attach(pipe, guard):
        pipe("a blue heart", num_inference_steps=1)
        pipe(prompt_embeds=embeds, num_inference_steps=1, guidance_scale=1.0)
        with pytest.raises(sr.GuardError, match="none that the text encoder makes"):
            pipe(prompt_embeds=soft, num_inference_steps=1, guidance_scale=1.0)


def test_too_few_prompts_are_one_sentence(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\nb\n")
    code, output = call("pictoworld/star", "--prompts", prompts, "--out", tmp_path / "new")
    assert code == 1 and "give at least 20" in " ".join(output.split()) and not (tmp_path / "new").exists()
