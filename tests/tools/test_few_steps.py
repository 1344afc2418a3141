"""Distillation for few steps: the solver against its closed form, and a short training that leaves the base weights alone."""

from __future__ import annotations

from pathlib import Path

import torch
from tools.pictoworld.training.few_steps import solver_step, train_few_steps

import saferedir as sr
from saferedir.utils.progress import SILENT


def test_a_step_of_the_solver_stays_on_the_line_between_image_and_noise() -> None:
    random = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(2, 4, 3, 3, generator=random, dtype=torch.float64) for _ in range(2))
    a_t, a_s = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1) for values in ([0.2, 0.5], [0.4, 0.9]))
    x_t = a_t.sqrt() * x0 + (1 - a_t).sqrt() * eps
    torch.testing.assert_close(solver_step(x_t, eps, a_t, a_s), a_s.sqrt() * x0 + (1 - a_s).sqrt() * eps)


def test_a_short_training_changes_the_lora_alone(tmp_path: Path) -> None:
    pipe = sr.load_pipeline("pictoworld")
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    tensors = train_few_steps(pipe, tmp_path, steps=2, batch=2, pool=64, progress=SILENT)
    after = pipe.unet.state_dict()
    assert all(
        torch.equal(value, after[name] if name in after else after[_wrapped(name)]) for name, value in before.items()
    )
    assert any(name.endswith("lora_B.weight") and bool(value.any()) for name, value in tensors.items())
    assert all(name.startswith("unet.") for name in tensors)


def _wrapped(name: str) -> str:
    """The name of a weight under peft's wrapper."""
    module, _, kind = name.rpartition(".")
    return f"{module}.base_layer.{kind}"
