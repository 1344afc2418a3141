"""PictoWorld's recipes of UCE and ESD: prompts of the training phrasings alone, valid settings, a UCE guard that works."""

from __future__ import annotations

import pytest
import torch

import saferedir as sr
from saferedir.pictoworld.edit_recipe import edit_rows, esd_settings, uce_settings
from saferedir.pictoworld.evaluation import generate, load_judge
from saferedir.pictoworld.tasks import TASKS, TEST_SPLITS, forget_prompts
from saferedir.training.esd.train_config import TrainConfig as ESDTrainConfig
from saferedir.training.uce.train import TrainConfig as UCETrainConfig
from saferedir.training.uce.train import make_uce


@pytest.mark.parametrize("task", TASKS)
def test_rows_and_settings(task: str) -> None:
    rows = edit_rows(TASKS[task], 30, 20)
    assert sum(row.unsafe is None for row in rows) == 20 and len(rows) >= 45
    texts = {row.unsafe for row in rows}
    for split in TEST_SPLITS:
        assert not texts & {prompt.text for prompt in forget_prompts(TASKS[task], split, 50)}
    UCETrainConfig(**uce_settings(task))
    assert ESDTrainConfig(**esd_settings(task, steps=3)).steps == 3


def test_stars_that_were_asked_for_are_gone_and_come_back() -> None:
    pipe, judge = sr.load_pipeline("pictoworld"), load_judge()
    guard = make_uce(pipe, edit_rows(TASKS["star"]), concept="star")
    texts = ["a red star over the sky", "a star", "a blue heart on white"]
    with torch.no_grad():
        shown = {
            name: judge.judge(generate(pipe, texts, guards=guards, steps=12).images).labels("shape")
            for name, guards in (("before", []), ("guarded", [guard]), ("after", []))
        }
    assert shown["before"] == shown["after"] == ["star", "star", "heart"]
    assert shown["guarded"][2] == "heart" and "star" not in shown["guarded"]
