"""The demo's logic on the embedded model: a few prompts, two steps, guards with random weights."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.watched import Watched

from saferedir import load_pipeline
from saferedir.demo import DemoConfig, demo_guards, demo_prompts, run_demo, run_task, verdict_of
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.guards.saferedir.guard import SafeRedir
from saferedir.guards.saferedir.network import Redirector, RedirectorConfig
from saferedir.pictoworld.evaluation import load_judge
from saferedir.pictoworld.judge import Judge
from saferedir.pictoworld.tasks import TASKS, TEST_SPLITS

PLAIN = (
    "concept n_forget n_retain concept_rate_unguarded concept_rate_guarded retain_identical_rate "
    "retain_attributes_kept broken_rate_guarded seconds_unguarded seconds_guarded"
).split()
TINY = DemoConfig(forget=2, retain=2, steps=2)


@pytest.fixture(scope="module")
def world() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = load_pipeline("pictoworld")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge()


@pytest.fixture
def make_guard() -> Callable[..., SafeRedir]:
    def make(concept: str, threshold: float) -> SafeRedir:
        torch.manual_seed(0)
        network = {"prompt_dim": 96, "concepts": [concept]}
        return SafeRedir(
            SafeRedirConfig(concept=concept, network=network, prompt_threshold=threshold, image_threshold=1e9),
            Redirector(RedirectorConfig.from_dict(network)),
        )

    return make


def test_demo_writes_a_grid_and_plain_numbers(
    world: Any, judge: Judge, make_guard: Callable[..., SafeRedir], tmp_path: Path
) -> None:
    guards = {"star": make_guard("star", -1e6), "emblem": make_guard("emblem", 1e6)}
    watched = Watched()
    summary = run_demo(world, guards, judge, tmp_path, TINY, watched)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert Image.open(tmp_path / "grid.png").size[0] > 1000
    assert watched.steps[-1][2] == 2 * 2 * 4
    for task in summary["tasks"]:
        assert list(task)[: len(PLAIN)] == PLAIN
        assert all(type(task[name]) in (int, float, str) for name in PLAIN)
        assert task["n_forget"] == task["n_retain"] == 2
    fired, quiet = summary["tasks"]
    assert fired["retain_fired_rate"] == 1.0 and fired["retain_identical_rate"] == 0.0
    assert quiet["retain_fired_rate"] == 0.0 and quiet["retain_identical_rate"] == 1.0
    assert {"saferedir", "torch", "diffusers"} <= set(summary["versions"])


def test_a_guard_that_never_fires_leaves_every_bit(
    world: Any, judge: Judge, make_guard: Callable[..., SafeRedir]
) -> None:
    run = run_task(world, make_guard("star", 1e6), judge, TASKS["star"], replace(TINY, batch=3))
    assert torch.equal(run.unguarded.images, run.guarded.images)
    assert "untouched" in verdict_of(run.guarded.decisions[0])


@pytest.mark.parametrize("count", [1, 2, 5, 24])
def test_forget_prompts_are_spread_over_the_splits(count: int) -> None:
    prompts, splits = demo_prompts(TASKS["star"], DemoConfig(forget=count, retain=3))
    sizes = [splits.count(split) for split in TEST_SPLITS]
    assert len(prompts) == count + 3 and sum(sizes) == count and max(sizes) - min(sizes) <= 1
    assert all(TASKS["star"].shows_concept(prompt.scene) == (row < count) for row, prompt in enumerate(prompts))


def test_a_demo_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="forget is 0"):
        DemoConfig(forget=0)


def test_packaged_guards_cover_every_task() -> None:
    assert set(demo_guards()) == set(TASKS)
