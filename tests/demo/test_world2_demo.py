"""The demo of PictoWorld 2: a task of each kind, what is missing is said, and a summary that says what was counted."""

from __future__ import annotations

import json
from pathlib import Path

import saferedir as sr
from saferedir.demo.world2 import first_of_each_kind, run_world2_demo
from saferedir.pictoworld.world2.judge import Judge
from saferedir.pictoworld.world2.tasks import TASKS
from saferedir.utils.packaged import packaged_model_path


def test_every_kind_of_task_is_there_once() -> None:
    kinds = [task.kind for task in first_of_each_kind()]
    assert sorted(kinds) == sorted({task.kind for task in TASKS.values()})


def test_the_demo_shows_what_is_packaged_and_says_what_is_not(tmp_path: Path) -> None:
    tasks = [task for task in first_of_each_kind() if task.kind in ("object", "share")]
    summary = run_world2_demo(
        sr.load_pipeline, Judge.load(), tmp_path, forget=2, retain=2, tasks=tasks, num_inference_steps=2
    )
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    rows = {row["task"]: row for row in summary["tasks"]}
    assert rows["star-2"]["shown_with"]["n"] == 2 and rows["star-2"]["others_identical"]["n"] == 2
    assert (tmp_path / "star-2.png").is_file()
    assert ("missing" in rows["share"]) == (packaged_model_path("pictoworld-ddpm") is None)
