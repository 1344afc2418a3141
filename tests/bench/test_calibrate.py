"""The bench calibrates judges of built-in concepts by itself: once each, on images whose truth is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.bench.test_bench import finish, matrix

from saferedir.bench.evaluation import calibrate as calibrating
from saferedir.bench.evaluation.calibrate import calibrate_worlds
from saferedir.bench.generation.resources import Resources
from saferedir.bench.generation.worlds import labelled_images, world_concept
from saferedir.bench.report.from_folder import report_folder
from saferedir.bench.storage.saved_plan import read_saved_plan
from saferedir.judges.calibration import Calibration
from saferedir.pictoworld.judge import Judge
from saferedir.pictoworld.tasks import TASKS


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_labels_are_the_truth_and_near_misses_are_among_them(task: object) -> None:
    """Every image reads as its label says, to a judge that was trained on other scenes; half of the misses are near."""
    images, labels, source = labelled_images(f"pictoworld/{task.name}", 20)  # type: ignore[attr-defined]
    assert images.shape == (40, 3, 64, 64) and labels == [True] * 20 + [False] * 20 and source
    assert torch.equal((images * 255).round() / 255, images)
    judged = Judge.load().judge(images)
    right = judged.shows(task.forget) == torch.tensor(labels)  # type: ignore[attr-defined]
    assert right.float().mean() >= 0.97  # 39 of 40


def test_labelled_images_are_the_same_each_time() -> None:
    first, second = (labelled_images("pictoworld/star", 3)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_each_judge_and_rule_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrating, "IMAGES", 10)
    resources, said = Resources(), []
    judges = {
        "judge": {"name": "pictoworld", "preset": "star"},
        "second_judges": [{"name": "pictoworld-template", "preset": "star"}],
    }
    few = {"forget": 1, "rephrased": 1, "retain": 1, "neighbours": 1, "look_alikes": 1}
    small = matrix(concept={"star": {"prompts": "pictoworld/star", **judges}}, prompts=few, attacks=["none"], guard={})
    finish(tmp_path, small, resources)
    html, _ = report_folder(tmp_path)
    assert "uncalibrated" in html.read_text(encoding="utf-8")
    for _ in range(2):
        calibrate_worlds(read_saved_plan(tmp_path), tmp_path, resources, said.append)
    assert said == ["calibrating pictoworld for star", "calibrating pictoworld-template for star"]
    found = [Calibration.load(path) for path in (tmp_path / calibrating.CALIBRATIONS).iterdir()]
    assert [(one.positives, one.negatives) for one in found] == [(10, 10)] * 2
    html, markdown = report_folder(tmp_path)
    assert "rendered scenes" in html.read_text(encoding="utf-8") and "rendered scenes" in markdown.read_text(
        encoding="utf-8"
    )


def test_prompts_of_the_users_are_of_no_world() -> None:
    assert world_concept("pictoworld/star/test-seen 0123456789abcdef") == "pictoworld/star"
    assert world_concept("i2p-original sha1:e03b6d70d820 0123456789abcdef") is None
