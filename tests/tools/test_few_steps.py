"""Distillation for few steps: the solver against its closed form, and a short training that leaves the base weights alone."""

from __future__ import annotations

from pathlib import Path

import torch
from tools.pictoworld.training.few_steps import few_step_scheduler, solver_step, train_few_steps

import saferedir as sr
from saferedir.pictoworld.evaluation import generate, load_judge
from saferedir.pictoworld.tasks import TASKS, retain_prompts
from saferedir.utils.packaged import LORA_FILE, packaged_lora_path
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


def test_the_packaged_lora_makes_images_in_one_step() -> None:
    """Its file is small, it stands by its name alone, and a single step already shows most scenes."""
    folder = packaged_lora_path("pictoworld-few-steps")
    assert folder is not None and (folder / LORA_FILE).stat().st_size <= 2_000_000
    pipe = sr.load_pipeline("pictoworld", loras=[("pictoworld-few-steps", 1.0)])
    pipe.scheduler = few_step_scheduler(pipe.scheduler.config)
    prompts = [prompt.text for prompt in retain_prompts(TASKS["star"], "test-seen", 16)]
    images = generate(pipe, prompts, steps=1, guidance_scale=1.0, seed=0).images
    assert int(load_judge().judge(images).is_broken.sum()) <= 4


def _wrapped(name: str) -> str:
    """The name of a weight under peft's wrapper."""
    module, _, kind = name.rpartition(".")
    return f"{module}.base_layer.{kind}"
