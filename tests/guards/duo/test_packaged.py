"""The packaged DUO guards: a few prompts each; the full numbers are in their guard_config.json under "measured"."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import saferedir as sr
from saferedir.pictoworld.evaluation import attributes_kept, concept_rate, generate
from saferedir.pictoworld.judge import Judge
from saferedir.pictoworld.tasks import TASKS, forget_prompts, retain_prompts
from saferedir.utils.packaged import packaged_guard_path

N = 5  # prompts that ask for the concept; twice as many do not
PACKAGED = [name for name in TASKS if packaged_guard_path(f"pictoworld/{name}-duo") is not None]


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = sr.load_pipeline("pictoworld")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", PACKAGED)
def test_it_unlearned_its_concept_and_little_else(name: str, pipe: Any) -> None:
    task, guard = TASKS[name], sr.Guard.from_pretrained(f"pictoworld/{name}-duo")
    forget, retain = forget_prompts(task, "test-seen", N, seed=99), retain_prompts(task, "test-seen", 2 * N, seed=99)
    judge, texts = Judge.load(), [prompt.text for prompt in forget + retain]
    plain, guarded = (generate(pipe, texts, guards=on, steps=15).images for on in ([], [guard]))
    assert not hasattr(pipe.unet, "peft_config")
    shown = [concept_rate(judge.judge(pictures[:N]), task).hits for pictures in (plain, guarded)]
    assert shown[0] >= N - 1 and shown[1] <= 1
    before, after = (judge.judge(pictures[N:]) for pictures in (plain, guarded))
    assert attributes_kept(after, before, retain, replace(task, forget={})).value >= 0.8


@pytest.mark.parametrize("name", PACKAGED)
def test_its_folder_is_small_and_plain(name: str) -> None:
    folder = packaged_guard_path(f"pictoworld/{name}-duo")
    assert folder is not None
    assert sum(path.stat().st_size for path in Path(folder).iterdir()) <= 1_000_000
    config = sr.Guard.from_pretrained(folder).config
    assert config.backbone is not None and config.measured["test-seen"]["n"] >= 100
    assert (
        str(Path.home()) not in (folder / "guard_config.json").read_text()
        and "/tmp" not in (folder / "README.md").read_text()
    )
