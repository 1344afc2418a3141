"""Trains the UCE, ESD and DUO guards of PictoWorld 2 by their recipes, and keeps them in float16 as the package has them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from saferedir.guards.weights import WeightGuard
from saferedir.pictoworld.recipes import train_edit
from saferedir.pictoworld.world2.edit_recipe import duo_settings, render_pairs
from saferedir.pictoworld.world2.tasks import Task
from saferedir.training.duo.train import train_duo
from saferedir.training.duo.train_config import TrainConfig as DUOTrainConfig
from saferedir.utils.files import replacing
from saferedir.utils.packaged import GUARD_CONFIG
from saferedir.utils.progress import SILENT, Progress

PAIRS_SEED = 42
CHANGES = "changes.json"  # written last, so that its guard is whole


def make_edit(
    pipe: Any, task: Task, method: str, out: Path, changes: dict[str, Any], progress: Progress = SILENT
) -> Path:
    """The guard `<out>/<task>-<method>`; one that stands there is kept. `changes`: fields of the method's TrainConfig.

    Raises:
        ValueError: the guard that stands there was made with other changes.
    """
    folder = out / f"{task.name}-{method}"
    asked, record = json.dumps(changes, sort_keys=True), folder / CHANGES
    if (folder / GUARD_CONFIG).is_file() and record.is_file():
        if record.read_text(encoding="utf-8") != asked:
            raise ValueError(f"{folder} was made with other settings; delete it, or choose another --out.")
        return folder
    shutil.rmtree(folder, ignore_errors=True)  # not in float16 yet
    guard: WeightGuard[Any]
    if method == "duo":
        pairs = out / "pairs" / task.name
        if not pairs.is_dir():
            render_pairs(task, pairs, seed=PAIRS_SEED)
        duo = DUOTrainConfig.of_variant("as-paper", is_flow=True, **duo_settings(task.name, **changes))
        guard = train_duo(pipe, pairs, folder, concept=task.name, config=duo, progress=progress)
    else:
        guard = train_edit(method, pipe, task, folder, model="pictoworld-flux", progress=progress, **changes)
    guard.lora = {name: value.to(torch.float16) for name, value in guard.lora.items()}
    guard.save_pretrained(folder)
    with replacing(record) as temporary:
        temporary.write_text(asked, encoding="utf-8")
    return folder
