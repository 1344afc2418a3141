"""The DUO recipes of PictoWorld's tasks, reachable without the command line."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

import saferedir as sr
from saferedir.pictoworld import duo_recipe
from saferedir.pictoworld.renderer import render
from saferedir.pictoworld.scene import Scene, random_scene
from saferedir.pictoworld.tasks import TASKS
from saferedir.training.duo.train_config import TrainConfig
from saferedir.utils.packaged import list_packaged_guards

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "crescent")


def test_a_task_may_have_several_anchors_in_turn() -> None:
    """The emblem's safe members differ in shape, so that nothing but the cross tells all pairs apart; star has its one anchor."""
    emblem = duo_recipe.prompt_pairs(TASKS["emblem"], 14)
    named = {name for _, safe in emblem for name in SHAPES if name in safe}
    assert len(named) >= 5 and all("cross" not in safe for _, safe in emblem)
    star = duo_recipe.prompt_pairs(TASKS["star"], 8)
    assert all("circle" in safe for _, safe in star)
    assert star == duo_recipe.prompt_pairs(TASKS["star"], 8, 42) != duo_recipe.prompt_pairs(TASKS["star"], 8, 43)


@pytest.mark.parametrize("name", TASKS)
def test_the_packaged_guards_were_trained_like_this(name: str) -> None:
    packaged = f"pictoworld/{name}-duo"
    assert packaged in list_packaged_guards()
    config, facts = duo_recipe.train_config(name), sr.Guard.from_pretrained(packaged).config.training
    for field in ("steps", "batch", "rank", "beta", "learning_rate", "prior_weight", "conditioning", "t_max", "seed"):
        assert getattr(config, field) == facts[field], field
    assert list(config.targets) == list(facts["targets"])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"conditioning": "prompt", "prior_conditioning": "prompt", "steps": 400, "beta": 150.0}),
        ({"conditioning": "null"}, {"conditioning": "null", "prior_conditioning": "null"}),
        ({"with_prompts": False}, {"conditioning": "null", "prior_conditioning": "null", "t_max": 999}),
        ({"steps": 3, "rank": 2}, {"steps": 3, "rank": 2, "conditioning": "prompt"}),
    ],
)
def test_changes_win_and_prompts_are_asked_for_only_where_there_are_some(
    changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    config = duo_recipe.train_config("emblem", **changes)
    assert isinstance(config, TrainConfig) and {name: getattr(config, name) for name in expected} == expected


def test_another_concept_of_the_world_and_the_drawing() -> None:
    assert duo_recipe.train_settings("ring") == {**duo_recipe.TRAINING, "steps": 90}
    plan = duo_recipe.pair_config(count=5, steps=10)
    assert (plan.count, plan.steps, plan.guidance_scale, plan.batch) == (5, 10, 4.0, 32)


def test_the_filters_tell_the_concept_and_what_else_changed() -> None:
    shows, keeps = duo_recipe.pair_filters(TASKS["star"])
    rng = random.Random(0)
    scenes = [random_scene(rng, shape="star", style="flat", colour="red", background="white") for _ in range(4)]
    edited = [replace(scene, shape="circle") for scene in scenes]
    tinted = [replace(scene, shape="circle", colour="blue") for scene in scenes]
    before, after, other = (images(found) for found in (scenes, edited, tinted))
    assert all(shows(before)) and not any(shows(after))
    assert all(keeps(before, after)) and not any(keeps(before, other))


def images(scenes: list[Scene]) -> list[Image.Image]:
    arrays = (render(scenes) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array) for array in arrays]
