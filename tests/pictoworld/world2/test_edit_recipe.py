"""PictoWorld 2's recipes of UCE, ESD and DUO: prompts of the training phrasings alone, valid settings, image pairs that fit."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tools.pictoworld.world2 import edits
from typer.testing import CliRunner

from saferedir.cli import app
from saferedir.cli.recipes import recipe_settings, world_rows
from saferedir.errors import GuardConfigError
from saferedir.pictoworld.tasks import TEST_SPLITS
from saferedir.pictoworld.world2 import edit_recipe
from saferedir.pictoworld.world2.edit_recipe import CALL, edit_rows, render_pairs
from saferedir.pictoworld.world2.tasks import TASKS, forget_prompts
from saferedir.training.duo.train_config import TrainConfig as DUOTrainConfig
from saferedir.training.esd.train_config import TrainConfig as ESDTrainConfig
from saferedir.training.uce.train import TrainConfig as UCETrainConfig
from saferedir.utils.images import read_array

FLUX = "pictoworld-flux"


@pytest.mark.parametrize("name", ["star-2", "mosaic-2", "red-cross-2", "character-lomka"])
def test_rows_and_settings(name: str) -> None:
    rows = edit_rows(TASKS[name], 30, 20)
    assert sum(row.unsafe is None for row in rows) == 20 and len(rows) == 50
    texts = {row.unsafe for row in rows}
    for split in TEST_SPLITS:
        assert not texts & {prompt.text for prompt in forget_prompts(TASKS[name], split, 50)}
    assert world_rows(FLUX, name, 30, 42)[:30] == rows[:30]
    given = {"steps": 3, "rank": None}
    assert UCETrainConfig(**recipe_settings("uce", FLUX, name, {"ridge": 2.0})).ridge == 2.0
    assert ESDTrainConfig(**recipe_settings("esd", FLUX, name, given)).steps == 3
    assert DUOTrainConfig(**recipe_settings("duo", FLUX, name, given, with_prompts=False)).conditioning == "null"
    asked = recipe_settings("duo", FLUX, name, given, ["max_sequence_length=16"], with_prompts=True)["call"]
    assert asked == {**CALL, "max_sequence_length": 16}


def test_rendered_pairs_are_one_scene_twice(tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    words = ["pictoworld", "image-pairs", "--task", "world2/star-2", "--out", str(folder), "--count", "6"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    prompts = json.loads((folder / "manifest.json").read_text())["plan"]["prompts"]
    for index, (unsafe, safe) in enumerate(prompts):
        first, second = (read_array(folder / side / f"{index:05d}.png").astype(int) for side in ("unsafe", "safe"))
        differs = np.abs(first - second).max(-1) > 0
        assert unsafe != safe and first.shape == (64, 64, 3) and 0 < differs.mean() < 0.4
    with pytest.raises(GuardConfigError, match="not empty"):
        render_pairs(TASKS["star-2"], folder, 2)
    refused = CliRunner().invoke(app, [*words[:3], "world2/share", *words[4:5], str(tmp_path / "b")])
    assert refused.exit_code == 1 and "has no prompts" in refused.output and not (tmp_path / "b").exists()


def test_a_rendering_that_was_killed_leaves_no_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(edit_recipe, "write_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            render_pairs(TASKS["star-2"], tmp_path / "pairs", 2)
    assert not (tmp_path / "pairs").exists()
    assert len(render_pairs(TASKS["star-2"], tmp_path / "pairs", 2)) == 2


def test_an_edit_of_other_settings_is_not_taken_for_the_one_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def train(method: str, pipe: object, task: object, folder: Path, **given: object) -> Any:
        calls.append(given)
        folder.mkdir()
        (folder / "guard_config.json").write_text("{}")
        return SimpleNamespace(lora={}, save_pretrained=lambda folder: None)

    monkeypatch.setattr(edits, "train_edit", train)
    for changes in ({}, {}, {"ridge": 2.0}):
        if changes:
            with pytest.raises(ValueError, match="other settings"):
                edits.make_edit(None, TASKS["star-2"], "uce", tmp_path, changes)
        else:
            edits.make_edit(None, TASKS["star-2"], "uce", tmp_path, changes)
    assert len(calls) == 1
