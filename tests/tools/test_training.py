"""The world's training at toy length: every stage runs, diffusers loads the result, a resumed loop is the same loop."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from tools.pictoworld.training.loop import LoopConfig, fit, learning_rate_at
from tools.pictoworld.training.run import WorldConfig, refuse_other_plan, train_world

from saferedir.pictoworld.judge import Judge
from saferedir.utils.progress import SILENT

TINY = WorldConfig(text_encoder_steps=2, autoencoder_steps=2, judge_steps=2, denoiser_steps=2, pool=8, batch_share=0.01)


def test_a_tiny_world_trains_loads_and_refuses_another_plan(tmp_path: Path) -> None:
    folder = train_world(tmp_path, TINY, device=torch.device("cpu"))
    pipe = StableDiffusionPipeline.from_pretrained(str(folder))
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a star", num_inference_steps=1).images[0].size == (64, 64)
    assert isinstance(Judge.load(tmp_path / "judge.safetensors"), Judge)
    assert json.loads((tmp_path / "world.json").read_text())["config"]["pool"] == 8
    with pytest.raises(ValueError, match="another plan"):
        train_world(tmp_path, WorldConfig(seed=1), device=torch.device("cpu"))


def test_a_plan_from_before_a_field_came_is_the_plan_of_its_default(tmp_path: Path) -> None:
    plan = asdict(replace(TINY, batch_share=1.0))
    del plan["batch_share"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    refuse_other_plan(tmp_path / "plan.json", replace(TINY, batch_share=1.0))
    with pytest.raises(ValueError, match="another plan"):
        refuse_other_plan(tmp_path / "plan.json", TINY)
    assert WorldConfig().batch("denoiser") == 64 and WorldConfig().scaled(0.01).batch("judge") == 64


@pytest.mark.parametrize("muon", [0.0, 0.1])
def test_a_resumed_loop_ends_where_an_uninterrupted_one_does(tmp_path: Path, muon: float) -> None:
    config = LoopConfig(steps=8, learning_rate=0.1, warmup=2, ema=0.5, save_every=4, bf16=False, muon=muon)

    def run(checkpoint: Path, die_at: int | None) -> torch.nn.Module:
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 1)

        def loss(step: int, generator: torch.Generator) -> torch.Tensor:
            if step == die_at:
                raise KeyboardInterrupt
            x = torch.randn(16, 3, generator=generator)
            return (module(x)[:, 0] - x.sum(1)).square().mean()

        matrices = [module.weight] if muon else []
        return fit(module, loss, config, checkpoint, progress=SILENT, label="toy", matrices=matrices)

    whole = run(tmp_path / "a.ckpt", None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b.ckpt", 6)
    resumed = run(tmp_path / "b.ckpt", None)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_learning_rate_rises_then_falls_to_a_tenth() -> None:
    config = LoopConfig(steps=100, learning_rate=1.0, warmup=10)
    rates = [learning_rate_at(config, step) for step in range(100)]
    assert rates[:10] == sorted(rates[:10]) and rates[9] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    module = torch.nn.Linear(1, 1)
    config = LoopConfig(steps=2, learning_rate=0.1, bf16=False)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        fit(
            module, lambda step, generator: module.weight.sum() * torch.nan, config, tmp_path / "c.ckpt",
            progress=SILENT, label="toy",
        )  # fmt: skip
